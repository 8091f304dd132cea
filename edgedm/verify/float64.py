"""Evaluate an ONNX graph in float64, with a running bound on what float32 arithmetic may make of it.

Every value is a pair: the float64 result, and how far a float32 implementation may be from it when each
operation errs by at most one rounding (a transcendental by `TRANSCENDENTAL_ULPS`) and sums are added in any
order (Higham, section 3.3, "running error analysis"). Model-local functions are walked into, so the ops of the
domain `edgedm` have no second definition here. Integers and moves are exact. A decision (a sign, a rounding to a
code) on an inexact value is taken at the value itself, or at the low or the high end of its bound: two
evaluations then enclose every code that rounding can explain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from edgedm.errors import UnsupportedError
from edgedm.verify.comparison import gamma
from edgedm.verify.composed_rules import COMPOSED, least
from edgedm.verify.rounding import DECISIONS, MOVES, RULES, Bounded, attribute, integer_product, quantize


@dataclass
class _Scope:
    """Values by name, the model's functions, and the opsets of the graph or function being walked."""

    values: dict[str, Bounded]
    functions: Mapping[tuple[str, str], onnx.FunctionProto]
    opsets: dict[str, int]
    lean: int


def evaluate(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]], lean: int = 0) -> dict[str, Bounded]:
    """Evaluate `model` on `inputs` (taken as exact); returns every value of its main graph by name.

    `lean` says where decisions are taken: 0 at the float64 value, -1 and +1 at the ends of its bound.
    Raises `UnsupportedError` for an op without a rule whose inputs are not exact.
    """
    values = {item.name: Bounded(numpy_helper.to_array(item)) for item in model.graph.initializer}
    values |= {name: Bounded(np.asarray(array)) for name, array in inputs.items()}
    functions = {(function.domain, function.name): function for function in model.functions}
    opsets = {item.domain: item.version for item in model.opset_import}
    scope = _Scope({name: _widen(value) for name, value in values.items()}, functions, opsets, lean)
    for node in model.graph.node:
        _apply(node, scope)
    return scope.values


def _widen(value: Bounded) -> Bounded:
    if value.value.dtype in (np.float32, np.float16):
        return Bounded(value.value.astype(np.float64), value.error, value.operations)
    return value


def _apply(node: onnx.NodeProto, scope: _Scope) -> None:
    operands = [scope.values[name] if name else None for name in node.input]
    function = scope.functions.get((node.domain, node.op_type))
    if function is not None:
        results = _call(function, node, operands, scope)
    else:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            results = _standard(node, operands, scope)
    for name, result in zip(node.output, results, strict=False):
        if name:
            scope.values[name] = _widen(result)


def _call(
    function: onnx.FunctionProto, node: onnx.NodeProto, operands: Sequence[Bounded | None], scope: _Scope
) -> list[Bounded]:
    given = {attribute.name: attribute for attribute in function.attribute_proto}
    given |= {attribute.name: attribute for attribute in node.attribute}
    inner = _Scope(
        {name: operand for name, operand in zip(function.input, operands, strict=False) if operand is not None},
        scope.functions,
        {item.domain: item.version for item in function.opset_import},
        scope.lean,
    )
    for template in function.node:
        _apply(_bind(template, given), inner)
    return [inner.values[name] for name in function.output]


