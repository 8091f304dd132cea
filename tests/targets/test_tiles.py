from hypothesis import given
from hypothesis import strategies as st

from edgedm.targets.kernels.builder import FEWEST_UNITS
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.tiles import L1_BYTES, unit_rows

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 200_000), st.integers(1, 64))


@given(SIZES)
def test_units_are_even_enough_for_threads_and_stay_in_the_first_level_cache(sizes: tuple[int, int, int]) -> None:
    rows, row_bytes, groups = sizes
    part = unit_rows(rows, row_bytes, groups)
    parts = -(-rows // part)

    assert 1 <= part <= rows
    assert part == 1 or part * row_bytes <= L1_BYTES
    assert parts * groups >= min(FEWEST_UNITS, rows * groups)
    assert part == -(-rows // parts)  # no smaller part makes as few


@given(SIZES)
def test_no_thread_of_two_has_far_more_rows_than_the_other(sizes: tuple[int, int, int]) -> None:
    """Units go to threads as consecutive halves; the longer one has at most two units' rows more."""
    rows, row_bytes, groups = sizes
    part = unit_rows(rows, row_bytes, groups)
    units = [min(part, rows - start) for start in range(0, rows, part) for _ in range(groups)]
    half = -(-len(units) // 2)

    assert sum(units[:half]) - sum(units[half:]) <= part * (1 + groups if len(units) % 2 == 0 else 2 + groups)


@given(st.tuples(*[st.integers(1, 200)] * 2), st.integers(1, 16))
def test_rows_of_what_is_computed_pixel_by_pixel_are_a_tile_wide_where_their_number_allows_it(image, pixels):
    shape = Convolution(*image, 3, 5)
    cut = shape.in_rows_of(pixels)
    assert (cut.height * cut.width, cut.macs) == (shape.height * shape.width, shape.macs)
    assert cut == shape or pixels / 2 <= cut.width <= pixels
    if shape.height * shape.width % pixels == 0:
        assert cut.width == pixels
    for other in (
        Convolution(*image, 3, 5, strides=(2, 2)),
        Convolution(*image, 3, 5, pads=(0, 1, 0, 0)),
        Convolution(300, 300, 3, 5, kernel=(1, 3)),
    ):
        assert other.in_rows_of(pixels) == other


def test_two_threads_get_equal_rows() -> None:
    assert unit_rows(32, L1_BYTES // 30, 1) == 4
    assert unit_rows(32, L1_BYTES // 30, 8) == 16


def test_few_rows_make_as_many_units_as_there_are() -> None:
    assert unit_rows(4, 1, 1) == 1
    assert unit_rows(2, 1, 16) == 2
