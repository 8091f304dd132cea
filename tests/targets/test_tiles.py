from hypothesis import given
from hypothesis import strategies as st

from edgedm.targets.kernels.tiles import even_part


@given(st.integers(1, 300), st.integers(0, 400))
def test_parts_are_as_few_as_allowed_and_as_even_as_they_can_be(extent: int, most: int) -> None:
    part = even_part(extent, most)
    parts = -(-extent // part)

    assert 1 <= part <= max(1, most)
    assert parts == -(-extent // max(1, min(extent, most)))
    assert part == -(-extent // parts)


def test_two_threads_get_equal_rows() -> None:
    assert even_part(32, 30) == 16
