"""What a pickle's values hold, against Python's own count of them; and the two ways to make them too dear to hash."""

import pickle
import pickletools
from collections import Counter, OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedm.models.importers.pickle_extent import MOST_DEEP, MOST_LARGE, MOST_TUPLES_HASHED, Extent

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
    follow(pickle.dumps({modulus * factor: 0 for factor in range(MOST_LARGE)}, protocol))
    with pytest.raises(ValueError, match="numbers beyond 32 bits"):
        follow(pickle.dumps([modulus * factor for factor in range(MOST_LARGE + 2)], protocol))


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_so_are_keys_that_are_tuples_whose_hashes_can_be_chosen_too(protocol, kind):
    keys = [(index, 0.5) for index in range(MOST_TUPLES_HASHED + 1)]
    follow(pickle.dumps([kind(dict.fromkeys(keys[1:], 0)), keys], protocol))
    with pytest.raises(ValueError, match="more than 100 of its keys are tuples"):
        follow(pickle.dumps(kind(dict.fromkeys(keys, 0)), protocol))


@pytest.mark.parametrize(
    "protocol", range(2, 4)
)  # in later ones a set has opcodes of its own, which torch does not read
def test_sets_and_counters_hold_numbers_and_text(protocol):
    follow(pickle.dumps([{1, 2, "three"}, Counter({1: 2, 5: 1}), OrderedDict(a=(1, 2)), set()], protocol))
    for value in ({(1, 2)}, {frozenset([1])}):
        with pytest.raises(ValueError, match="with more than numbers and text"):
            follow(pickle.dumps(value, protocol))


def called(name: str, arguments: bytes) -> bytes:
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + arguments + b"R."


PAIR = b"K\x01K\x02\x86"


@pytest.mark.parametrize(
    "content",
    [
        called("builtins set", b"](" + PAIR + b"e\x85"),
        called("__builtin__ set", b"(" + PAIR + b"t\x85"),
        called("collections Counter", b"]q\x00(" + PAIR + b"e\x85"),
        called("collections Counter", b"]q\x00\x85q\x01h\x00" + PAIR + b"a\x86"),  # it grows inside its tuple
        called("collections OrderedDict", b"](](" + PAIR + b"Nee\x85"),
        called("builtins set", b"](](" + PAIR + b"ee"),  # a list in the tuple's place
        b"\x80\x02ccollections\nOrderedDict\n)R](](" + PAIR + b"Neeb.",
    ],
)
def test_other_ways_to_hash_tuples_are_refused(content):
    with pytest.raises(ValueError, match=r"with more than numbers and text|a state that is no dictionary"):
        follow(content)


def test_tuples_that_name_a_storage_are_its_keys():
    name = b"(X\x07\x00\x00\x00storage" + b"K\x01" + PAIR + b"tQ0"
    follow(b"\x80\x02" + name * MOST_TUPLES_HASHED + b"N.")
    with pytest.raises(ValueError, match="more than 100 of its keys are tuples"):
        follow(b"\x80\x02" + name * (MOST_TUPLES_HASHED + 1) + b"N.")


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
