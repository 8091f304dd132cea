"""Which timesteps embed on a boundary: a code of the timestep's own path that rounding may take either way."""

from types import SimpleNamespace

import onnx
import onnx_ir as ir
import pytest

from edgedm.export.graph_io import GraphInfo, serialize_graph, set_graph_info
from edgedm.verify.coins import frontier, undecided
from edgedm.verify.graphs import Graph
from edgedm.verify.main import MOMENTS, Examination
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
    assert frontier(runner.graph, "timestep") == ["embedded"]
    assert [timestep for timestep in range(30) if runner.undecided(timestep)] == [5, 15, 25]


def undecided_timesteps(body: str, output: str) -> list[int]:
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    prepare (int64[1] timestep, int64[1] label) => ({output})
      <float tenth = {{0.1}}, float one = {{1.0}}, uint8 zero = {{0}}, int64[1] other = {{1}}> {{
      now = Cast <to = 1> (timestep)
      scaled = Mul (now, tenth)
      codes = QuantizeLinear (scaled, one, zero)
      {body}
    }}
    """
    graph = Graph(ir.serde.deserialize_model(onnx.parser.parse_model(text)))
    return [timestep for timestep in range(30) if undecided(graph, "timestep", timestep)]


def test_codes_that_a_product_with_something_else_reads_are_a_decision() -> None:
    body = "wide = Cast <to = 7> (codes)\n row = Add (wide, label)"
    assert undecided_timesteps(body, "int64[1] row") == [5, 15, 25]


def test_what_the_graph_gives_is_read() -> None:
    assert undecided_timesteps("row = DequantizeLinear (codes, one, zero)", "float[1] row") == [5, 15, 25]


def test_a_node_of_constants_alone_is_a_constant() -> None:
    """A half step added before rounding moves the ties; what stands behind the sum is the timestep's own path."""
    body = "half = Mul (tenth, five)\n moved = Add (scaled, half)\n again = QuantizeLinear (moved, one, zero)\n"
    body = "five = Constant <value_float = 5.0> ()\n" + body + "row = DequantizeLinear (again, one, zero)"
    assert undecided_timesteps(body, "float[1] row") == [0, 10, 20]


def test_a_model_that_reads_no_timestep_decides_nothing_by_it() -> None:
    assert undecided_timesteps("row = Cast <to = 1> (label)", "float[1] row") == []


@pytest.mark.parametrize(
    ("count", "coins"),
    [
        (50, {0, 20, 980}),
        (50, {400}),
        (50, set()),
        (50, set(range(0, 1000, 20))),
        (10, {80}),
        (12, {100}),
        (12, {80, 100}),
        (3, {0}),
    ],
)
def test_a_bundles_compared_steps_keep_off_coins_where_others_are(count, coins) -> None:
    timesteps = list(range(20 * (count - 1), -1, -20))
    steps = Examination.compared(SimpleNamespace(undecided=coins.__contains__), timesteps)
    assert len(steps) == min(MOMENTS, count) and steps == sorted(set(steps))
    spare = count - len(coins & set(timesteps)) - len(steps)
    assert len(coins & {timesteps[step] for step in steps}) == max(0, -spare)
    assert min(steps) <= 1 and max(steps) >= count - 3
