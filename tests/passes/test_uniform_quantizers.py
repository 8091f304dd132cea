"""Graphs of 4- and 8-bit quantisers in the first and the last pass: weights stay packed, uint4 never crosses."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from pass_testing import apply, graph, run

from edgedm.export.graph_io import GraphInfo, set_graph_info
from edgedm.passes.simplify import Simplify
from edgedm.passes.split_prepare import PREPARE, SplitPrepare

RNG = np.random.default_rng(3)
ROLES = {"x": "x", "timestep": "timestep"}
TABLE = np.array([[0.2, 3.0], [0.3, 9.0]], np.float32)

LAYER = """g (float[1,5,6,6] x) => (float[1,3,6,6] y) {
    q = QuantizeLinear(x, step, zero)
    d = DequantizeLinear(q, step, zero)
    w = DequantizeLinear<axis=0>(codes, steps, zeros)
    y = Conv<pads=[1,1,1,1]>(d, w)
}"""


@pytest.mark.parametrize("kind", [ml_dtypes.uint4, np.uint8])
def test_weights_are_not_folded_into_floats(kind) -> None:
    model = graph(
        LAYER,
        step=np.array(0.25, np.float32),
        zero=np.array(6, kind),
        codes=RNG.integers(0, 16, (3, 5, 3, 3)).astype(kind),
        steps=np.array([0.1, 0.2, 0.3], np.float32),
        zeros=np.array([7, 8, 5], kind),
    )
    result = apply(Simplify(), model)
    assert sorted(result.ops) == ["Conv", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]
    assert result.model.graph.initializers["codes"].const_value.dtype.numpy() == np.dtype(kind)
    result.assert_same_bits()


SPLIT = """g (float[1,4] x, int64[1] timestep) => (float[1,4] eps) {
    t = Cast<to=1>(timestep)
    hidden = Unsqueeze(t, first)
    r = edgedm.TimestepLookup(table, edges, timestep)
    step1 = Slice(r, nought, one, nought)
    step = Reshape(step1, none)
    zero1 = Slice(r, one, two, nought)
    zero = Reshape(zero1, none)
    byte = Cast<to=2>(zero)
    nibble = Cast<to=21>(byte)
    tq = QuantizeLinear(hidden, step, nibble)
    td = DequantizeLinear(tq, step, nibble)
    OWN
    xq = QuantizeLinear(x, step, OTHER)
    xd = DequantizeLinear(xq, step, OTHER)
    eps = Add(xd, td)
}"""


@pytest.mark.parametrize("shared", [True, False])
def test_what_crosses_is_never_four_bits_wide(shared: bool) -> None:
    """The step casts the zero point for itself; a quantiser of the timestep's own stays in the prepare graph."""
    own = "" if shared else "byte2 = Cast<to=2>(zero)  nibble2 = Cast<to=21>(byte2)"
    text = SPLIT.replace("OWN", own).replace("OTHER", "nibble" if shared else "nibble2")
    index = {name: np.array([value]) for name, value in (("first", 0), ("nought", 0), ("one", 1), ("two", 2))}
    model = graph(text, table=TABLE, edges=np.array([0, 500]), none=np.array([], np.int64), **index)
    set_graph_info(model, GraphInfo("exported", {}, ROLES))
    before = model.clone()
    SplitPrepare()(model)
    prepare = model.meta[PREPARE]
    rows = [value for value in model.graph.inputs if value.name.startswith("row.")]
    assert rows and all(value.dtype in (ir.DataType.FLOAT, ir.DataType.UINT8) for value in rows)
    made = [node.op_type for node in prepare.graph]
    assert ("QuantizeLinear" in made) == (not shared)
    assert "Cast" in [node.op_type for node in model.graph]
    x = RNG.standard_normal((1, 4)).astype(np.float32)
    for timestep in (0, 499, 500, 999):
        given = {"timestep": np.array([timestep])}
        crossing = dict(zip([value.name for value in prepare.graph.outputs], run(prepare, given), strict=True))
        expected = run(before, {"x": x, **given})[0]
        assert np.array_equal(run(model, {"x": x, **crossing})[0], expected)
