"""Names of targets, detection, what runs them and what the list says."""

import re
import shutil

import pytest
import tvm_ffi

from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.targets import arm, available, command_for, resolve, running, runs_natively, targets, x86
from edgedm.targets.target import CORES

FLAGS_V3 = "fpu sse2 ssse3 sse4_1 sse4_2 popcnt avx avx2 fma abm movbe bmi1 bmi2 f16c"
FLAGS_V4 = f"{FLAGS_V3} avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni avx512_vpopcntdq avx512vbmi"


detect = x86.detect
arm_detect = arm.detect


def machine(monkeypatch, flags):
    here = detect(f"flags : {flags}\n")
    monkeypatch.setattr(x86, "detect", lambda: here)


def test_host_is_the_best_level_with_its_features(monkeypatch):
    monkeypatch.delenv("EDGEDM_FEATURES", raising=False)
    machine(monkeypatch, FLAGS_V4)
    assert resolve("host").name == "x86-64-v4+vnni+vbmi+vpopcntdq"
    machine(monkeypatch, FLAGS_V3)
    assert resolve("host").name == "x86-64-v3"
    machine(monkeypatch, FLAGS_V3 + " avx_vnni")
    assert resolve("host").name == "x86-64-v3+avxvnni"


def test_the_environment_makes_host_mean_less(monkeypatch):
    machine(monkeypatch, FLAGS_V4)
    monkeypatch.setenv("EDGEDM_FEATURES", "x86-64-v3")
    assert resolve("host") == resolve("x86-64-v3")


def test_the_environment_cannot_make_host_mean_more(monkeypatch):
    machine(monkeypatch, FLAGS_V3)
    monkeypatch.setenv("EDGEDM_FEATURES", "x86-64-v4+vnni")
    with pytest.raises(ToolchainError, match="lacks avx512bw"):
        resolve("host")


def test_a_machine_has_only_what_all_its_processors_have():
    assert "avx2" not in x86.detect("flags : sse2 avx2\nflags : sse2\n")


def test_a_machine_that_is_no_x86_has_no_host(monkeypatch):
    monkeypatch.setattr(x86, "detect", frozenset)
    monkeypatch.setattr(arm, "detect", frozenset)
    with pytest.raises(UnsupportedError, match="name its target"):
        resolve("host")
    assert targets().ok


def test_host_on_a_board_is_what_all_its_processors_have(monkeypatch):
    monkeypatch.delenv("EDGEDM_FEATURES", raising=False)
    monkeypatch.setattr(x86, "detect", frozenset)
    for features, name in (("fp asimd asimddp", "aarch64+dotprod"), ("fp asimd", "aarch64")):
        here = arm_detect(f"Features : {features} i8mm\nFeatures : {features}\n")
        monkeypatch.setattr(arm, "detect", lambda here=here: here)
        assert resolve("host").name == name
        assert runs_natively(resolve("host"))
        assert not runs_natively(resolve("aarch64+dotprod+i8mm"))


@pytest.mark.parametrize("name", ["z80", "x86-64-v3+sse9", "x86-64-v9", "", "aarch64+vnni", "riscv64+v"])
def test_an_unknown_name_says_what_is_known(name):
    with pytest.raises(UnsupportedError, match=r"x86-64-v3|avxvnni|dotprod|none"):
        resolve(name)


def test_a_level_whose_kernels_need_a_feature_says_so():
    with pytest.raises(UnsupportedError, match=r"say armv7\+neon"):
        resolve("armv7")


@pytest.mark.parametrize(
    ("name", "isa", "features"),
    [
        ("aarch64", "aarch64", {"neon"}),
        ("aarch64+dotprod", "aarch64", {"neon", "dotprod"}),
        ("aarch64+i8mm", "aarch64", {"neon", "dotprod", "i8mm"}),
        ("cortex-a53", "aarch64", {"neon"}),
        ("cortex-a76", "aarch64", {"neon", "dotprod"}),
        ("apple-m1", "aarch64", {"neon", "dotprod"}),
        ("armv7+neon", "arm", {"neon"}),
        ("riscv64", "riscv64", set()),
        ("wasm32+simd128", "wasm32", {"simd128"}),
    ],
)
def test_a_name_means_an_instruction_set_with_features(name, isa, features):
    target = resolve(name)
    assert (target.isa, target.features, target.vector_bytes) == (isa, features, 16)
    attributes = {str(each) for each in target.tvm().attrs["mattr"]}
    assert {f"+{feature}" for feature in features} <= attributes
    assert "+i8mm" not in attributes or "i8mm" in features


