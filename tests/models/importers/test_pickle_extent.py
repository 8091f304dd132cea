"""What a pickle's values hold, against Python's own count of them; and the two ways to make them too dear to hash."""

import pickle
import pickletools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedm.models.importers.pickle_extent import MOST_CHOSEN, MOST_DEEP, Extent

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(), inner, max_size=4),
    ),
    max_leaves=20,
)


def follow(content: bytes) -> Extent:
    extent = Extent()
    for opcode, argument, _ in pickletools.genops(content):
        extent.follow(opcode, argument)
    return extent


def nested(levels: int) -> bytes:
    return b"\x80\x02K\x01" + b"\x85" * levels + b"."


def doubled(levels: int) -> bytes:
    """A tuple of two of the one before, so often: what `levels` + 1 values on the stack would hold."""
    return b"\x80\x02K\x01" + b"2\x86" * levels + b"."


@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_whatever_python_pickles_leaves_an_empty_stack(value, protocol):
    assert follow(pickle.dumps(value, protocol))._stack == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_states_that_optimisers_and_modules_save_are_well_within(protocol):
    state = {index: {"step": 1.0, "exp_avg": (("storage", 0), (64, 64), (64, 1))} for index in range(1000)}
    follow(pickle.dumps({"state": state, "losses": [0.5] * 100_000, "ids": tuple(range(70_000))}, protocol))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_keys_that_may_have_one_hash_are_few(protocol):
    modulus = 2**61 - 1  # of Python's hash of a number
    follow(pickle.dumps({modulus * factor: 0 for factor in range(MOST_CHOSEN)}, protocol))
    with pytest.raises(ValueError, match="numbers beyond 32 bits"):
        follow(pickle.dumps([modulus * factor for factor in range(MOST_CHOSEN + 2)], protocol))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_so_are_floats_in_tuples_whose_hashes_can_be_chosen_too(protocol):
    follow(pickle.dumps({(index, 0.5 + index): 0 for index in range(MOST_CHOSEN)}, protocol))
    with pytest.raises(ValueError, match="floats in tuples"):
        follow(pickle.dumps({(index, 0.5 + index): 0 for index in range(MOST_CHOSEN + 1)}, protocol))
    shared = [(0.5, 0.5)] * (MOST_CHOSEN + 1)  # one tuple
    follow(pickle.dumps(shared, protocol))


def test_values_may_nest_as_deep_as_the_bound_and_no_deeper():
    follow(nested(MOST_DEEP))
    with pytest.raises(ValueError, match=f"nest more than {MOST_DEEP} deep"):
        follow(nested(MOST_DEEP + 1))


def test_tuples_that_share_tuples_count_as_what_they_hold():
    follow(doubled(19))  # 2 ** 20 - 1 tuples and values
    with pytest.raises(ValueError, match="a tuple of it holds more than 1048576 values"):
        follow(doubled(20))


def test_a_list_that_grows_later_is_counted_where_it_is_taken_again():
    shared = b"\x80\x02]q\x00" + b"K\x01a" * 5000  # a list of 5,000
    with pytest.raises(ValueError, match="its values hold more than 16777216 values"):
        follow(shared + b"]" + b"h\x00a" * 5000 + b".")


@pytest.mark.parametrize("content", [b"\x80\x02K\x01\x86.", b"\x80\x02h\x05.", b"\x80\x02(K\x01\x86.", b"\x80\x02t."])
def test_opcodes_that_take_what_is_not_there_are_refused(content):
    with pytest.raises(ValueError, match=r"not there|mark"):
        follow(content)
