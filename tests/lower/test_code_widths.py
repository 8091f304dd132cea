"""Codes are as wide as their quantisers say; kernels of 4-bit codes never get wider ones."""

import numpy as np
import onnx
import pytest

from edgedm.lower.code_widths import code_widths
from edgedm.lower.importer import import_graph
from edgedm.ops.packing import pack_rows
from edgedm.targets.target import resolve

HEAD = '<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>\n'
PRODUCT = """g (float[1,4,4,64] x, int8[1,4,4,64] given) => (float[1,4,4,16] y) {{
  codes = edgedm.QuantizeCodes <low = {low}, high = {high}> (x, step)
  moved = Identity ({source})
  y = edgedm.BinaryWeightConv <strides = [1, 1], pads = [0, 0, 0, 0]> (moved, weight, multiplier, zeros, none, one)
}}"""


def _graph(low: int, high: int, source: str = "codes") -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + PRODUCT.format(low=low, high=high, source=source))
    signs = np.random.default_rng(0).integers(0, 2, (16, 1, 1, 64)).astype(bool)
    constants = {
        "step": np.array(0.1, np.float32),
        "weight": pack_rows(signs),
        "multiplier": np.ones(16, np.float32),
        "zeros": np.zeros(16, np.float32),
        "none": np.zeros(1, np.float32),
        "one": np.ones(1, np.float32),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(each, name) for name, each in constants.items())
    return model


@pytest.mark.parametrize(
    ("low", "high", "bits"), [(-8, 7, 4), (-2, 1, 4), (-8, 8, 5), (-9, 7, 5), (-128, 127, 8), (0, 7, 4), (0, 15, 5)]
)
def test_the_width_holds_both_limits(low, high, bits):
    assert code_widths(_graph(low, high).graph) == {"codes": bits, "moved": bits}


def test_a_graph_without_limits_has_those_of_the_op():
    graph = _graph(-128, 127).graph
    del graph.node[0].attribute[:]
    assert code_widths(graph)["codes"] == 4


def test_parts_of_different_widths_are_as_wide_as_the_widest_and_unknown_parts_make_all_unknown():
    text = """g (float[1,4] x, int8[1,4] given) => (int8[1,8] both, int8[1,8] mixed) {
      narrow = edgedm.QuantizeCodes <low = -8, high = 7> (x, x)
      wide = edgedm.QuantizeCodes <low = -32, high = 31> (x, x)
      both = Concat <axis = 1> (narrow, wide)
      mixed = Concat <axis = 1> (narrow, given)
      shifted = Add (narrow, given)
    }"""
    widths = code_widths(onnx.parser.parse_model(HEAD + text).graph)
    assert widths == {"narrow": 4, "wide": 6, "both": 6}


@pytest.mark.parametrize(("low", "high", "source"), [(-128, 127, "codes"), (-8, 7, "given")])
def test_wide_codes_get_no_kernel_of_four_bits(low, high, source):
    """A table of nibbles cannot hold them, nor can planes of four bits."""
    target = resolve("x86-64-v3")
    _, narrow = import_graph(_graph(-8, 7), target)
    _, wide = import_graph(_graph(low, high, source), target)
    families = [next(call.kernel.family for call in calls if call.op == "BinaryWeightConv") for calls in (narrow, wide)]
    assert families[0].startswith("lookup")
    assert families[1].startswith(("dot", "generic"))
