"""Markers of quantisers, as the tracer leaves them, become standard ONNX ops.

    Quantize4(x, step)               QuantizeLinear, DequantizeLinear with an int4 zero point of 0
    QuantizeUniform(x, step, zero)   QuantizeLinear, DequantizeLinear with a zero point of uint4 (4 bits) or uint8
                                     (8 bits); of 2 and 6 bits uint8 with a Clip to 0 .. 2^bits - 1 between
    DequantizeWeight(codes, step, zero)   DequantizeLinear along axis 0 of a constant of uint4 (2 and 4 bits) or uint8

The zero points of a table are rows of float32 that are cast once they are looked up, since Gather refuses uint4;
float32 -> uint8 -> uint4 is exact for whole numbers within the grid. A quantiser without a table has constants.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.graph_io import MODULE_KEY
from edgedm.ops import DOMAIN, unpack_codes

_Array = NDArray[np.generic]
_FLOAT, _UINT8, _UINT4 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.UINT4
_NUMPY = {_UINT8: np.dtype(np.uint8), _UINT4: np.dtype(ml_dtypes.uint4)}


def expand_quantizers(model: ir.Model) -> None:
    """Replace every marker in `model`; its nodes keep the markers' module paths.

    Raises UnsupportedError naming the quantiser whose steps have another shape than its axis, and InvalidModelError
    for zero points that lie outside the grid or are no whole numbers.
    """
    expander = _Expander(model.graph)
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type in _EXPANSIONS:
            _EXPANSIONS[node.op_type](expander, node)
    expander.register()


class _Expander:
    """Adds nodes and constants to one graph in place of its markers."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.made: dict[str, ir.Value] = {}
        self.replaced: dict[str, ir.Value] = {}  # initialisers that markers read, by name

    def quantize4(self, marker: ir.Node) -> None:
        x, step = self._inputs(marker)
        if step.shape is None or len(step.shape) != 0:
            raise UnsupportedError(
                f"quantiser {marker.metadata_props[MODULE_KEY]!r}: step of shape {step.shape}; expected one value []"
            )
        zero = self._constant("int4_zero", np.zeros((), ml_dtypes.int4))
        self._round_trip(marker, x, step, zero, {})

    def quantize_uniform(self, marker: ir.Node) -> None:
        x, step, zero = self._inputs(marker)
        path, bits = marker.metadata_props[MODULE_KEY], marker.attributes["bits"].as_int()
        axis = {"axis": marker.attributes["axis"].as_int()} if "axis" in marker.attributes else {}
        _check_shapes(path, x, (step, zero), axis.get("axis"))
        kind = _UINT4 if bits == 4 else _UINT8
        constant = zero.const_value
        if constant is not None:
            values = _whole(path, constant.numpy(), bits).astype(_NUMPY[kind])
            point = self._constant(f"{path}.zero", values)
            if step.const_value is not None:  # a dynamic step is computed
                step = self._constant(f"{path}.step", _array(step))
        else:
            point = self._cast(marker, zero, _UINT8, f"{path}.zero")
            if kind != _UINT8:
                point = self._cast(marker, point, kind, f"{path}.zero_point")
        self._round_trip(marker, x, step, point, axis, None if bits in (4, 8) else 2**bits - 1)

    def dequantize_weight(self, marker: ir.Node) -> None:
        packed, step, zero = self._inputs(marker)
        (weight,) = marker.outputs
        path, bits = marker.metadata_props[MODULE_KEY], marker.attributes["bits"].as_int()
        assert weight.shape is not None
        shape = tuple(int(size) for size in weight.shape)  # type: ignore[arg-type]  # static: from a tensor's
        try:
            codes = unpack_codes(torch.from_numpy(_array(packed).copy()), bits, shape).numpy()
        except ValueError as error:
            raise InvalidModelError(f"layer {path!r}: {error}") from error
        kind = _NUMPY[_UINT4 if bits <= 4 else _UINT8]
        zeros = _whole(path, _array(zero), bits).astype(kind)
        inputs = [
            self._constant(f"{path}.codes", codes.astype(kind)),
            self._constant(f"{path}.step", _array(step)),
            self._constant(f"{path}.zero", zeros),
        ]
        self._replace(marker, [ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{marker.name}_dequantize")])

    def register(self) -> None:
        """Put the constants into the graph, in place of those that only markers read."""
        initializers = self.graph.initializers
        for name, value in self.replaced.items():
            if not value.uses():
                del initializers[name]
        for value in self.made.values():
            while value.name in initializers:
                value.name = f"{value.name}_{len(initializers)}"
            self.graph.register_initializer(value)

    def _inputs(self, marker: ir.Node) -> list[ir.Value]:
        inputs = [value for value in marker.inputs if value is not None]
        assert len(inputs) == len(marker.inputs)
        self.replaced |= {str(value.name): value for value in inputs if value.is_initializer()}
        return inputs

    def _round_trip(
        self,
        marker: ir.Node,
        x: ir.Value,
        step: ir.Value,
        zero: ir.Value,
        axis: dict[str, int],
        top: int | None = None,
    ) -> None:
        """QuantizeLinear, perhaps Clip to 0 .. top, DequantizeLinear."""
        name = f"{marker.outputs[0].name}_codes"
        nodes = [ir.node("QuantizeLinear", [x, step, zero], axis, name=f"{marker.name}_quantize")]
        if top is not None:
            nodes[0].outputs[0].name = f"{name}_unclipped"
            low, high = (self._constant(f"uint8_{value}", np.array(value, np.uint8)) for value in (0, top))
            nodes.append(ir.node("Clip", [nodes[0].outputs[0], low, high], name=f"{marker.name}_clip"))
        nodes[-1].outputs[0].name = name
        values = ir.node("DequantizeLinear", [nodes[-1].outputs[0], step, zero], axis, name=f"{marker.name}_dequantize")
        self._replace(marker, [*nodes, values])

    def _cast(self, marker: ir.Node, value: ir.Value, kind: ir.DataType, name: str) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(kind)}, name=f"{marker.name}_{name.rsplit('.', 1)[-1]}")
        node.outputs[0].name = name
        node.metadata_props.update(marker.metadata_props)
        self.graph.insert_before(marker, node)
        return node.outputs[0]

    def _replace(self, marker: ir.Node, nodes: list[ir.Node]) -> None:
        for node in nodes:
            node.metadata_props.update(marker.metadata_props)
        old, new = list(marker.outputs), list(nodes[-1].outputs)
        ir.convenience.replace_nodes_and_values(self.graph, marker, [marker], nodes, old, new)

    def _constant(self, name: str, array: _Array) -> ir.Value:
        """A constant of this name; a module that runs twice has one."""
        known = self.made.get(name)
        if known is not None:
            return known
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self.made[name] = value
        return value


_EXPANSIONS = {
    "Quantize4": _Expander.quantize4,
    "QuantizeUniform": _Expander.quantize_uniform,
    "DequantizeWeight": _Expander.dequantize_weight,
}


def _check_shapes(path: str, x: ir.Value, parameters: tuple[ir.Value, ...], axis: int | None) -> None:
    assert x.shape is not None
    expected = () if axis is None else (x.shape[axis],)
    for value in parameters:
        if value.shape is None or tuple(value.shape) != expected:
            raise UnsupportedError(
                f"quantiser {path!r}: step or zero point of shape {value.shape} for an activation {x.shape}; expected "
                f"{list(expected)}"
            )


def _whole(path: str, zeros: _Array, bits: int) -> _Array:
    values = zeros.astype(np.float64)
    if not np.all((values == np.round(values)) & (values >= 0) & (values <= 2**bits - 1)):
        raise InvalidModelError(
            f"layer {path!r}: zero points {values.min():g}..{values.max():g}; expected whole numbers of "
            f"0..{2**bits - 1}"
        )
    return values


def _array(value: ir.Value) -> _Array:
    assert value.const_value is not None, f"{value.name} is computed"
    return value.const_value.numpy()
