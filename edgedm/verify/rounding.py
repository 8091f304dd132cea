"""Rounding rules: for each ONNX op its float64 result and the bound of float32's distance from it.

One function a family of ops, called with the node and its operands as `Bounded` pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from edgedm.errors import UnsupportedError
from edgedm.verify.comparison import UNIT_ROUNDOFF, gamma

TRANSCENDENTAL_ULPS = 8.0
"""Error of a float32 exp, sigmoid, sin ... in units in the last place: polynomials in common use reach 1 to 4."""

UNDERFLOW = 2.0**-126
"""Results below the smallest normal float32 may be flushed to zero."""

Float = NDArray[np.float64]
_TRANSCENDENTAL = 2.0 * TRANSCENDENTAL_ULPS * UNIT_ROUNDOFF


@dataclass(frozen=True)
class Bounded:
    """A float64 (or exact integer) result and the bound of float32's distance from it, of the same shape.

    `operations` is the longest chain of float32 operations behind one element, summands counted one by one.
    """

    value: NDArray[Any]
    error: Float | None = None  # None: exact
    operations: int = 0

    @property
    def bound(self) -> Float:
        """`error` as an array."""
        return np.zeros(self.value.shape) if self.error is None else np.broadcast_to(self.error, self.value.shape)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of one attribute of a node, or `default`."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def _rounded(value: Float, propagated: Float | float, scale: Float, operations: int, count: float = 1) -> Bounded:
    """A result of `count` more operations whose terms add up to `scale` in magnitude."""
    error = propagated + gamma(count) * (scale + propagated) + UNDERFLOW
    return Bounded(value, np.broadcast_to(error, value.shape), operations + int(count))


def _is_exact(value: Float, *operands: Bounded) -> bool:
    """Whether one operation on exact operands gives numbers that float32 holds: nothing is rounded."""
    return all(operand.error is None for operand in operands) and bool(np.all(value.astype(np.float32) == value))


def _add(node: onnx.NodeProto, a: Bounded, b: Bounded) -> Bounded:
    value = a.value + b.value if node.op_type == "Add" else a.value - b.value
    if _is_exact(value, a, b):
        return Bounded(value)
    return _rounded(value, a.bound + b.bound, np.abs(a.value) + np.abs(b.value), max(a.operations, b.operations))


def _multiply(_node: onnx.NodeProto, a: Bounded, b: Bounded) -> Bounded:
    value = a.value * b.value
    if _is_exact(value, a, b):
        return Bounded(value)
    propagated = np.abs(a.value) * b.bound + np.abs(b.value) * a.bound + a.bound * b.bound
    return _rounded(value, propagated, np.abs(value), a.operations + b.operations)


def _divide(_node: onnx.NodeProto, a: Bounded, b: Bounded) -> Bounded:
    value = a.value / b.value
    propagated = (a.bound + np.abs(value) * b.bound) / np.maximum(np.abs(b.value) - b.bound, UNDERFLOW)
    return _rounded(value, propagated, np.abs(value), a.operations + b.operations)


def _square_root(_node: onnx.NodeProto, a: Bounded) -> Bounded:
    value = np.sqrt(a.value)
    propagated = np.sqrt(a.value + a.bound) - np.sqrt(np.maximum(a.value - a.bound, 0.0))
    return _rounded(value, propagated, value, a.operations)


def _reciprocal(node: onnx.NodeProto, a: Bounded) -> Bounded:
    return _divide(node, Bounded(np.ones(())), a)


def _exponential(_node: onnx.NodeProto, a: Bounded) -> Bounded:
    value = np.exp(a.value)
    error = value * (np.expm1(a.bound) + _TRANSCENDENTAL) + UNDERFLOW
    return Bounded(value, error, a.operations + 1)


def _sigmoid(_node: onnx.NodeProto, a: Bounded) -> Bounded:
    small = np.exp(-np.abs(a.value))
    value = np.where(a.value >= 0, 1.0, small) / (1.0 + small)
    slope = value * (1 - value) * np.exp(a.bound)  # the steepest within the bound
    return Bounded(value, slope * a.bound + value * _TRANSCENDENTAL + UNDERFLOW, a.operations + 1)


def _bounded_wave(node: onnx.NodeProto, a: Bounded) -> Bounded:
    value = {"Sin": np.sin, "Cos": np.cos, "Tanh": np.tanh}[node.op_type](a.value)
    return Bounded(value, a.bound + _TRANSCENDENTAL, a.operations + 1)


def _same_size(node: onnx.NodeProto, a: Bounded) -> Bounded:
    return Bounded(np.abs(a.value) if node.op_type == "Abs" else -a.value, a.error, a.operations)


def _extreme(node: onnx.NodeProto, *operands: Bounded) -> Bounded:
    choose = np.maximum if node.op_type == "Max" else np.minimum
    value, error = operands[0].value, operands[0].bound
    for operand in operands[1:]:
        value, error = choose(value, operand.value), np.maximum(error, operand.bound)
    return Bounded(value, np.broadcast_to(error, value.shape), max(operand.operations for operand in operands))


def _clip(_node: onnx.NodeProto, a: Bounded, low: Bounded | None = None, high: Bounded | None = None) -> Bounded:
    value = a.value
    value = value if low is None else np.maximum(value, low.value)
    value = value if high is None else np.minimum(value, high.value)
    return Bounded(value, a.error, a.operations)


def _reduce(node: onnx.NodeProto, a: Bounded, axes: Bounded | None = None) -> Bounded:
    given = axes.value.tolist() if axes is not None else attribute(node, "axes", None)
    axis = tuple(given) if given else tuple(range(a.value.ndim))
    keep = bool(attribute(node, "keepdims", 1))
    count = int(np.prod([a.value.shape[i] for i in axis]))
    share = 1.0 / count if node.op_type == "ReduceMean" else 1.0

    def total(array: Float) -> Float:
        return np.asarray(array.sum(axis=axis, keepdims=keep) * share)

    value, propagated, scale = total(a.value), total(a.bound), total(np.abs(a.value))
    return _rounded(value, propagated, scale, a.operations, count)


def _softmax(node: onnx.NodeProto, a: Bounded) -> Bounded:
    axis = attribute(node, "axis", -1)
    distance = a.value - a.value.max(axis=axis, keepdims=True)
    powers = np.exp(distance)
    value = powers / powers.sum(axis=axis, keepdims=True)
    count = a.value.shape[axis]
    shift = 2 * a.bound.max(axis=axis, keepdims=True) + np.abs(distance) * UNIT_ROUNDOFF + _TRANSCENDENTAL
    relative = np.expm1(shift + shift.max(axis=axis, keepdims=True)) + gamma(count + 2)
    return Bounded(value, value * relative + UNDERFLOW, a.operations + count + 3)


def quantize(node: onnx.NodeProto, lean: int, x: Bounded, step: Bounded, zero: Bounded | None = None) -> Bounded:
    """QuantizeLinear: float32's quotient may fall on the other side of a tie, so it is a decision on exact x too.

    Codes are those at the quotient itself, or at the end of its bound that `lean` (-1, 0, 1) says.
    """
    quotient = _divide(node, x, _spread(node, step, x.value.ndim))
    point = np.zeros((), np.uint8) if zero is None else zero.value
    codes = np.rint(quotient.value + lean * quotient.bound) + _along(node, point, x.value.ndim).astype(np.float64)
    info: Any = ml_dtypes.iinfo(point.dtype)  # type: ignore[no-untyped-call]  # knows int4, numpy doesn't
    return Bounded(np.clip(codes, int(info.min), int(info.max)).astype(point.dtype))


def _dequantize(node: onnx.NodeProto, codes: Bounded, step: Bounded, zero: Bounded | None = None) -> Bounded:
    value = codes.value.astype(np.float64)
    if zero is not None:
        value = value - _along(node, zero.value, value.ndim).astype(np.float64)
    return _multiply(node, Bounded(value), _spread(node, step, value.ndim))


def _spread(node: onnx.NodeProto, step: Bounded, rank: int) -> Bounded:
    error = None if step.error is None else _along(node, step.bound, rank)
    return Bounded(_along(node, step.value, rank), error, step.operations)


def _along(node: onnx.NodeProto, values: NDArray[Any], rank: int) -> NDArray[Any]:
    """Scales or zero points, one value or one a slice of the node's axis, so that they broadcast to its operand."""
    if values.ndim == 0 or values.size == 1:
        return values.reshape(())
    axis = attribute(node, "axis", 1) % rank
    return values.reshape([-1 if index == axis else 1 for index in range(rank)])