def _bind(template: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """The node with its references to the function's attributes replaced by their values."""
    if not any(attribute.ref_attr_name for attribute in template.attribute):
        return template
    node = onnx.NodeProto()
    node.CopyFrom(template)
    del node.attribute[:]
    for item in template.attribute:
        if not item.ref_attr_name:
            node.attribute.append(item)
        elif item.ref_attr_name in given:
            bound = node.attribute.add()
            bound.CopyFrom(given[item.ref_attr_name])
            bound.name = item.name
    return node


def _standard(node: onnx.NodeProto, operands: Sequence[Bounded | None], scope: _Scope) -> list[Bounded]:
    present = [operand for operand in operands if operand is not None]
    inexact = any(operand.error is not None for operand in present)
    rule = RULES.get(node.op_type) or COMPOSED.get(node.op_type)
    if rule is not None and any(operand.value.dtype == np.float64 for operand in present):
        return [rule(node, *operands)]
    if node.op_type == "QuantizeLinear":
        return [quantize(node, scope.lean, *(operand for operand in operands if operand is not None))]
    if node.op_type == "ArgMin" and inexact:
        return [least(node, scope.lean, present[0])]
    if node.op_type in DECISIONS and inexact:
        signs = DECISIONS[node.op_type]
        arrays = [_leaning(operand, sign * scope.lean) for operand, sign in zip(operands, signs, strict=False)]
        return [Bounded(result) for result in _reference(node, arrays, scope)]
    if node.op_type in ("ConvInteger", "MatMulInteger"):
        left, right, *zero_points = operands
        assert left is not None and right is not None
        return [integer_product(node, left, right, *zero_points)]
    if not inexact:
        if node.op_type == "Cast":
            return [_exact_cast(node, operands)]
        arrays = [_array(operand) for operand in operands]
        if node.op_type in ("Add", "Sub", "Mul"):  # accumulators are int64 here, and what meets them is int32
            arrays = [_widest(array, arrays) for array in arrays]
        return [Bounded(result) for result in _reference(node, arrays, scope)]
    if node.op_type not in MOVES:
        raise UnsupportedError(f"float64 reference: no rounding rule for {node.op_type} (node {node.name!r})")
    values = _reference(node, [_array(operand) for operand in operands], scope)
    errors = _reference(node, [_error_of_move(operand) for operand in operands], scope)
    operations = max(operand.operations for operand in present)
    return [Bounded(value, error, operations) for value, error in zip(values, errors, strict=True)]


def _widest(array: NDArray[Any] | None, beside: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """`array`, of 64 bits where it has 32 and another operand has 64."""
    wide = any(other is not None and other.dtype == np.int64 for other in beside)
    return array.astype(np.int64) if wide and array is not None and array.dtype == np.int32 else array


def _array(operand: Bounded | None) -> NDArray[Any] | None:
    return None if operand is None else operand.value


def _leaning(operand: Bounded | None, sign: int) -> NDArray[Any] | None:
    if operand is None or sign == 0:
        return _array(operand)
    return np.asarray(operand.value + sign * operand.bound)


def _error_of_move(operand: Bounded | None) -> NDArray[Any] | None:
    """What a moving op is fed for the errors: bounds for floats, the very same indices and shapes otherwise."""
    if operand is None:
        return None
    return operand.bound if operand.value.dtype == np.float64 else operand.value


def _reference(node: onnx.NodeProto, arrays: Sequence[NDArray[Any] | None], scope: _Scope) -> list[NDArray[Any]]:
    """Run one standard node in numpy, through the `onnx` package's own reference."""
    if node.op_type in ("Cast", "CastLike") and arrays[0] is not None:
        return [_cast(node, arrays)]
    if node.op_type == "Constant":
        return list(ReferenceEvaluator(node).run(None, {}))
    feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if name and array is not None}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in scope.opsets.items()]
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
    )
    return list(ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, feeds))


def _exact_cast(node: onnx.NodeProto, operands: Sequence[Bounded | None]) -> Bounded:
    """A cast of exact values; to float it rounds integers beyond 2^24."""
    value = _cast(node, [_array(operand) for operand in operands])
    if value.dtype != np.float64 or np.all(value.astype(np.float32) == value):
        return Bounded(value)
    return Bounded(value, gamma(1) * np.abs(value), 1)


def _cast(node: onnx.NodeProto, arrays: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    source = arrays[0]
    assert source is not None
    if node.op_type == "CastLike":
        like = arrays[1]
        assert like is not None
        dtype = like.dtype
    else:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to", onnx.TensorProto.FLOAT))
    return source.astype(np.float64 if dtype in (np.float32, np.float16) else dtype)
