"""Android's targets: names, features, and the code that is emitted for them."""

import re
import sys
from pathlib import Path

import pytest

from edgedm.android.abi import abi_of
from edgedm.errors import UnsupportedError
from edgedm.targets import available, resolve
from edgedm.targets.android import clang_of
from edgedm.targets.variants import resolve_variants

sys.path.insert(0, str(Path(__file__).parent.parent / "targets"))

import test_assembly
import test_neon_assembly
from kernel_cases import assembly, select_case

DOTS, MATRICES = r"\t[su]dot\t", r"\t[su]mmla\t"
VECTORS_OF_32_BYTES = r"%[yz]mm"


@pytest.mark.parametrize(
    ("name", "isa", "features", "abi"),
    [
        ("android-arm64", "aarch64", {"neon"}, "arm64-v8a"),
        ("android-arm64+dotprod", "aarch64", {"neon", "dotprod"}, "arm64-v8a"),
        ("android-arm64+i8mm", "aarch64", {"neon", "dotprod", "i8mm"}, "arm64-v8a"),
        ("android-cortex-a53", "aarch64", {"neon"}, "arm64-v8a"),
        ("android-cortex-a76", "aarch64", {"neon", "dotprod"}, "arm64-v8a"),
        ("android-armv7+neon", "arm", {"neon"}, "armeabi-v7a"),
        ("android-x86_64", "x86", resolve("x86-64-v2").features, "x86_64"),
        ("android-x86_64-v3+avxvnni", "x86", resolve("x86-64-v3+avxvnni").features, "x86_64"),
    ],
)
def test_a_name_means_the_features_of_its_linux_sister(name, isa, features, abi):
    target = resolve(name)
    assert (target.isa, target.features, target.base.system) == (isa, frozenset(features), "android")
    assert "android" in target.triple
    assert abi_of(target).name == abi


def test_vectors_of_android_need_no_naming():
    assert resolve("android-armv7") == resolve("android-armv7+neon")


@pytest.mark.parametrize("name", ["android-arm64+vnni", "android-x86_64+vnni", "android-apple-m1"])
def test_a_name_that_means_nothing_is_refused(name):
    with pytest.raises(UnsupportedError, match=r"unknown features vnni|expected host"):
        resolve(name)


def test_linux_and_android_are_different_machines():
    with pytest.raises(UnsupportedError, match="different machines"):
        resolve_variants("android-arm64,aarch64+dotprod")
    assert len(resolve_variants("android-cortex-a53,android-cortex-a76")) == 2
    with pytest.raises(UnsupportedError, match="compile for android-arm64"):
        abi_of(resolve("aarch64"))


def test_the_list_says_what_builds_a_library_and_whether_javac_is_here(monkeypatch, tmp_path):
    def needs(name):
        return next(row["needs"] for row in available() if row["name"] == name)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    assert "the library by pip packages; for an AAR javac, which is missing: install a JDK" in needs("android-arm64")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/javac").touch()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    clang = clang_of(tmp_path / "ndk")
    clang.parent.mkdir(parents=True)
    clang.touch()
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path / "ndk"))
    assert f"the library by the NDK in {tmp_path}/ndk; for an AAR javac, which is here" in needs("android-x86_64")
    assert "javac" not in needs("aarch64")


def test_an_ndk_that_is_named_and_not_there_is_missing(monkeypatch):
    monkeypatch.setenv("ANDROID_NDK_HOME", "/nowhere")
    rows = {row["name"]: row for row in available()}
    assert "ANDROID_NDK_HOME=/nowhere" in rows["android-arm64"]["needs"]
    assert (rows["android-arm64"]["compiles"], rows["android-arm64"]["available"]) == (False, False)
    assert rows["aarch64"]["compiles"]


@pytest.mark.parametrize("op", test_neon_assembly.CASES)
@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("android-cortex-a53", rf"{DOTS}|{MATRICES}"),
        ("android-cortex-a76", MATRICES),
        ("android-arm64+dotprod+i8mm", None),
    ],
)
def test_kernels_leave_x18_and_foreign_instructions_alone(op, name, foreign):
    """Android reserves x18; a Cortex-A53 dies of `sdot`."""
    target = resolve(name)
    text = assembly(select_case(test_neon_assembly.CASES[op], target), target)
    assert not re.search(r"\b[wx]18\b", text)
    assert foreign is None or not re.search(foreign, text)


@pytest.mark.parametrize(
    ("op", "name", "instruction"),
    [
        ("BinaryConv", "android-arm64", r"\tcnt\tv\d+\.16b"),
        ("BinaryWeightConv", "android-arm64", r"\ttbl\tv\d+\.16b"),
        ("QuantConv", "android-arm64", r"\tmla\tv\d+\.16b"),
        ("QuantConv", "android-arm64+dotprod", r"\tudot\tv\d+\.4s, v\d+\.16b, v\d+\.4b\[3\]"),
        ("QuantConv", "android-arm64+dotprod+i8mm", r"\tummla\tv\d+\.4s"),
        ("BinaryConv", "android-armv7+neon", r"\tvcnt\.8\tq"),
        ("BinaryWeightConv", "android-armv7+neon", r"\tvtbl\.8"),
    ],
)
def test_kernels_use_the_instructions_that_they_are_made_for(op, name, instruction):
    target = resolve(name)
    assert re.search(instruction, assembly(select_case(test_neon_assembly.CASES[op], target), target))


def test_kernels_for_any_x86_phone_keep_to_its_vectors():
    target = resolve("android-x86_64")
    text = assembly(select_case(test_assembly.CASES["BinaryWeightConv"], target), target)
    assert re.search(r"\tpshufb.*%xmm", text)
    assert not re.search(VECTORS_OF_32_BYTES, text)