def product(node: onnx.NodeProto, left: Bounded, right: Bounded, bias: Bounded | None = None) -> Bounded:
    """Float matrix products and convolutions: one sum of products per element, plus the bias of some."""
    terms = PRODUCTS[node.op_type]
    value = terms(node, left.value, right.value)
    scale = terms(node, np.abs(left.value), np.abs(right.value))
    propagated: Float = np.zeros(())
    if left.error is not None:
        propagated = propagated + terms(node, left.bound, np.abs(right.value))
    if right.error is not None:
        propagated = propagated + terms(node, np.abs(left.value) + left.bound, right.bound)
    count = int(np.prod(right.value.shape[1:])) if node.op_type == "Conv" else left.value.shape[-1]
    if bias is not None:
        shape = (-1,) + (1,) * (value.ndim - 2) if node.op_type == "Conv" else bias.value.shape
        factor = attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
        value = value + factor * bias.value.reshape(shape)
        scale = scale + np.abs(factor * bias.value.reshape(shape))
        propagated = propagated + abs(factor) * bias.bound.reshape(shape)
    return _rounded(value, propagated, scale, max(left.operations, right.operations), count + 1)


def integer_product(node: onnx.NodeProto, left: Bounded, right: Bounded, *zero_points: Bounded | None) -> Bounded:
    """ConvInteger and MatMulInteger as int64: float64 sums of integers are exact below 2^53."""
    x, weight = (_minus_zero_point(each, zero_points, index) for index, each in enumerate((left, right)))
    return Bounded(PRODUCTS[node.op_type](node, x, weight).astype(np.int64))