def test_a_core_is_a_level_with_features_under_its_own_schedule():
    core, plain = resolve("cortex-a76"), resolve("aarch64+dotprod")
    assert core.base == plain.base
    assert core.features == plain.features
    assert str(core.tvm().attrs["mcpu"]) == "cortex-a76"


# What LLVM calls the instructions of a level, which edgedm calls otherwise or which no code without them does.
SPELT = {"lzcnt": "lzcnt", "bmi1": "bmi", "bmi2": "bmi2", "vnni": "avx512vnni", "vbmi": "avx512vbmi"}
SPELT |= {"vpopcntdq": "avx512vpopcntdq", "sse2": "sse2"}
OF_EVERY = {"x86": {"64bit", "64bit-mode", "cmov", "cx8", "fxsr", "mmx", "sse", "x87"}, "aarch64": {"fp-armv8"}}
OF_V2 = {"sse3", "cx16", "sahf", "crc32"}  # of the psABI's second level, besides what edgedm names
OF_V3 = {"xsave"}
# They choose between instructions that all have.
TUNING = re.compile(
    r"a\d+|cortex-x1|apple-a14|(fuse|fast|slow|no|prefer|idivq|idivl|macrofusion|tuning|zcz|zcm|use|arith|cmp|balance)-.*"
    r"|addr-lsl-.*|alu-lsl-.*|.*-select-.*|.*-select-opt|aggressive-fma|alternate-sextload-.*|max-interleave-.*"
    r"|disable-latency-.*|store-pair-suppress|predictable-.*|false-deps-.*|allow-light-.*|vzeroupper|nopl|evex512|.*fusion"
)


@pytest.mark.parametrize("name", [*CORES, *arm.COMBINATIONS[:3], *x86.COMBINATIONS])
def test_a_target_is_compiled_with_the_instructions_that_its_machine_is_asked_for_and_no_others(name):
    """Otherwise a processor that has its `needs` would be given code that it cannot execute."""
    target = resolve(name)
    features = tvm_ffi.get_global_func("target.llvm_get_cpu_features")(target.tvm())
    used = {str(each) for each in features if not TUNING.fullmatch(str(each))}
    asked = {SPELT.get(each, each) for each in target.features} | OF_EVERY[target.isa]
    asked |= OF_V2 if "popcnt" in target.features else set()
    asked |= OF_V3 if "avx2" in target.features else set()
    assert used <= asked
    assert {SPELT.get(each, each) for each in target.features} <= used


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("aarch64", "qemu-aarch64-static -cpu cortex-a53"),
        ("aarch64+dotprod", "qemu-aarch64-static -cpu cortex-a76"),
        ("aarch64+dotprod+i8mm", "qemu-aarch64-static -cpu max"),
        ("armv7+neon", "qemu-arm-static -cpu cortex-a7"),
        ("riscv64", "qemu-riscv64-static -cpu rv64"),
    ],
)
def test_an_emulator_imitates_the_least_cpu_that_has_the_features(monkeypatch, name, command):
    machine(monkeypatch, FLAGS_V3)
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}")
    assert " ".join(command_for(resolve(name))) == command


def test_without_an_emulator_it_says_which_one_and_how_to_get_it(monkeypatch):
    machine(monkeypatch, FLAGS_V3)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(ToolchainError, match=r"qemu-arm-static .* qemu-user-static; scripts/tools.sh"):
        command_for(resolve("armv7+neon"))
    with pytest.raises(ToolchainError, match="lacks avx512bw"):
        command_for(resolve("x86-64-v4"))
    assert command_for(resolve("x86-64-v3")) == ()


def test_the_features_of_a_name_come_in_one_order():
    assert resolve("x86-64-v4+vpopcntdq+vnni").name == "x86-64-v4+vnni+vpopcntdq"


def test_the_list_names_every_target_and_what_it_needs(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    rows = {row["name"]: row for row in available()}
    assert rows["x86-64"]["available"] == bool(x86.detect())
    assert {"aarch64", "aarch64+dotprod", "aarch64+dotprod+i8mm", "armv7+neon", "riscv64", "cortex-x1"} <= set(rows)
    if not arm.detect():
        assert not rows["aarch64"]["available"]
        assert "qemu-aarch64-static is missing (Debian's package qemu-user-static; " in rows["aarch64"]["needs"]
        assert rows["aarch64"]["compiles"]
    assert targets().ok


def test_the_list_says_what_is_missing_where_nothing_compiles(monkeypatch):
    monkeypatch.setattr(running, "_COMPILERS", ("tvm", "no_such_compiler"))
    rows = available()
    assert not any(row["available"] or row["compiles"] for row in rows)
    assert all(row["needs"].startswith("to compile for it, pip install 'edgedm[compile]'; ") for row in rows)
