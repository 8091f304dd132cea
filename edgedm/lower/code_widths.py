"""How many bits the int8 codes of a graph really have, which decides the kernels that may multiply them.

A quantiser's limits bound its codes; ops that move codes keep the bound, and the padding of a product is code 0. What
comes from anywhere else - an input of the graph, arithmetic on codes - may hold all 8 bits.
"""

from collections.abc import Mapping

import onnx

from edgedm.ops.domain import INT4_MAX, INT4_MIN

UNKNOWN = 8
NARROWEST = 4
"""Kernels of fewer bits exist, but graphs hold no narrower codes: their quantisers have the type int4 or int8."""

_QUANTISERS = ("QuantizeCodes", "GroupNormSiluQuantize")
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Expand", "UpsampleNearest")


def code_widths(graph: onnx.GraphProto) -> Mapping[str, int]:
    """Return the bits of every value that follows from quantisers of int8 codes, `NARROWEST` to `UNKNOWN`, by name."""
    widths: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _QUANTISERS:
            limits = {each.name: each.i for each in node.attribute}
            widths[node.output[0]] = _width(limits.get("low", INT4_MIN), limits.get("high", INT4_MAX))
        elif node.op_type in _MOVES and node.input[0] in widths:
            widths[node.output[0]] = widths[node.input[0]]
        elif node.op_type == "Concat" and all(name in widths for name in node.input):
            widths[node.output[0]] = max(widths[name] for name in node.input)
    return widths


def _width(low: int, high: int) -> int:
    """The bits of two's complement that hold both limits."""
    return max(NARROWEST, 1 + max(high, -low - 1).bit_length())
