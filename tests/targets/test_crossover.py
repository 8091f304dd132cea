"""Selection follows the measured table, and its rules for what was not measured."""

import numpy as np
import pytest
import test_quant_products as uniform
from kernel_cases import select_case

from edgedm.errors import InvalidModelError
from edgedm.targets import resolve
from edgedm.targets.kernels.product_families import able
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.tuning import crossover
from edgedm.targets.tuning.crossover import BITSERIAL, DOT, GENERIC, LOOKUP, Crossover, fastest, shape_name

LARGE = Convolution(16, 16, 256, 256, (3, 3), (1, 1), (1, 1, 1, 1))
SMALL = Convolution(1, 1, 64, 64)
LEVELS = ("", "-v2", "-v3", "-v3+avxvnni", "-v4", "-v4+vnni", "-v4+vnni+vbmi+vpopcntdq")
ISAS = {f"x86-64{level}" for level in LEVELS}
ALL = (BITSERIAL, LOOKUP, DOT, GENERIC)


@pytest.fixture
def measured(monkeypatch):
    """Let selection follow another table."""

    def use(gmacs):
        table = Crossover(machine="test", gmacs=gmacs, limits={})
        monkeypatch.setattr(crossover, "table", lambda: table)

    return use


def speeds(bitserial, lookup, dot):
    return {BITSERIAL: bitserial, LOOKUP: lookup, DOT: dot}


def test_the_fastest_family_of_the_nearest_shape_is_chosen(measured):
    both = {shape_name(LARGE): speeds(1, 3, 2), shape_name(SMALL): speeds(1, 2, 3)}
    measured({"x86-64-v3": {"W2A4": both}})
    target = resolve("x86-64-v3")
    assert fastest(target, 2, 4, LARGE, ALL) == LOOKUP
    assert fastest(target, 2, 4, Convolution(8, 8, 512, 512, (3, 3)), ALL) == LOOKUP
    assert fastest(target, 2, 4, SMALL, ALL) == DOT
    assert fastest(target, 2, 4, LARGE, (BITSERIAL, DOT)) == DOT


@pytest.mark.parametrize("winner", [BITSERIAL, LOOKUP, DOT])
def test_a_kernel_is_of_the_family_that_the_table_favours(measured, winner):
    name = shape_name(Convolution(4, 4, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1)))
    measured({"x86-64-v3": {"W2A4": {name: {**speeds(1, 1, 1), winner: 9}}}})
    case = uniform.convolution(np.random.default_rng(0), (4, 4), 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), 4, 2)
    assert select_case(case, resolve("x86-64-v3")).family.startswith(winner)


def test_a_family_is_as_fast_as_where_it_has_the_same_instructions(measured):
    """Popcounts of a set that was not measured are those of another with VPOPCNTDQ, its dot products those of v4."""
    name = shape_name(LARGE)
    full = "x86-64-v4+vnni+vbmi+vpopcntdq"
    measured({"x86-64-v4": {"W1A2": {name: speeds(1, 3, 4)}}, full: {"W1A2": {name: speeds(5, 9, 9)}}})
    assert fastest(resolve("x86-64-v4+vpopcntdq"), 1, 2, LARGE, ALL) == BITSERIAL
    assert fastest(resolve("x86-64-v4"), 1, 2, LARGE, ALL) == DOT


def test_winograds_figures_stand_for_what_it_serves(measured):
    """The 3x3 kernels' dot products were Winograd's; a stride of 2 has plain ones, as 1x1 kernels do."""
    flat = shape_name(Convolution(16, 16, 256, 256))
    measured({"x86-64-v4+vnni": {"W2A4": {shape_name(LARGE): speeds(1, 3, 4), flat: speeds(1, 3, 2)}}})
    target = resolve("x86-64-v4+vnni")
    assert fastest(target, 2, 4, LARGE, ALL, winograd=True) == DOT
    assert fastest(target, 2, 4, LARGE, ALL) == LOOKUP


def test_widths_between_measured_ones_are_taken_as_the_next_wider(measured):
    name = shape_name(LARGE)
    measured({"x86-64-v3": {"W2A4": {name: speeds(1, 3, 2)}, "W4A4": {name: speeds(1, 2, 3)}}})
    target = resolve("x86-64-v3")
    assert fastest(target, 2, 3, LARGE, ALL) == LOOKUP
    assert fastest(target, 3, 4, LARGE, ALL) == DOT


def test_without_measurements_instructions_decide(measured):
    measured({})
    target = resolve("x86-64-v3")
    assert fastest(target, 1, 1, LARGE, (BITSERIAL, LOOKUP)) == BITSERIAL
    assert fastest(target, 2, 4, LARGE, ALL) == LOOKUP
    assert fastest(target, 4, 4, LARGE, ALL) == DOT
    assert fastest(target, 8, 8, LARGE, (DOT, GENERIC)) == DOT
    assert fastest(resolve("aarch64"), 2, 4, LARGE, ALL) == LOOKUP
    assert fastest(resolve("aarch64+dotprod"), 2, 4, LARGE, ALL) == DOT


def test_the_committed_table_covers_every_family_of_every_instruction_set():
    table = crossover.table()
    assert set(table.gmacs) == ISAS
    for isa, pairs in table.gmacs.items():
        assert set(pairs) == {"W1A1", "W1A2", "W1A4", "W2A2", "W2A4", "W4A4"}
        for pair, shapes in pairs.items():
            families = set(able(resolve(isa), int(pair[1]), int(pair[3])))
            for found in shapes.values():
                assert families - {GENERIC} <= set(found) <= families


def test_a_table_with_an_unknown_name_is_refused(measured):
    measured({"x86-64-v3": {"W2": {shape_name(LARGE): speeds(1, 2, 3)}}})
    with pytest.raises(InvalidModelError, match=r"widths 'W2'"):
        fastest(resolve("x86-64-v3"), 2, 4, LARGE, ALL)
    measured({"x87": {}})
    with pytest.raises(InvalidModelError, match="x87"):
        fastest(resolve("x86-64-v3"), 2, 4, LARGE, ALL)
