"""A bundle for Android: its library byte for byte as a phone sees it, its programs under an emulator, `run-on adb`."""

import os
import re
import subprocess

import capstone
import elsewhere
import numpy as np
import pytest
import tiny_model
from elftools.elf.elffile import ELFFile

from edgedm.android import elf_lint
from edgedm.android.abi import ABIS
from edgedm.android.linker import MERGED, toolchain_name
from edgedm.bundle import load
from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.lower import compile as compile_graph
from edgedm.runtime import ExecRunner, LocalRunner, open_runner
from edgedm.runtime.opening import require_native
from edgedm.runtime.remote import run_on
from edgedm.targets import command_for, resolve

pytestmark = pytest.mark.slow  # its bundle takes most of a minute to build

CLOSE = 1e-4  # of images in -1..1 after four steps of a model whose decisions no rounding flips here
ADB = """#!/bin/sh
[ "$1 $2 $3 $4" = "-s phone shell -T" ] || { echo "adb: device '$2' not found" >&2; exit 255; }
line=$(echo "$5" | sed "s,/data/local/tmp,$STAND_IN_ROOM,g; s,[^ ]*/bin/edgedm-sample,$STAND_IN_CPU &,")
exec sh -c "$line"
"""


def code(path):
    """The instructions of an ARM64 file, as text."""
    disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    disassembler.skipdata = True
    with open(path, "rb") as stream:
        text = ELFFile(stream).get_section_by_name(".text")
        data, address = text.data(), text["sh_addr"]
    return [f"{each.mnemonic} {each.op_str}" for each in disassembler.disasm(data, address)]


def self_test(bundle):
    program = [*command_for(resolve(load(bundle).manifest.target.name)), str(bundle / "bin/edgedm-sample")]
    return subprocess.run([*program, "--self-test"], capture_output=True, text=True, check=True).stdout


def test_the_whole_library_leaves_x18_and_what_a_cortex_a53_lacks_alone(arm64_bundle):
    """Not the kernels only: the runtime and what the compiler adds too."""
    lines = code(arm64_bundle / "lib/libedgedm.so")
    assert len(lines) > 5000
    assert sum(bool(re.match(r"cnt v\d+\.16b", line)) for line in lines) > 0
    assert not [line for line in lines if re.search(r"\b[wx]18\b", line)]
    assert not [line for line in lines if re.match(r"[su](dot|mmla) ", line)]


def test_the_linux_library_would_have_been_found_out(tmp_path):
    """x18 is there for anyone on Linux, and the compiler takes it."""
    compile_graph(tiny_model.folder() / "deploy.onnx", tmp_path / "model.bundle", target="aarch64", steps=10)
    assert [line for line in code(tmp_path / "model.bundle/lib/libedgedm.so") if re.search(r"\b[wx]18\b", line)]


def test_the_bundle_has_the_sources_of_its_library(arm64_bundle):
    manifest = load(arm64_bundle).manifest
    files = manifest.files
    assert manifest.toolchain["android"] == toolchain_name()
    assert {"src/android/jni.c", "src/android/compat.h", MERGED, "lib/libedgedm.so"} <= set(files)
    assert "src/android/jni.c" not in load(tiny_model.folder() / "model.bundle").manifest.files
    assert str(arm64_bundle.parent).encode() not in (arm64_bundle / MERGED).read_bytes()


def test_the_library_is_not_loaded_here(arm64_bundle):
    elsewhere.need_machine("android-arm64")
    with open_runner(arm64_bundle) as runner:
        assert isinstance(runner, ExecRunner)
        runner.prepare(4, "ddpm", label=1)
        drawn = runner.sample(2, 9)
    with LocalRunner(tiny_model.folder() / "model.bundle") as here:
        here.prepare(4, "ddpm", label=1)
        assert np.abs(here.sample(2, 9) - drawn).max() < CLOSE


def test_it_is_timed_on_a_phone_only(arm64_bundle):
    with pytest.raises(UnsupportedError, match=r"compiled for android-arm64.*edgedm run-on adb SERIAL"):
        require_native(load(arm64_bundle))


def test_the_program_for_adb_shell_passes_its_self_test(arm64_bundle):
    elsewhere.need_machine("android-arm64")
    assert "self-test passed" in self_test(arm64_bundle)


def test_run_on_adb_brings_the_figures_of_a_phone_back(arm64_bundle, tmp_path, monkeypatch):
    elsewhere.need_machine("android-arm64")
    (tmp_path / "room").mkdir()
    (tmp_path / "adb").write_text(ADB)
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_ROOM", str(tmp_path / "room"))
    monkeypatch.setenv("STAND_IN_CPU", " ".join(command_for(resolve("android-arm64"))))
    outcome = run_on("adb", "phone", arm64_bundle, threads=(1, 2), steps=3)
    assert outcome.ok
    assert outcome.details["target"] == "android-arm64"
    assert outcome.figures["self_test.steps"] == 3
    for count in (1, 2):
        times = [value for name, value in outcome.figures.items() if re.match(rf"step_ms\b.*\.t{count}$", name)]
        assert len(times) == 1
        assert times[0] > 0
    assert not list((tmp_path / "room").iterdir())


def test_a_library_that_android_would_refuse_is_never_written(tmp_path, monkeypatch):
    monkeypatch.setattr(elf_lint, "SYSTEM_LIBRARIES", ("libc.so",))
    with pytest.raises(ToolchainError, match=r"libedgedm\.so: Android would refuse it: it needs libm\.so"):
        compile_graph(
            tiny_model.folder() / "deploy.onnx",
            tmp_path / "model.bundle",
            target="android-arm64",
            steps=10,
            cache=False,
        )
    assert not list(tmp_path.iterdir())


def test_every_abi_builds_and_passes_its_self_test(android_bundles):
    for abi in ABIS:
        bundle = android_bundles[abi.name]
        elsewhere.need_machine(load(bundle).manifest.target.name)
        assert "self-test passed" in self_test(bundle)
        prefix = load(bundle).manifest.prefix
        demands = elf_lint.Demands(abi, "libedgedm.so", None, (prefix, *elf_lint.JAVA_EXPORTS))
        assert elf_lint.lint_library((bundle / "lib/libedgedm.so").read_bytes(), demands) == []


def test_a_cortex_a53_and_an_a76_share_one_library(tmp_path):
    """The better kernels run where the processor has `sdot`, and only there."""
    bundle = tmp_path / "model.bundle"
    compile_graph(tiny_model.folder() / "deploy.onnx", bundle, target="android-cortex-a53,android-cortex-a76", steps=10)
    elsewhere.need_machine("android-arm64")
    assert not [line for line in code(bundle / "lib/libedgedm.so") if re.search(r"\b[wx]18\b", line)]
    for cpu, variant in (("cortex-a53", "android-cortex-a53"), ("cortex-a76", "android-cortex-a76")):
        command = ["qemu-aarch64-static", "-cpu", cpu, str(bundle / "bin/edgedm-sample"), "--self-test"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"variant {variant}\n" in said
        assert "self-test passed" in said
