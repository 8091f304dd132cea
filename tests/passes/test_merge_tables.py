import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pass_testing import apply, graph, run
from uniform_graphs import looked_up, lookup_constants, quantised, table

from edgedm.passes.lookup_timestep_parameters import LookupTimestepParameters
from edgedm.passes.merge_tables import MergeTables

RNG = np.random.default_rng(13)
SETTINGS = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
TIMESTEPS = (0, 29, 30, 89, 90, 999)


def spelled_out(text, **constants):
    return apply(LookupTimestepParameters(), graph(text, **constants)).model


def assert_equal_at_every_bin(result, **feeds):
    for timestep in TIMESTEPS:
        given = {**feeds, "timestep": np.array([timestep])}
        for left, right in zip(run(result.before, given), run(result.model, given), strict=True):
            assert left.tobytes() == right.tobytes()


def quantisers(*kinds):
    """x through one quantiser after another, each of (bits, heads) and with a table."""
    lines, value = [], "x"
    for index, (bits, count) in enumerate(kinds):
        axis = 1 if count else None
        lines.append(looked_up(f"t{index}", bits, count))
        lines.append(quantised(f"d{index}", value, f"t{index}_step", f"t{index}_zero", bits, axis))
        value = f"d{index}"
    body = " ".join(lines)
    text = f"g (float[1,4,5,6] x, int64[1] timestep) => (float[1,4,5,6] y) {{ {body} y = Relu({value}) }}"
    tables = {f"t{index}_table": table(RNG, bits, count) for index, (bits, count) in enumerate(kinds)}
    return spelled_out(text, **tables, **lookup_constants(*(count for _, count in kinds)))


@SETTINGS
@given(st.lists(st.tuples(st.sampled_from([4, 8]), st.sampled_from([0, 4])), min_size=2, max_size=5))
def test_any_tables_of_one_timestep_become_one_of_numbers_and_one_of_bytes(kinds):
    result = apply(MergeTables(), quantisers(*kinds))
    constants = [node.inputs[0].const_value for node in result.model.graph if node.op_type == "Gather"]
    merged = [tensor for tensor in constants if tensor is not None]
    total = sum(count or 1 for _, count in kinds)
    assert sorted((tensor.dtype.name, tuple(tensor.shape)) for tensor in merged) == [
        ("FLOAT", (3, total)),
        ("UINT8", (3, total)),
    ]
    assert not {"Slice", "Reshape"} & set(result.ops)
    assert result.report.notes == {"tables.before": len(kinds), "tables.after": 2}
    assert_equal_at_every_bin(result, x=RNG.standard_normal((1, 4, 5, 6)).astype(np.float32))


def test_a_table_alone_stays_as_it_is():
    result = apply(MergeTables(), quantisers((4, 0)))
    assert not result.report.rewritten and "Slice" in result.ops


LOOKUPS = """g (int64[1] timestep, int64[1] other) => ({outputs}) {{
    p = edgedm.TimestepLookup(ptable, edges, timestep) q = edgedm.TimestepLookup(qtable, edges, {by}) {tail}
}}"""


def lookups(tail, outputs, by="timestep", **constants):
    names = {"ptable": RNG.standard_normal((3, 4)).astype(np.float32), **lookup_constants(0), "one": np.array([1])}
    names |= {"qtable": RNG.standard_normal((3, 2)).astype(np.float32), "two": np.array([2]), **constants}
    text = LOOKUPS.format(tail=tail, outputs=outputs, by=by)
    used = {name: array for name, array in names.items() if f" {name}" in text or f"({name}" in text}
    return spelled_out(text, **used)


def test_tables_of_another_timestep_are_not_joined():
    model = lookups("y = Concat<axis=0>(p, q)", "float[6] y", by="other")
    assert not apply(MergeTables(), model).report.rewritten


def test_whole_rows_and_rows_that_are_outputs_keep_their_values_and_unread_columns_go():
    model = lookups("z = Slice(p, one, two) y = Neg(q)", "float[1] z, float[2] y, float[2] q")
    result = apply(MergeTables(), model)
    shapes = [tuple(node.inputs[0].shape) for node in result.model.graph if node.op_type == "Gather"]
    assert (3, 3) in shapes  # one column of p, both of q
    assert_equal_at_every_bin(result, other=np.array([0]))


