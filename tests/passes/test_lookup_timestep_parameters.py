import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_testing import apply, graph, run

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.passes.lookup_timestep_parameters import LookupTimestepParameters

EDGES = np.array([5, 100, 101, 500], np.int64)  # asymmetric: a table read from the wrong end shows
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def lookup(edges=EDGES, table=TABLE):
    text = "g (int64[1] timestep) => (float[COLUMNS] y) { y = edgedm.TimestepLookup(table, edges, timestep) }"
    return graph(text.replace("COLUMNS", str(table.shape[1])), table=table, edges=edges)


@pytest.mark.parametrize(
    ("timestep", "row"), [(0, 0), (5, 0), (99, 0), (100, 1), (101, 2), (499, 2), (500, 3), (999, 3)]
)
def test_the_spelled_out_lookup_takes_the_row_whose_bin_holds_the_timestep(timestep, row):
    result = apply(LookupTimestepParameters(), lookup())
    assert "TimestepLookup" not in result.ops
    for model in (result.before, result.model):
        (y,) = run(model, {"timestep": np.array([timestep])})
        assert y.tolist() == TABLE[row].tolist()


def test_skipped_and_repeated_bins_are_counted():
    timesteps = np.array([990, 700, 300, 200, 20], np.int64)
    result = apply(LookupTimestepParameters(timesteps, 1000), lookup())
    assert result.report.notes == {"bins.total": 4, "bins.skipped": 1, "bins.repeated": 2}


@pytest.mark.parametrize("timestep", [4, 1000])
def test_a_timestep_outside_the_trained_bins_is_refused_by_name(timestep):
    with pytest.raises(UnsupportedError, match=rf"LookupTimestepParameters: node 'y' .*\[{timestep}\].*5\.\.999"):
        LookupTimestepParameters(np.array([500, timestep]), 1000)(lookup())


@pytest.mark.parametrize("edges", [[5, 100, 100, 500], [500, 101, 100, 5]])
def test_broken_bin_edges_are_an_error(edges):
    with pytest.raises(InvalidModelError, match="ascending bin edges"):
        LookupTimestepParameters()(lookup(np.array(edges, np.int64)))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.sets(st.integers(0, 999), min_size=1, max_size=6), st.integers(0, 4), st.lists(st.integers(0, 1200)))
def test_any_table_gives_the_row_of_the_last_edge_reached(edges, columns, timesteps):
    """Tables without columns, of one row, and timesteps before the first edge included."""
    edges = np.array(sorted(edges), np.int64)
    table = np.random.default_rng(len(edges)).standard_normal((len(edges), columns)).astype(np.float32)
    result = apply(LookupTimestepParameters(), lookup(edges, table))
    for timestep in [*timesteps, *edges.tolist()][:8]:
        for model in (result.before, result.model):
            (y,) = run(model, {"timestep": np.array([timestep])})
            assert y.tobytes() == table[max(int((edges <= timestep).sum()) - 1, 0)].tobytes()


def test_a_table_without_rows_is_an_error_that_names_the_node():
    with pytest.raises(InvalidModelError, match=r"LookupTimestepParameters: node 'y' .*expected 0 ascending bin edges"):
        LookupTimestepParameters()(lookup(np.zeros(0, np.int64), np.zeros((0, 3), np.float32)))
