"""QuantizeUniform, QuantizeHeads, GroupNormSiluQuantizeUniform against their ONNX functions, codes equal."""

import numpy as np
import pytest
from kernel_cases import Case, launches, reference, run_kernels, runs_on_threads, select_case

from edgedm.errors import InvalidModelError
from edgedm.targets import resolve

SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)


def rows(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def uniform(x, divisor, step, zero, bits=4):
    inputs = [x, np.float32(divisor).reshape(-1), np.array(step, np.float32), np.array(zero, np.uint8)]
    return Case("QuantizeUniform", inputs, {"bits": bits}, frozenset({0, 2, 3}))


@pytest.mark.parametrize(("bits", "zero"), [(4, 0), (4, 7), (4, 15), (8, 0), (8, 255), (2, 3), (6, 20)])
def test_codes_equal_the_function_for_ties_and_special_values(target, bits, zero):
    rng = np.random.default_rng(bits)
    halves = (np.arange(-80, 81) / 2).astype(np.float32) * np.float32(0.3)
    x = np.concatenate([halves, SPECIAL, rows(rng, 411) * 20]).astype(np.float32)
    divisors = np.abs(rows(rng, 83)) + np.float32(0.1)
    cases = [uniform(x[None], 1.0, 0.3, zero, bits), uniform(x[:, None], 1.7, -0.3, zero, bits)]
    cases += [uniform(x.reshape(7, 83), divisors, 0.21, zero, bits), uniform(x.reshape(1, 7, 83), -1.0, 2.0, zero)]
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        np.testing.assert_array_equal(got, reference(case)[0])


def test_each_head_has_its_own_grid(target):
    rng = np.random.default_rng(1)
    cases = []
    for heads, tokens, size in [(1, 5, 16), (3, 7, 32), (4, 1, 21)]:
        x = rows(rng, 1, heads, tokens, size)
        x[0, :, 0, :9] = SPECIAL
        step, zero = rng.uniform(0.1, 0.5, heads).astype(np.float32), rng.integers(0, 16, heads).astype(np.uint8)
        cases.append(Case("QuantizeHeads", [x, step, zero], {"bits": 4}, frozenset({0, 1, 2})))
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        np.testing.assert_array_equal(got, reference(case)[0])


def test_codes_next_to_every_bound_of_any_step(target):
    """Where a quotient that is not rounded as a division is moves a code: some floats at (k + 1/2) step, both signs."""
    rng = np.random.default_rng(3)
    edges = [1.0, np.nextafter(2, 1), 1 + 2**-23, 2.0**-149, 1e-40, 2.0**-126, 3.4e38, -0.7]
    factors = [sign * edge for sign in (-1, 1) for edge in (1 - 2**-24, 1, 1 + 2**-23)]
    limits = [2.0**power * factor for power in (-100, 100) for factor in factors]
    drawn = rng.uniform(1, 2, 200) * np.exp2(rng.integers(-126, 127, 200))
    step = np.concatenate([edges, limits, drawn, rng.uniform(1, 2, 100)]).astype(np.float32)
    with np.errstate(over="ignore"):
        bounds = np.outer(step.astype(np.float64), np.arange(-129, 129) + 0.5).astype(np.float32)
    below, above = (np.nextafter(bounds, np.float32(way)) for way in (-np.inf, np.inf))
    beyond = [np.nextafter(below, np.float32(-np.inf)), np.nextafter(above, np.float32(np.inf))]
    x = np.stack([bounds, below, above, *beyond], 1)[None]
    case = Case("QuantizeHeads", [x, step, np.full(len(step), 128, np.uint8)], {"bits": 8}, frozenset({0, 1, 2}))
    np.testing.assert_array_equal(run_kernels([case], target)[0][0], reference(case)[0])


def test_codes_of_a_norm_are_the_codes_of_the_norm_that_is_written(target):
    """GroupNormSilu and GroupNormSiluQuantizeUniform compute the same y, so the codes must follow from it."""
    rng = np.random.default_rng(2)
    cases = []
    small = [((1, 4, 4, 64), 8, 4), ((1, 3, 7, 40), 4, 8), ((1, 2, 2, 70), 7, 4)]
    large = [((1, 13, 27, 70), 7, 4), ((1, 5, 3360), 32, 8)]  # rows in unequal parts, fewer rows than parts
    for shape, groups, bits in small + large:
        channels = shape[-1]
        norm = [rows(rng, *shape) * 3 + 5, rows(rng, channels), rows(rng, channels)]
        attrs = {"groups": groups, "epsilon": 1e-5}
        for divisor in (np.ones(1, np.float32), np.abs(rows(rng, channels)) + np.float32(0.2)):
            grid = [divisor, np.array(0.17, np.float32), np.array(3, np.uint8)]
            attributes = {**attrs, "bits": bits}
            op = "GroupNormSiluQuantizeUniform"
            cases.append(Case(op, norm + grid, attributes, frozenset({0, 4, 5})))
            cases.append(Case("GroupNormSilu", norm, attrs))
    shared = cases[4 * len(small) :: 2]
    assert launches(shared, target) == 2 * len(shared)
    results = run_kernels(cases, target)
    for index in range(0, len(cases), 2):
        (codes,), (y,) = results[index : index + 2]
        expected = reference(
            Case("QuantizeUniform", [y, *cases[index].inputs[3:]], {"bits": cases[index].attrs["bits"]})
        )
        np.testing.assert_array_equal(codes, expected[0])


def test_large_tensors_use_all_threads_and_agree(target):
    rng = np.random.default_rng(3)
    x = rows(rng, 1, 64, 64, 128)
    cases = [uniform(x, 1.0, 0.3, 7), uniform(x, np.abs(rows(rng, 128)) + np.float32(0.5), 0.3, 7)]
    assert all(runs_on_threads(case, target) for case in cases)
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        np.testing.assert_array_equal(got, reference(case)[0])


def test_a_divisor_of_one_is_no_parameter():
    case = uniform(rows(np.random.default_rng(4), 1, 8), 1.0, 0.3, 0)
    assert select_case(case, resolve("x86-64")).dropped == {1}


def test_grids_that_do_not_fit_are_refused():
    x = rows(np.random.default_rng(5), 1, 8)
    here = resolve("x86-64")
    with pytest.raises(InvalidModelError, match="divisor: expected 1 or 8"):
        select_case(uniform(x, np.ones(3), 0.3, 0), here)
    with pytest.raises(InvalidModelError, match="step: expected 1"):
        select_case(uniform(x, 1.0, [0.3, 0.1], 0), here)
    for bits in (1, 9):
        with pytest.raises(InvalidModelError, match=rf"bits: expected 2\.\.8, got {bits}"):
            select_case(uniform(x, 1.0, 0.3, 0, bits=bits), here)
    with pytest.raises(InvalidModelError, match="expected \\[1, H, T, D\\]"):
        select_case(Case("QuantizeHeads", [x, np.ones(1, np.float32), np.zeros(1, np.uint8)]), here)


@pytest.mark.parametrize("step", [0.0, -0.0, np.nan, np.inf])
@pytest.mark.parametrize("op", ["QuantizeCodes", "QuantizeUniform", "QuantizeHeads", "GroupNormSiluQuantize"])
def test_a_constant_step_that_divides_nothing_is_refused(op, step):
    x, ones = np.ones((1, 1, 1, 4), np.float32), np.ones(4, np.float32)
    one, zero = np.full(1, step, np.float32), np.zeros(1, np.uint8)
    operands = {
        "QuantizeCodes": [x, one.reshape(())],
        "QuantizeUniform": [x, np.ones(1, np.float32), one.reshape(()), zero.reshape(())],
        "QuantizeHeads": [x, one, zero],
        "GroupNormSiluQuantize": [x, ones, ones, one.reshape(())],
    }
    attributes = {"groups": 2, "epsilon": 1e-5} if op.startswith("GroupNorm") else {}
    with pytest.raises(InvalidModelError, match=rf"{op}: step: expected finite numbers other than 0"):
        select_case(Case(op, operands[op], attributes), resolve("x86-64-v3"))
