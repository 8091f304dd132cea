import numpy as np
import pytest
from pass_testing import apply, graph, run

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.passes.lookup_timestep_parameters import LookupTimestepParameters

EDGES = np.array([5, 100, 101, 500], np.int64)  # asymmetric: a table read from the wrong end shows
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def lookup(edges=EDGES):
    text = "g (int64[1] timestep) => (float[3] y) { y = edgedm.TimestepLookup(table, edges, timestep) }"
    return graph(text, table=TABLE, edges=edges)


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
