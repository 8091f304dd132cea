"""The arena: nothing that lives at the same time overlaps, and little is wasted."""

from hypothesis import given, settings
from hypothesis import strategies as st

from edgedm.lower.memory import ALIGNMENT, Lifetime, align, plan_arena

LIFETIMES = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(1, 5000),
        st.integers(0, 30),
        st.integers(0, 8),
    ),
    max_size=30,
)


@given(LIFETIMES)
@settings(deadline=None, max_examples=200)
def test_buffers_that_live_together_do_not_overlap(buffers):
    offsets, total = plan_arena(buffers)
    for i, mine in enumerate(buffers):
        assert offsets[i] % ALIGNMENT == 0
        assert offsets[i] + mine.size <= total
        for j in range(i):
            other = buffers[j]
            apart = mine.first > other.last or other.first > mine.last
            disjoint = offsets[i] + mine.size <= offsets[j] or offsets[j] + other.size <= offsets[i]
            assert apart or disjoint


def test_a_chain_needs_two_buffers():
    chain = [Lifetime(1000, index, index + 1) for index in range(10)]
    _, total = plan_arena(chain)
    assert total == 2 * align(1000)


def test_no_buffers_need_no_arena():
    assert plan_arena([]) == ([], 0)
