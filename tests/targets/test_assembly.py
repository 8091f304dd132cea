"""What the compiler makes of the kernels: the instructions that their speed rests on."""

import re
from dataclasses import replace

import numpy as np
import pytest
from kernel_cases import Case, assembly, select_case

from edgedm.targets import resolve

FULL = "x86-64-v4+vnni+vbmi+vpopcntdq"


def conv(op):
    rng = np.random.default_rng(0)
    ones, none = np.ones(64, np.float32), np.zeros((1, 1, 1, 1), np.float32)
    weight = rng.integers(0, 256, (64, 3, 3, 8)).astype(np.uint8)
    attrs = {"strides": [1, 1], "pads": [1, 1, 1, 1]}
    end = [0 * ones, none, np.ones(1, np.float32)]
    if op == "BinaryConv":
        bits = np.zeros((1, 16, 16, 8), np.uint8)
        return Case(op, [bits, weight, ones, none + 1, *end], {**attrs, "channels": 64})
    return Case(op, [np.zeros((1, 16, 16, 64), np.int8), weight, ones, *end], attrs)


def activation(op):
    channels = [np.ones(64, np.float32)] * (1 if op == "PackBits" else 2)
    attrs = {} if op == "PackBits" else {"groups": 8, "epsilon": 1e-5}
    return Case(op, [np.zeros((1, 16, 16, 64), np.float32), *channels], attrs)


def uniform(op):
    """4-bit codes, or their products."""
    codes, number = np.zeros((1, 16, 16, 64), np.uint8), np.zeros((), np.uint8)
    if op == "QuantizeUniform":
        step = np.float32(1).reshape(())
        return Case(op, [codes.astype(np.float32), np.ones(1, np.float32), step, number], runtime=frozenset({0, 2, 3}))
    if op == "QuantMatMul":
        heads = [np.zeros(1, np.uint8), np.ones(1, np.float32)]
        return Case(op, [codes, *(np.tile(x, 16) for x in heads), codes, *(np.tile(x, 16) for x in heads)])
    weight, zeros = np.full((64, 3, 2, 64), 15, np.uint8), np.full(64, 7, np.uint8)  # of 3x3, VNNI gets Winograd's
    terms = [np.full(64, 2, np.float32), np.float32(2), np.ones(64, np.float32), np.zeros(1, np.float32)]
    operands = [codes, number, weight, zeros, *(np.asarray(x) for x in terms), np.ones(1, np.float32)]
    return Case(op, operands, {"strides": [1, 1], "pads": [1, 0, 1, 1]}, frozenset({0, 1, 5}))


def gemm(pixels, bits):
    """A product of `bits`-bit codes whose tiles hold all of `pixels`."""
    codes, number = np.zeros((pixels, 512), np.uint8), np.zeros((), np.uint8)
    weight, zeros = np.full((512, 512), 2**bits - 1, np.uint8), np.full(512, 7, np.uint8)
    ones, none = np.ones(512, np.float32), np.zeros((1, 1), np.float32)
    operands = [codes, number, weight, zeros, ones, np.float32(1).reshape(()), 0 * ones, none, ones[:1]]
    return Case("QuantGemm", operands, {"bits": bits, "weight_bits": bits}, frozenset({0, 1}))


# by the runtime, by C, or by the compiler: ARMv7 need not divide integers
SUPPLIED = r"TVM|__TVM|__tvm|memset|memcpy|.*_compute_|__aeabi_idiv"
MEANT = {"BinaryWeightConv": "lookup", "QuantConv": "dot"}  # families, whichever is fastest for so small a shape
CASES = {op: conv(op) for op in ("BinaryConv", "BinaryWeightConv")}
CASES |= {op: activation(op) for op in ("PackBits", "GroupNormSilu")}
CASES |= {op: uniform(op) for op in ("QuantConv", "QuantMatMul", "QuantizeUniform")}


@pytest.mark.parametrize(
    ("op", "target", "instructions"),
    [
        ("BinaryConv", FULL, r"vpopcntq.*%zmm"),
        ("BinaryConv", "x86-64-v3", r"vpshufb.*%ymm"),
        ("BinaryWeightConv", FULL, r"vpermb.*%zmm|vpdpbusd.*%zmm"),
        ("BinaryWeightConv", "x86-64-v4", r"vpshufb.*%zmm"),
        ("BinaryWeightConv", "x86-64-v3", r"vpshufb.*%ymm"),
        ("BinaryWeightConv", "x86-64-v2", r"\tpshufb.*%xmm"),
        ("QuantConv", FULL, r"vpdpbusd.*%zmm"),
        ("QuantConv", "x86-64-v4", r"vpmaddubsw.*%zmm"),
        ("QuantConv", "x86-64-v3+avxvnni", r"\{vex\}\s+vpdpbusd.*%ymm"),
        ("QuantConv", "x86-64-v3", r"vpmaddubsw.*%ymm"),
        ("QuantConv", "x86-64-v2", r"\tpmaddubsw.*%xmm"),
        ("QuantMatMul", FULL, r"vpdpbusd.*%zmm"),
        ("QuantizeUniform", FULL, r"vfn?madd\w+ps.*%zmm"),
        ("QuantizeUniform", "x86-64-v3", r"vfn?madd\w+ps.*%ymm"),
        ("QuantizeUniform", "x86-64-v2", r"\tdivps.*%xmm"),
        ("PackBits", FULL, r"vcmp\w+ps.*%k"),
        ("PackBits", "x86-64-v3", r"v(p|)movmsk"),
        ("PackBits", "x86-64", r"p?movmsk"),
        ("GroupNormSilu", FULL, r"vdivps.*%zmm"),
        ("GroupNormSilu", "x86-64-v3", r"vdivps.*%ymm"),
    ],
)
def test_a_kernel_uses_the_instructions_that_it_is_made_for(op, target, instructions):
    resolved = resolve(target)
    text = assembly(select_case(replace(CASES[op], family=MEANT.get(op)), resolved), resolved)
    assert re.search(instructions, text)


