"""The code emitted for ARM: instructions that it must contain, others that it must not, and its inner loops' sizes.

Nothing is run here, so no emulator is needed.
"""

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from kernel_cases import Case, assembly, select_case

from edgedm.errors import ToolchainError
from edgedm.targets import resolve
from edgedm.targets.tuning import emitted_loops
from edgedm.targets.tuning.emitted_loops import inner_loop, loops

CHANNELS = 128
DOTS = r"\t[us]dot\s"
MATRICES = r"\t(us|[us])mmla\s"
PER = 1024


def conv(op, channels=CHANNELS, **more):
    ones, none = np.ones(CHANNELS, np.float32), np.zeros((1, 1, 1, 1), np.float32)
    attrs = {"strides": [1, 1], "pads": [1, 1, 1, 1], **more}
    end = [0 * ones, none, ones[:1]]
    if op == "QuantConv":
        codes, zero = np.zeros((1, 8, 8, channels), np.uint8), np.zeros((), np.uint8)
        top = 2 ** more.get("weight_bits", 4) - 1  # the family follows from the weights' largest code
        weight, zeros = np.full((CHANNELS, 3, 3, channels), top, np.uint8), np.full(CHANNELS, 7, np.uint8)
        return Case(op, [codes, zero, weight, zeros, ones, np.float32(1).reshape(()), *end], attrs, frozenset({0, 1}))
    weight = np.zeros((CHANNELS, 3, 3, channels // 8), np.uint8)
    if op == "BinaryConv":
        bits = np.zeros((1, 8, 8, channels // 8), np.uint8)
        return Case(op, [bits, weight, ones, none + 1, *end], {**attrs, "channels": channels})
    return Case(op, [np.zeros((1, 8, 8, channels), np.int8), weight, ones, *end], attrs)


def matmul():
    codes = np.zeros((1, 2, 32, 64), np.uint8)
    grids = [np.zeros(2, np.uint8), np.ones(2, np.float32)]
    return Case("QuantMatMul", [codes, *grids, codes, *grids], {"transposed": 1}, frozenset(range(6)))


def rows(op, **attrs):
    channels = [np.ones(CHANNELS, np.float32)] * (2 if op.startswith("Group") else 1)
    return Case(op, [np.zeros((1, 8, 8, CHANNELS), np.float32), *channels], attrs)


def quantizer():
    x = np.zeros((1, 8, 8, CHANNELS), np.float32)
    return Case("QuantizeUniform", [x, np.ones(1, np.float32), np.float32(1).reshape(()), np.zeros((), np.uint8)])


CASES = {op: conv(op) for op in ("BinaryConv", "BinaryWeightConv", "QuantConv")}
CASES |= {"QuantMatMul": matmul(), "PackBits": rows("PackBits"), "QuantizeUniform": quantizer()}
CASES |= {"GroupNormSilu": rows("GroupNormSilu", groups=8, epsilon=1e-5)}


def emitted(case, name):
    target = resolve(name)
    return assembly(select_case(case, target), target)


@pytest.mark.parametrize(
    ("op", "target", "instruction"),
    [
        ("BinaryConv", "aarch64", r"\tcnt\tv\d+\.16b"),
        ("BinaryConv", "aarch64+dotprod", r"\tcnt\tv\d+\.16b"),
        ("BinaryConv", "armv7+neon", r"\tvcnt\.8\tq"),
        ("BinaryWeightConv", "aarch64", r"\ttbl\tv\d+\.16b"),
        ("BinaryWeightConv", "aarch64", r"\tuaddw2\tv\d+\.8h"),
        ("BinaryWeightConv", "armv7+neon", r"\tvtbl\.8"),
        ("QuantConv", "aarch64", r"\tmla\tv\d+\.16b"),
        ("QuantConv", "aarch64", r"\tsadalp\tv\d+\.8h"),
        ("QuantConv", "aarch64+dotprod", r"\tudot\tv\d+\.4s, v\d+\.16b, v\d+\.4b\[3\]"),
        ("QuantConv", "aarch64+dotprod+i8mm", r"\tummla\tv\d+\.4s"),
        ("QuantConv", "armv7+neon", r"\tvmla\.i8\tq"),
        ("QuantMatMul", "aarch64", r"\tmla\tv\d+\.16b"),
        ("QuantMatMul", "aarch64+dotprod", r"\tudot\tv\d+\.4s"),
        ("PackBits", "aarch64", r"\tfcmge\tv\d+\.4s"),
        ("QuantizeUniform", "aarch64", r"\tfmla\tv\d+\.4s"),
        ("GroupNormSilu", "aarch64", r"\tfmla\tv\d+\.4s"),
    ],
)
def test_a_kernel_uses_the_instructions_that_it_is_made_for(op, target, instruction):
    assert re.search(instruction, emitted(CASES[op], target))


@pytest.mark.parametrize("op", CASES)
@pytest.mark.parametrize(
    ("target", "foreign"),
    [
        ("aarch64", f"{DOTS}|{MATRICES}"),
        ("cortex-a53", f"{DOTS}|{MATRICES}"),
        ("cortex-a72", f"{DOTS}|{MATRICES}"),
        ("aarch64+dotprod", MATRICES),
        ("cortex-a76", MATRICES),
    ],
)
def test_no_core_sees_an_instruction_that_it_lacks(op, target, foreign):
    assert not re.search(foreign, emitted(CASES[op], target))


@pytest.mark.parametrize("op", CASES)
def test_kernels_for_android_leave_the_register_x18_alone(op):
    """Android reserves it; for Linux LLVM takes it where it needs many registers."""
    linux = resolve("aarch64")
    android = replace(linux, base=replace(linux.base, triple="aarch64-none-linux-android24"))
    assert not re.search(r"\b[wx]18\b", assembly(select_case(CASES[op], android), android))


@pytest.mark.parametrize(
    ("layer", "target", "counted", "macs", "most"),
    [
        ({"op": "BinaryConv"}, "aarch64", "eor", 128, 24),
        ({"op": "BinaryConv"}, "aarch64+dotprod", "eor", 128, 24),
        ({"op": "BinaryWeightConv"}, "aarch64", "uaddw2", 256, 40),
        ({"op": "QuantConv"}, "aarch64", "mla", 32, 108),
        ({"op": "QuantConv"}, "aarch64+dotprod", "udot", 16, 74),
        ({"op": "QuantConv"}, "aarch64+dotprod+i8mm", "ummla", 32, 52),
        ({"op": "QuantConv", "bits": 8, "weight_bits": 8}, "aarch64", "umull2?", 8, 272),
        ({"op": "QuantConv", "bits": 8, "weight_bits": 4}, "aarch64", "um(ul|la)l2?", 8, 224),
        ({"op": "QuantConv", "bits": 8, "weight_bits": 8}, "aarch64+dotprod", "udot", 16, 64),
        ({"op": "QuantConv", "bits": 8, "weight_bits": 8}, "aarch64+dotprod+i8mm", "ummla", 32, 40),
    ],
)
def test_an_inner_loop_has_few_vector_instructions_and_spills_nothing(layer, target, counted, macs, most):
    """The most for 1,024 multiply-accumulates, of which each counted instruction stands for `macs`."""
    loop = inner_loop(emitted(conv(channels=256, **layer), target), counted)
    assert loop.vector * PER <= most * macs * loop.count(counted)
    assert loop.stack == 0


@pytest.mark.parametrize("op", ["PackBits", "QuantizeUniform"])
def test_activations_are_read_by_vectors(op):
    """A loop over a row compares four floats at a time, or divides them by fused multiply-adds."""
    text = emitted(CASES[op], "aarch64")
    decision, others = {"PackBits": ("fcmge", r"fcmge s\d"), "QuantizeUniform": ("fmla", r"fmadd|fdiv")}[op]
    loop = inner_loop(text, decision)
    assert loop.count(decision) >= 1
    assert not [each for each in loop.instructions if re.match(others, each)]


ASSEMBLY = """
f:
\tmov\tx0, #1
.LBB0_1:
\tldp\tq0, q1, [x1], #32
.LBB0_2:                                // a comment
\tldr\tq2, [sp, #16]
\tcnt\tv2.16b, v2.16b  // another
\tadd\tx1, x1, #1
\tb.ne\t.LBB0_2
\tcbnz\tx0, .LBB0_1
"""


def test_a_loop_is_what_jumps_back_to_its_own_label():
    (loop,) = loops(ASSEMBLY)
    assert loop.instructions == ("ldr q2, [sp, #16]", "cnt v2.16b, v2.16b", "add x1, x1, #1", "b.ne .LBB0_2")
    assert (loop.vector, loop.memory, loop.stack, loop.count("cnt")) == (1, 1, 1, 1)


def test_without_llvm_mca_its_package_is_named(monkeypatch):
    monkeypatch.setattr(emitted_loops.shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match="llvm-19"):
        emitted_loops.find_mca()


@pytest.mark.parametrize(("version", "found"), [("14.0.6", False), ("19.1.7", True), ("", False)])
def test_an_older_llvm_mca_is_none(monkeypatch, version, found):
    """Version 14 takes another core's description for the Neoverse N1, whose cycles the page tells."""
    said = f"LLVM (http://llvm.org/):\n  Debian LLVM version {version}\n"
    monkeypatch.setattr(emitted_loops.shutil, "which", lambda name: name if name == "llvm-mca" else None)
    monkeypatch.setattr(emitted_loops.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, said, ""))
    if found:
        assert emitted_loops.find_mca() == "llvm-mca"
    else:
        with pytest.raises(ToolchainError, match="version 19 or newer is missing"):
            emitted_loops.find_mca()


@pytest.mark.parametrize(("status", "output"), [(0, "Total Cycles:      2400\n"), (1, "")])
def test_cycles_are_those_of_a_round(monkeypatch, status, output):
    """llvm-mca repeats a block 200 times; a loop is handed over with its branch, whose label it must know."""
    given = []

    def run(command, **keywords):
        given.append((command, keywords["input"]))
        return subprocess.CompletedProcess(command, status, output, "unknown CPU")

    monkeypatch.setattr(emitted_loops.subprocess, "run", run)
    if status:
        with pytest.raises(ToolchainError, match="unknown CPU"):
            emitted_loops.cycles(["b.ne .LBB0_2"], "cortex-a72", "llvm-mca")
    else:
        assert emitted_loops.cycles(["b.ne .LBB0_2"], "cortex-a72", "llvm-mca") == 12
        assert given[0][1] == "again:\nb.ne again\n"
        assert "-mcpu=cortex-a72" in given[0][0]
