"""Rounding rules of operators that transformers and VQ decoders have, composed of those of simpler ones."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from edgedm.verify.comparison import UNIT_ROUNDOFF
from edgedm.verify.rounding import RULES, TRANSCENDENTAL_ULPS, Bounded, attribute

_STEEPEST_ERF = 2 / math.sqrt(math.pi)
_erf: Any = np.vectorize(math.erf, otypes=[np.float64])


def _layer_normalization(node: onnx.NodeProto, x: Bounded, scale: Bounded, bias: Bounded | None = None) -> Bounded:
    """With the variance as E[x^2] - E[x]^2, which cancels: TVM and ONNX Runtime compute it so."""
    axis = attribute(node, "axis", -1)
    axes = list(range(axis % x.value.ndim, x.value.ndim))
    mean_of = onnx.helper.make_node("ReduceMean", ["x"], ["y"], name=node.name, axes=axes, keepdims=1)
    mean, squares = _rule(mean_of, x), _rule(mean_of, _multiply(node, x, x))
    epsilon = Bounded(np.asarray(attribute(node, "epsilon", 1e-5), np.float64))
    variance = _subtract(node, squares, _multiply(node, mean, mean))
    variance = Bounded(np.maximum(variance.value, 0.0), variance.error, variance.operations)
    deviation = _of("Sqrt", node, _add(node, variance, epsilon))
    y = _multiply(node, _of("Div", node, _subtract(node, x, mean), deviation), scale)
    return y if bias is None else _add(node, y, bias)


def _error_function(_node: onnx.NodeProto, a: Bounded) -> Bounded:
    error = _STEEPEST_ERF * a.bound + 2 * TRANSCENDENTAL_ULPS * UNIT_ROUNDOFF
    return Bounded(_erf(a.value), error, a.operations + 1)


def _gelu(node: onnx.NodeProto, x: Bounded) -> Bounded:
    """0.5 x (1 + erf(x / sqrt 2))."""
    inside = _multiply(node, x, Bounded(np.asarray(math.sqrt(0.5)), np.asarray(UNIT_ROUNDOFF)))
    half = _multiply(node, x, Bounded(np.asarray(0.5)))
    return _multiply(node, half, _add(node, _error_function(node, inside), Bounded(np.asarray(1.0))))


def least(node: onnx.NodeProto, lean: int, a: Bounded) -> Bounded:
    """ArgMin of inexact numbers: where the least is, or the first or last place where rounding may find it."""
    axis, keep = attribute(node, "axis", 0), bool(attribute(node, "keepdims", 1))
    reachable = a.value - a.bound <= (a.value + a.bound).min(axis=axis, keepdims=True)
    if lean == 0:
        found = a.value.argmin(axis=axis)
    elif lean < 0:
        found = reachable.argmax(axis=axis)
    else:
        found = a.value.shape[axis] - 1 - np.flip(reachable, axis).argmax(axis=axis)
    return Bounded(np.expand_dims(found, axis) if keep else found)


def _rule(node: onnx.NodeProto, *operands: Bounded) -> Bounded:
    return RULES[node.op_type](node, *operands)


def _of(op: str, node: onnx.NodeProto, *operands: Bounded) -> Bounded:
    """The rule of another op, which may look at its own name alone."""
    return _rule(onnx.helper.make_node(op, [], [], name=node.name), *operands)


def _add(node: onnx.NodeProto, a: Bounded, b: Bounded) -> Bounded:
    return _of("Add", node, a, b)


def _subtract(node: onnx.NodeProto, a: Bounded, b: Bounded) -> Bounded:
    return _of("Sub", node, a, b)


def _multiply(node: onnx.NodeProto, a: Bounded, b: Bounded) -> Bounded:
    return _of("Mul", node, a, b)


COMPOSED: dict[str, Callable[..., Bounded]] = {
    "LayerNormalization": _layer_normalization,
    "Erf": _error_function,
    "Gelu": _gelu,
}