@pytest.mark.parametrize("op", CASES)
def test_a_lower_level_never_sees_wider_registers(op):
    for level, foreign in [
        ("x86-64-v3", r"%zmm|%k[1-7]\b|popcntq.*%ymm"),
        ("x86-64-v2", r"%ymm|%zmm"),
        ("x86-64", r"%ymm|\tpshufb|\tpmaddubsw"),
    ]:
        resolved = resolve(level)
        assert not re.search(foreign, assembly(select_case(CASES[op], resolved), resolved)), level


def test_the_accumulators_stay_in_registers():
    """Nothing is stored to the stack inside the innermost loop of a binary convolution."""
    resolved = resolve(FULL)
    text = assembly(select_case(CASES["BinaryConv"], resolved), resolved)
    blocks = re.split(r"^\.LBB\w+:", text, flags=re.MULTILINE)
    inner = max(blocks, key=lambda each: each.count("vpopcntq"))
    assert inner.count("vpopcntq") >= 16
    assert not re.search(r"vmov\w+\s+%zmm\d+, .*%rsp", inner)


@pytest.mark.parametrize(
    ("target", "instruction", "count", "others"),
    [
        (FULL, "vpdpbusd", 32, r"%zmm\d+, .*\(%rsp|vpsadbw"),
        ("x86-64-v3+avxvnni", "vpdpbusd", 16, r"%ymm\d+, .*\(%rsp"),
        ("x86-64-v4", "vpmaddubsw", 16, r"%zmm\d+, .*\(%rsp"),
        ("x86-64-v3", "vpmaddubsw", 16, r"%ymm\d+, .*\(%rsp"),
    ],
)
def test_a_step_of_a_uniform_product_is_its_products_and_little_else(target, instruction, count, others):
    """All of a tile's products for 8 channels, a load for two vectors of weights, no accumulator that leaves."""
    resolved = resolve(target)
    text = assembly(select_case(replace(CASES["QuantConv"], family="dot"), resolved), resolved)
    inner = max(re.split(r"^\.LBB\w+:", text, flags=re.MULTILINE), key=lambda each: each.count(instruction))
    inner = re.split(r"\tj\w+", inner)[0]  # what follows the jump back is no part of the loop
    lines = [line for line in inner.splitlines() if line.startswith("\t")]
    products = sum(instruction in line for line in lines)
    assert products % count == 0
    assert products >= count
    assert not re.search(others, inner)
    words = sum("vpbroadcast" in line for line in lines)
    sums = sum("vpaddw" in line for line in lines)
    assert len(lines) - products - words - sums <= 14 * (products // count)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("target", "pixels"),
    [*((FULL, pixels) for pixels in range(1, 9)), *(("x86-64-v3+avxvnni", pixels) for pixels in range(1, 5))],
)
def test_tiles_of_few_pixels_fit_the_registers(target, pixels, bits):
    resolved = resolve(target)
    text = assembly(select_case(replace(gemm(pixels, bits), family="dot"), resolved), resolved)
    inner = max(re.split(r"^\.LBB\w+:", text, flags=re.MULTILINE), key=lambda each: each.count("vpdpbusd"))
    inner = re.split(r"\tj\w+", inner)[0]
    assert inner.count("vpdpbusd") >= 2 * pixels
    stack = [line for line in inner.splitlines() if re.search(r"\(%r[sb]p", line)]
    # 2 x 4 in 16 registers: vectors of weights wait there for their high nibbles, stored and loaded once in a step
    waiting = 4 if (target, pixels, bits) == ("x86-64-v3+avxvnni", 2, 4) else 0
    assert len(stack) <= 2 * waiting, stack


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "aarch64", "armv7+neon", "riscv64"])
def test_no_kernel_calls_a_library_function(target):
    """The runtime supplies memory and threads, no libm."""
    resolved = resolve(target)
    for case in CASES.values():
        text = assembly(select_case(case, resolved), resolved)
        calls = set(re.findall(r"\t(?:call\w*|bl)\s+([A-Za-z_]\w*)", text))
        assert not {name for name in calls if not re.match(SUPPLIED, name)}, calls


@pytest.mark.parametrize("op", ["GroupNormSilu", "Softmax"])
def test_small_buffers_of_a_parallel_loop_stay_on_the_stack(op):
    """A call into the runtime for each of them, in every round, took longer than the work."""
    x = np.zeros((1, 32, 32, 128), np.float32)
    channels = [np.ones(128, np.float32)] * 2
    case = Case(op, [x]) if op == "Softmax" else Case(op, [x, *channels], {"groups": 8, "epsilon": 1e-5})
    target = resolve(FULL)
    text = assembly(select_case(case, target), target)
    assert "parallel_lambda" in text
    assert not re.search(r"__TVMBackendAllocWorkspace@", text)