@pytest.mark.parametrize("entry", [0.5, -1.0, 256.0])
def test_a_column_that_bytes_do_not_hold_is_cast_after_the_lookup(entry):
    numbers = np.array([[3, 4, 5, 6]] * 3, np.float32)
    numbers[1, 1] = entry
    model = lookups("s = Slice(p, one, two) z = Cast<to=2>(s) y = Neg(q)", "uint8[1] z, float[2] y", ptable=numbers)
    result = apply(MergeTables(), model)
    assert result.ops.count("Cast") == 2  # that of the lookup, and this
    timesteps = TIMESTEPS if entry == 0.5 else (0, 999)  # what lies outside has no defined byte
    for timestep in timesteps:
        given = {"timestep": np.array([timestep]), "other": np.array([0])}
        assert run(result.before, given)[0].tobytes() == run(result.model, given)[0].tobytes()


def test_a_slice_from_the_end_or_backwards_is_read_right():
    constants = {"last": np.array([-1]), "minus": np.array([-5]), "nought": np.array([0]), "end": np.array([2**62])}
    tail = "a = Slice(p, last, end) b = Slice(p, last, minus, nought, last) y = Concat<axis=0>(a, b, q)"
    result = apply(MergeTables(), lookups(tail, "float[7] y", **constants))
    assert_equal_at_every_bin(result, other=np.array([0]))


def test_tables_without_columns_are_joined_to_nothing():
    model = lookups("y = Concat<axis=0>(p, q)", "float[2] y", ptable=np.zeros((3, 0), np.float32))
    result = apply(MergeTables(), model)
    assert_equal_at_every_bin(result, other=np.array([0]))


@pytest.mark.parametrize(("plain", "cut"), ["pq", "qp"])
def test_a_lookup_of_numbers_only_may_stand_before_or_after_one_with_bytes(plain, cut):
    rows = np.array([[0.5, 4.0], [0.25, 5.0], [0.75, 6.0]], np.float32)
    tail = f"s = Slice({cut}, nought, one) z = Slice({cut}, one, two) b = Cast<to=2>(z) y = Concat<axis=0>(s, {plain})"
    constants = {f"{plain}table": -rows, f"{cut}table": rows, "nought": np.array([0])}
    result = apply(MergeTables(), lookups(tail, "uint8[1] b, float[3] y", **constants))
    tables = [node.inputs[0].const_value for node in result.model.graph if node.op_type == "Gather"]
    assert [tuple(each.shape) for each in tables if each is not None] == [(3, 3), (3, 1)]
    assert_equal_at_every_bin(result, other=np.array([0]))


def test_values_of_the_same_columns_that_are_outputs_keep_a_name_each():
    tail = "d = Slice(p, one, two) s = Squeeze(d) c = Reshape(s, one) e = Slice(p, one, two, nought) y = Neg(q)"
    model = lookups(tail, "float[1] c, float[1] d, float[1] e, float[2] y", nought=np.array([0]))
    result = apply(MergeTables(), model)
    assert sorted(result.ops).count("Identity") == 2 and not {"Slice", "Reshape", "Squeeze"} & set(result.ops)
    assert_equal_at_every_bin(result, other=np.array([0]))


def test_tables_are_counted_once_and_no_bytes_are_no_table():
    lookup = "r = edgedm.TimestepLookup(ptable, edges, timestep)"
    model = lookups(f"{lookup} y = Concat<axis=0>(p, q, r)", "float[10] y")
    result = apply(MergeTables(), model)
    assert result.report.notes == {"tables.before": 2, "tables.after": 1}


def test_values_of_the_same_columns_are_looked_up_once():
    tail = "d = Slice(p, one, two) n = Neg(d) e = Slice(p, one, two, nought) y = Concat<axis=0>(n, e, q)"
    result = apply(MergeTables(), lookups(tail, "float[4] y", nought=np.array([0])))
    assert result.ops.count("Gather") == 3  # the row, the column, q
    assert_equal_at_every_bin(result, other=np.array([0]))
