"""Products under an emulator, on machines that `target` does not stand for: dotprod, i8mm, ARMv7, RISC-V, wasm.

One emulated process runs all of a target's cases.
"""

from dataclasses import replace

import numpy as np
import pytest
import test_products as signs
import test_quant_products as uniform
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import Case, reference, run_kernels, select_case
from tools import need_emulator

from edgedm.targets import resolve
from edgedm.targets.kernels import bitserial_bytes

ONE = settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FAMILIES = {
    "aarch64+dotprod": ("bitserial-bytes", "lookup-bytes", "dot-udot", "dot-udot"),
    "aarch64+dotprod+i8mm": ("bitserial-bytes", "lookup-bytes", "dot-ummla", "dot-udot"),
    "armv7+neon": ("bitserial-bytes", "lookup-bytes", "dot-bytes", "dot-bytes"),
    "wasm32+simd128": ("bitserial-bytes", "lookup-swizzle", "lookup-swizzle", "dot-wasm-sums"),
    "riscv64": ("bitserial 2", "bitserial-planes", "bitserial-planes", "generic"),
}


@pytest.fixture(params=FAMILIES)
def machine(request):
    found = resolve(request.param)
    need_emulator(found)
    return found


@given(
    quant=st.lists(st.tuples(uniform.BITS, uniform.SHAPES), min_size=6, max_size=6),
    binary=st.lists(st.tuples(signs.OPS, signs.SHAPES), min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
@ONE
def test_convolutions_of_any_shape_are_exact(machine, quant, binary, seed):
    rng = np.random.default_rng(seed)
    products = [uniform.convolution(rng, bits=a, weight_bits=w, **shape) for (a, w), shape in quant]
    uniform.check(products, machine)
    signs.check([signs.convolution(rng, op, **shape) for op, shape in binary], machine)


def test_the_core_gets_its_families_and_they_are_exact(machine):
    """Tails of output channels and pixels, odd numbers of pixels in a tile, zero points at both ends."""
    rng = np.random.default_rng(0)
    same = ((3, 3), (1, 1), (1, 1, 1, 1))
    binary = [signs.convolution(rng, "BinaryConv", (5, 7), channels, 18, *same) for channels in (64, 128)]
    binary += [signs.convolution(rng, "BinaryWeightConv", (5, 7), 40, 18, *same)]
    binary += [signs.gemm(rng, op, (1,), 70, 21) for op in ("BinaryGemm", "BinaryWeightGemm")]
    quant = [
        uniform.convolution(rng, (5, 7), 40, 18, *same, 4, 4, zero=15, weight_zero=0),
        uniform.convolution(rng, (3, 3), 16, 9, (1, 1), (1, 1), (0,) * 4, 8, 8, zero=255, weight_zero=255),
        uniform.gemm(rng, (1,), 70, 21, 4, 4),
        uniform.gemm(rng, (13,), 33, 8, 8, 8),
    ]
    two = [uniform.matmul(rng, 2, 9, 33, 70, flag, *bits) for flag in (True, False) for bits in [(4, 4), (8, 8)]]
    families = [select_case(case, machine).family for case in (binary[0], binary[2], quant[0], two[0])]
    expected = FAMILIES[machine.name]
    assert all(found.startswith(name) for found, name in zip(families, expected, strict=True)), families
    signs.check(binary, machine)
    uniform.check([*quant, *two], machine)


@pytest.mark.parametrize("bits", [2, 3])
def test_codes_of_few_bits_are_added_up_in_bytes_for_longer(bits):
    """Extreme codes and signs, whose sums fill the bytes, and random ones; row lengths that parts do not divide."""
    machine = resolve("aarch64")
    need_emulator(machine)
    rng = np.random.default_rng(bits)
    cases = []
    for channels in (16 * 7, 16 * 20, 16 * 41):
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        for codes in (low, high, None):
            shape = (1, 3, 5, channels)
            x = rng.integers(low, high + 1, shape) if codes is None else np.full(shape, codes)
            weight = None if codes is None else np.full((5, 1, 1, channels // 8), 255, np.uint8)
            image = ((3, 5), channels, 5, (1, 1), (1, 1), (0,) * 4)
            cases.append(signs.convolution(rng, "BinaryWeightConv", *image, x=x.astype(np.int8), weight=weight))
    told = [Case(case.op, case.inputs, {**case.attrs, "code_bits": bits}, case.runtime) for case in cases]
    assert select_case(told[0], machine).family.startswith(f"lookup-bytes {bits}")
    for first in range(3):  # equal shapes share a kernel
        for case, (got,) in zip(cases[first::3], run_kernels(told[first::3], machine), strict=True):
            np.testing.assert_array_equal(got, reference(case)[0])


@pytest.mark.parametrize(("bits", "weight_bits"), [(2, 4), (4, 4), (4, 8), (8, 8)])
def test_sums_of_the_largest_codes_are_widened_in_time(bits, weight_bits):
    """WebAssembly's dot products, in 16 bits as long as they fit."""
    machine, rng = resolve("wasm32+simd128"), np.random.default_rng(0)
    need_emulator(machine)
    cases = []
    for channels in (144, 145 * 4, 656):
        border = ((3, 3), (1, 1), (1, 1, 1, 1))
        case = uniform.convolution(rng, (3, 5), channels, 9, *border, bits, weight_bits, zero=0, weight_zero=0)
        codes, zero, weight, *rest = case.inputs
        largest = [np.full_like(codes, 2**bits - 1), zero, np.full_like(weight, 2**weight_bits - 1), *rest]
        cases.append(replace(case, inputs=largest, family="dot"))
    uniform.check(cases, machine)


def test_counts_beyond_sixteen_bits_take_the_words_kernel():
    rng = np.random.default_rng(0)
    arguments = ((1, 2), 3, (1, 1), (1, 1), (0,) * 4)
    families = [
        select_case(signs.convolution(rng, "BinaryConv", arguments[0], channels, *arguments[1:]), resolve("aarch64"))
        for channels in (bitserial_bytes.MOST_CHANNELS, bitserial_bytes.MOST_CHANNELS + 64)
    ]
    assert [kernel.family.split()[0] for kernel in families] == ["bitserial-bytes", "bitserial"]