def _minus_zero_point(operand: Bounded, zero_points: Sequence[Bounded | None], index: int) -> Float:
    zero = zero_points[index] if index < len(zero_points) else None
    value: Float = operand.value.astype(np.float64)
    return value if zero is None else value - zero.value.astype(np.float64)


def _matmul(_node: onnx.NodeProto, a: Float, b: Float) -> Float:
    return np.asarray(a @ b)


def _gemm(node: onnx.NodeProto, a: Float, b: Float) -> Float:
    a = a.T if attribute(node, "transA", 0) else a
    b = b.T if attribute(node, "transB", 0) else b
    return np.asarray(attribute(node, "alpha", 1.0) * (a @ b))


def _convolution(node: onnx.NodeProto, x: Float, weight: Float) -> Float:
    """Two-dimensional convolution as im2col and one matrix product; x [N,C,H,W], weight [O,C/groups,kh,kw]."""
    groups = attribute(node, "group", 1)
    rows, columns = weight.shape[2:]
    stride_y, stride_x = attribute(node, "strides", (1, 1))
    top, left, bottom, right = attribute(node, "pads", (0, 0, 0, 0))
    if tuple(attribute(node, "dilations", (1, 1))) != (1, 1):
        raise UnsupportedError(f"float64 reference: dilated {node.op_type} (node {node.name!r})")
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), axis=(2, 3))
    windows = windows[:, :, ::stride_y, ::stride_x]  # [N,C,OH,OW,kh,kw]
    parts = [
        np.tensordot(part, kernel, axes=([1, 4, 5], [1, 2, 3]))
        for part, kernel in zip(np.split(windows, groups, axis=1), np.split(weight, groups, axis=0), strict=True)
    ]
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)


def _average_pool(node: onnx.NodeProto, a: Bounded) -> Bounded:
    rows, columns = attribute(node, "kernel_shape", None)
    kernel = np.zeros((a.value.shape[1], 1, rows, columns)) + 1.0 / (rows * columns)
    shape = onnx.helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        name=node.name,
        group=a.value.shape[1],
        strides=attribute(node, "strides", (1, 1)),
        pads=attribute(node, "pads", (0, 0, 0, 0)),
    )
    return product(shape, a, Bounded(kernel))


PRODUCTS: dict[str, Callable[[onnx.NodeProto, Float, Float], Float]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _convolution,
    "MatMulInteger": _matmul,
    "ConvInteger": _convolution,
}

RULES: dict[str, Callable[..., Bounded]] = {
    **dict.fromkeys(("Add", "Sub"), _add),
    **dict.fromkeys(("Abs", "Neg"), _same_size),
    **dict.fromkeys(("Sin", "Cos", "Tanh"), _bounded_wave),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(("ReduceSum", "ReduceMean"), _reduce),
    **dict.fromkeys(("MatMul", "Gemm", "Conv"), product),
    "Mul": _multiply,
    "Div": _divide,
    "Sqrt": _square_root,
    "Reciprocal": _reciprocal,
    "Exp": _exponential,
    "Sigmoid": _sigmoid,
    "Clip": _clip,
    "Softmax": _softmax,
    "AveragePool": _average_pool,
    "DequantizeLinear": _dequantize,
}

MOVES = frozenset(
    (
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Identity", "Cast", "CastLike"),
        *("Slice", "Split", "Concat", "Gather", "Pad", "Resize", "DepthToSpace", "SpaceToDepth", "Where"),
    )
)
"""Ops that only move values: the bounds move with them."""

DECISIONS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("GreaterOrEqual", "Greater"), (1, -1)),
    **dict.fromkeys(("LessOrEqual", "Less"), (-1, 1)),
    **dict.fromkeys(("Round", "Floor", "Ceil", "Sign"), (1,)),
    "IsNaN": (0,),
}
"""Ops that decide, and the sign in which each operand moves the result."""
