"""Judge what one kernel made of given inputs: integers, decisions, rounding.

The reference is the piece of the lowered graph that the kernel stands for, executed twice: by ONNX Runtime with
optimisation off (what the op means) and in float64 with rounding bounds (`float64`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.ops import DOMAIN, ONNX_OPSET, attach_functions, infer_shapes
from edgedm.verify.comparison import Flips, count_flips, relative_error, worst_use
from edgedm.verify.graphs import Part
from edgedm.verify.rounding import Bounded

Array = NDArray[Any]

DECIDES_INSIDE = {
    "GroupNormSiluPack": "PackBitsMeanAbs",
    "GroupNormSiluQuantize": "QuantizeCodes",
    "GroupNormSiluQuantizeUniform": "QuantizeUniform",
}
"""Ops whose integers follow from floats that they compute themselves, and the op that then decides."""

_PACKING = ("PackBits", "PackBitsMeanAbs", "GroupNormSiluPack")
"""Ops whose bytes are eight codes of one bit."""


@dataclass(frozen=True)
class Verdict:
    """What was found on one set of inputs; `complaint` names place, expected and got, or is None."""

    complaint: str | None
    use: float  # worst error of a float output over its bound
    operations: int  # n of that bound
    flips: Flips
    error: float | None = None  # largest relative error of a float output against float64; None: no floats


def judge(
    op: str,
    part: Part,
    feeds: Mapping[str, Array],
    got: Mapping[str, Array],
    ceiling: Mapping[str, Array] | None = None,
) -> Verdict:
    """Judge the outputs `got` of a kernel, by value name and in the graph's layout, on `feeds`.

    `op` is an op type, or empty for a kernel fused of standard ops. `ceiling` holds the largest integers that
    are right where the caller knows better than the rounding bounds.
    """
    inside = op in DECIDES_INSIDE or not op
    reference = part.run(feeds)
    middle = part.evaluate(feeds)
    ends = (part.evaluate(feeds, -1), part.evaluate(feeds, 1)) if inside else (middle, middle)
    codes = _bits if op in _PACKING else _whole
    complaints: list[str | None] = []
    use, operations, flips = 0.0, 0, Flips()
    errors: list[float] = []
    for name, array in got.items():
        low, high = ends[0][name].value, ends[1][name].value
        if array.dtype.kind == "f":
            complaint, share, found = judge_floats(array, middle[name], low, high)
            errors.append(relative_error(array, middle[name].value.reshape(array.shape)))
            use, operations, flips = max(use, share), max(operations, middle[name].operations), flips + found
        elif inside:
            top = np.minimum(high, ceiling[name]) if ceiling and name in ceiling else high
            complaint, found = judge_codes(codes(array), codes(reference[name]), codes(low), codes(top))
            flips += found
        else:
            complaint = differing(codes(array), codes(reference[name]))
        complaints.append(_at(name, complaint))
    if op in DECIDES_INSIDE and len(got) > 1:
        complaints.append(_own_decision(part, feeds, got))
    return Verdict(next((each for each in complaints if each), None), use, operations, flips, max(errors, default=None))


def _bits(array: Array) -> NDArray[np.int64]:
    """One integer a code: packed bits become their bits."""
    return np.unpackbits(array, axis=-1, bitorder="little").astype(np.int64)


def _whole(array: Array) -> NDArray[np.int64]:
    return array.astype(np.int64)


def differing(got: Array, expected: Array) -> str | None:
    """Where two arrays of integers differ, or None."""
    if got.shape != expected.shape:
        return f"expected shape {list(expected.shape)}, got {list(got.shape)}"
    return _first(got != expected, expected, got)


def judge_codes(got: Array, expected: Array, low: Array, high: Array) -> tuple[str | None, Flips]:
    """Judge one code an element: as expected, unless rounding explains the difference; see `count_flips`."""
    got, expected, low, high = (_whole(each) for each in (got, expected, low, high))
    flips = count_flips(got, expected, low, high)
    if not flips.unexplained:
        return None, flips
    nearest = np.where(got < low, low, high)
    return _first((got < low) | (got > high), nearest, got) or flips.complaint(), flips


def judge_floats(got: Array, expected: Bounded, low: Array, high: Array) -> tuple[str | None, float, Flips]:
    """Judge floats: within the bound of the float64 value, or of one that decides otherwise within rounding."""
    value, bound = expected.value.reshape(got.shape), expected.bound.reshape(got.shape)
    low, high = np.minimum(low, high).reshape(got.shape), np.maximum(low, high).reshape(got.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got.astype(np.float64) - value)
        flipped = ~(error <= bound) & (low != high) & (got >= low - bound) & (got <= high + bound)
    same = (got == value.astype(np.float32)) | (np.isnan(got) & np.isnan(value))  # infinities and NaN
    error = np.where(flipped | (same & ~np.isfinite(value)), 0.0, error)
    bound = np.where(np.isfinite(bound), bound, 0.0)
    decided = int(got.size) if flipped.any() else 0
    flips = Flips(decided, int(np.sum(flipped & (got > value))), int(np.sum(flipped & (got < value))))
    return _first(~(error <= bound), value, got, bound), worst_use(error, bound), flips


def _first(off: NDArray[np.bool_], expected: Array, got: Array, bound: Array | None = None) -> str | None:
    if not off.any():
        return None
    place = tuple(int(i) for i in np.argwhere(off)[0])
    allowed = "" if bound is None else f" within {bound[place]:.3g}"
    return (
        f"{np.count_nonzero(off)} of {off.size} differ, first at {list(place)}: "
        f"expected {expected[place]:.9g}{allowed}, got {got[place]:.9g}"
    )


def _at(name: str, complaint: str | None) -> str | None:
    return None if complaint is None else f"{name}: {complaint}"


def _own_decision(part: Part, feeds: Mapping[str, Array], got: Mapping[str, Array]) -> str | None:
    """The codes that a kernel gives must be those of the ONNX function on the kernel's own float output."""
    (node,) = part.model.graph.node
    y, bits, _ = (got[name] for name in node.output)
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in part.model.graph.initializer}
    threshold = {**constants, **feeds}[node.input[3]]
    decided = run_op(DECIDES_INSIDE[node.op_type], {"x": y, "threshold": threshold}, {}, 2)
    complaint = differing(_bits(bits), _bits(decided[0]))
    return _at(f"{node.output[1]} (decided on the kernel's own {node.output[0]})", complaint)


def run_op(op: str, inputs: Mapping[str, Array], attributes: Mapping[str, Any], outputs: int) -> list[Array]:
    """Run one op of the domain `edgedm` on its own under ONNX Runtime."""
    values = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))
        for name, array in inputs.items()
    ]
    node = ir.node(op, values, dict(attributes), domain=DOMAIN, num_outputs=outputs)
    for index, output in enumerate(node.outputs):
        output.name = f"output{index}"
    graph = ir.Graph(values, list(node.outputs), nodes=[node], opset_imports={"": ONNX_OPSET}, name=op)
    model = ir.Model(graph, ir_version=10)
    attach_functions(model)
    infer_shapes(model)
    return list(Part(ir.serde.serialize_model(model)).run(inputs).values())
