"""Which timesteps embed on a boundary: a code of the timestep's own path that rounding may take either way."""

import onnx
import onnx_ir as ir
import pytest

from edgedm.export.graph_io import GraphInfo, serialize_graph, set_graph_info
from edgedm.verify.whole_graph import GraphRunner, WholeGraph

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
step (float[1, 1, 2, 2] x, int64[1] timestep) => (float[1, 1, 2, 2] eps)
  <float tenth = {0.1}, float one = {1.0}, uint8 zero = {0}> {
  now = Cast <to = 1> (timestep)
  scaled = Mul (now, tenth)
  codes = QuantizeLinear (scaled, one, zero)
  embedded = DequantizeLinear (codes, one, zero)
  eps = Add (x, embedded)
}
"""


@pytest.fixture
def runner(tmp_path):
    model = ir.serde.deserialize_model(onnx.parser.parse_model(TEXT))
    inputs = {"x": "x", "timestep": "timestep"}
    set_graph_info(model, GraphInfo("exported", {"noise_schedule": {}}, inputs))
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize_graph(model))
    return GraphRunner(WholeGraph(path), 0)


def test_a_quotient_between_two_codes_is_undecided(runner) -> None:
    assert runner.graph.frontier("timestep") == ["embedded"]
    assert [timestep for timestep in range(30) if runner.undecided(timestep)] == [5, 15, 25]
