"""Channels last everywhere: push the Transposes through the standard ops until they meet and vanish.

Given   Transpose(NHWC -> NCHW), any chain of standard ops on NCHW, Transpose(NCHW -> NHWC)
Result  the same chain on NHWC: Conv -> FloatConv, Resize -> UpsampleNearest, AveragePool -> AveragePool2d,
        elementwise ops as they are, Concat with its axis moved, Reshape of the pixels with the channels behind

A walk in graph order keeps, for every value that has one, its channels-last twin (axis 1 moved behind the others;
ranks 3 and up). An op that knows how to work on twins gets a twin of its own; any other op reads a Transpose back.
Carried state has no layout of its own, so its inputs and outputs become channels-last outright. A Transpose that
moves only axes of size 1 is a Reshape, which costs nothing. Exact, but for the order of sums inside Conv.
"""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from edgedm.export.graph_io import graph_info
from edgedm.ops import DOMAIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Editor, constant, dims, integer, ints, is_edgedm, is_op, operand
from edgedm.passes.quantize_before_upsample import repeats

_F32 = ir.DataType.FLOAT
_ELEMENTWISE = {"Abs", "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Identity", "Max", "Min", "Mul", "Neg", "Pow"}
_ELEMENTWISE |= {"Relu", "Round", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where", "Greater", "Less", "GreaterOrEqual"}
_ELEMENTWISE |= {"LessOrEqual", "QuantizeLinear", "DequantizeLinear"}
_QUANTISERS = ("QuantizeCodes", "QuantizeUniform")


class ChannelsLast(GraphPass):
    """See the module. `changes_interface`: carried state becomes channels-last."""

    exact = False
    changes_interface = True

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float] | None:
        """See the module."""
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        walk = _Walk(editor)
        states = [name for name, role in graph_info(model).inputs.items() if role == "state"]
        walk.state_inputs(set(states))
        for node in editor.nodes():
            walk.visit(node)
        walk.state_outputs({f"{name}.next" for name in states})
        walk.remove_replaced()
        editor.finish()
        _free_transposes(editor)
        left = sum(node.op_type == "Transpose" for node in editor.graph)
        return {"transposes.left": float(left)}


class _Walk:
    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.twins: dict[ir.Value, ir.Value] = {}
        self.replaced: list[ir.Node] = []
        self.handlers: dict[str, Callable[[ir.Node], ir.Value | None]] = {
            "Conv": self.conv,
            "Resize": self.resize,
            "AveragePool": self.average_pool,
            "Concat": self.concat,
            "Reshape": self.reshape,
            "Pad": self.pad,
        }

    def visit(self, node: ir.Node) -> None:
        if node.domain not in ("", "ai.onnx"):
            if is_edgedm(node, *_QUANTISERS):
                self.keep(node, self.quantiser(node))
            return
        if node.op_type == "Transpose":
            self.transpose(node)
            return
        handler = self.handlers.get(node.op_type)
        if handler is None and node.op_type in _ELEMENTWISE:
            handler = self.elementwise
        self.keep(node, handler(node) if handler else None)

    def keep(self, node: ir.Node, twin: ir.Value | None) -> None:
        """Let `twin`, if there is one, stand for the output of `node`."""
        if twin is not None:
            self.twins[node.outputs[0]] = twin
            self.replaced.append(node)
            self.editor.rewritten.append(node.name or node.op_type)

    def twin(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """The channels-last twin of `value`, made by a Transpose before `node` where there is none yet."""
        if value not in self.twins:
            array = constant(value)
            if array is not None:
                moved = np.ascontiguousarray(np.moveaxis(array, 1, -1))
                self.twins[value] = self.editor.constant(moved, f"{value.name}.last")
            else:
                perm = _to_last(len(dims(value)))
                self.twins[value] = self.editor.permute(value, perm, node, ".last")
        return self.twins[value]

    def add(
        self, node: ir.Node, op_type: str, inputs: list[ir.Value], attributes: dict[str, object], domain: str = ""
    ) -> ir.Value:
        """A node like `node`, whose output is the twin of its output."""
        output = node.outputs[0]
        shape = [dims(output)[axis] for axis in _to_last(len(dims(output)))]
        outputs = [(f"{output.name}.last", output.dtype or _F32, shape)]
        return self.editor.add(op_type, inputs, node, outputs, attributes, domain)[0]

    def state_inputs(self, names: set[str]) -> None:
        graph = self.editor.graph
        for index, old in enumerate(list(graph.inputs)):
            if old.name not in names or len(dims(old)) < 3:
                continue
            shape = [dims(old)[axis] for axis in _to_last(len(dims(old)))]
            new = ir.Value(name=old.name, type=old.type, shape=ir.Shape(shape))
            old.name = self.editor.unique(f"{old.name}.first")
            graph.inputs[index] = new
            first = next(iter(graph), None)
            if first is not None:
                perm = _to_first(len(shape))
                made = self.editor.add(
                    "Transpose", [new], first, [(old.name, old.dtype or _F32, dims(old))], {"perm": perm}
                )
                old.replace_all_uses_with(made[0], replace_graph_outputs=True)
                self.twins[made[0]] = new

    def state_outputs(self, names: set[str]) -> None:
        graph = self.editor.graph
        taken: set[ir.Value] = set(graph.inputs)
        for index, old in enumerate(list(graph.outputs)):
            producer = old.producer()
            if old.name not in names or len(dims(old)) < 3 or producer is None:
                continue
            new = self.twin(old, producer)
            if new in taken or new.is_graph_output():
                copy = [(f"{old.name}.copy", old.dtype or _F32, dims(new))]
                new = self.editor.add("Identity", [new], producer, copy)[0]
            taken.add(new)
            new.name, old.name = old.name, self.editor.unique(f"{old.name}.first")
            graph.outputs[index] = new

    def remove_replaced(self) -> None:
        """Last node first, so that what still reads a replaced value really needs it."""
        for node in reversed(self.replaced):
            if node.graph is None:
                continue  # removed with the last reader of its output
            old = node.outputs[0]
            if list(old.uses()) or old.is_graph_output():
                twin = self.twins[old]
                new = self.editor.permute(twin, _to_first(len(dims(twin))), node, ".first")
                self.editor.replace(old, new)
            if node.graph is not None:
                self.editor.graph.remove(node, safe=True)

    # --- one method an op: the twin of its output, or None to leave it alone ---

    def transpose(self, node: ir.Node) -> None:
        source, output = operand(node, 0), node.outputs[0]
        rank = len(dims(source))
        perm = ints(node, "perm", tuple(reversed(range(rank))))
        if rank < 3:
            return
        if perm == _to_last(rank):
            if source not in self.twins:
                self.twins[source] = output
            else:
                twin = self.twins[source]
                free = twin.producer() is not None and not twin.is_graph_output()
                self.editor.replace(output, twin, rename=free and output.is_graph_output())
        if perm == _to_first(rank):
            self.twins.setdefault(output, source)

    def elementwise(self, node: ir.Node) -> ir.Value | None:
        rank = len(dims(node.outputs[0]))
        given = [value for value in node.inputs if value is not None]
        if rank < 3 or len(given) != len(node.inputs):
            return None
        if not any(value in self.twins and len(dims(value)) == rank for value in given):
            return None
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and any(math.prod(dims(v)) > 1 for v in given[1:]):
            return None
        inputs = [value if math.prod(dims(value)) == 1 else self.broadcast(value, rank, node) for value in given]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return self.add(node, node.op_type, inputs, attributes)

    def broadcast(self, value: ir.Value, rank: int, node: ir.Node) -> ir.Value:
        """The twin of `value`, given the ones that broadcasting puts before its shape."""
        shape = dims(value)
        if len(shape) == rank:
            return self.twin(value, node)
        full = (1,) * (rank - len(shape)) + shape
        array = constant(value)
        if array is not None:
            return self.editor.constant(np.moveaxis(array.reshape(full), 1, -1).copy(), f"{value.name}.last")
        target = self.editor.constant(np.array(full, np.int64), "shape")
        outputs = [(f"{value.name}.full", value.dtype or _F32, full)]
        return self.twin(self.editor.add("Reshape", [value, target], node, outputs)[0], node)

    def quantiser(self, node: ir.Node) -> ir.Value | None:
        """One grid for all channels may stand in any layout."""
        x, *grid = (operand(node, index) for index in range(len(node.inputs)))
        if x not in self.twins or any(math.prod(dims(value)) > 1 for value in grid):
            return None
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return self.add(node, node.op_type, [self.twins[x], *grid], attributes, DOMAIN)

    def conv(self, node: ir.Node) -> ir.Value | None:
        x, weight = operand(node, 0), operand(node, 1)
        kernel = constant(weight)
        plain = integer(node, "group", 1) == 1 and set(ints(node, "dilations", (1, 1))) == {1}
        if kernel is None or kernel.ndim != 4 or not plain or _pads_itself(node):
            return None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            bias = self.editor.constant(np.zeros(kernel.shape[0], np.float32), "no_bias")
        attributes: dict[str, object] = {
            "strides": list(ints(node, "strides", (1, 1))),
            "pads": list(ints(node, "pads", (0, 0, 0, 0))),
        }
        return self.add(node, "FloatConv", [self.twin(x, node), weight, bias], attributes, DOMAIN)

    def resize(self, node: ir.Node) -> ir.Value | None:
        factor = repeats(node)
        if factor is None:
            return None
        return self.add(node, "UpsampleNearest", [self.twin(operand(node, 0), node)], {"factor": factor}, DOMAIN)

    def average_pool(self, node: ir.Node) -> ir.Value | None:
        kernel = ints(node, "kernel_shape", ())
        x = _without_unread_border(
            operand(node, 0), [n * k for n, k in zip(dims(node.outputs[0])[2:], kernel, strict=False)]
        )
        shape = dims(x)
        plain = not _pads_itself(node) and set(ints(node, "pads", (0,))) == {0}
        plain = plain and set(ints(node, "dilations", (1,))) == {1}
        if len(kernel) != 2 or ints(node, "strides", (1, 1)) != kernel or not plain:
            return None
        if shape[2] % kernel[0] or shape[3] % kernel[1]:
            return None
        return self.add(node, "AveragePool2d", [self.twin(x, node)], {"kernel": list(kernel)}, DOMAIN)

    def concat(self, node: ir.Node) -> ir.Value | None:
        rank = len(dims(node.outputs[0]))
        parts = [operand(node, index) for index in range(len(node.inputs))]
        if rank < 3 or not any(part in self.twins for part in parts):
            return None
        axis = integer(node, "axis", 0) % rank
        moved = _to_last(rank).index(axis)
        return self.add(node, "Concat", [self.twin(part, node) for part in parts], {"axis": moved})

    def reshape(self, node: ir.Node) -> ir.Value | None:
        x, before, after = operand(node, 0), dims(operand(node, 0)), dims(node.outputs[0])
        if x not in self.twins or min(len(before), len(after)) < 3 or before[:2] != after[:2]:
            return None
        target = np.array([after[axis] for axis in _to_last(len(after))], np.int64)
        return self.add(node, "Reshape", [self.twins[x], self.editor.constant(target, "shape")], {})

    def pad(self, node: ir.Node) -> ir.Value | None:
        x, amounts = operand(node, 0), constant(operand(node, 1))
        rank = len(dims(x))
        if x not in self.twins or amounts is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
            return None
        order = _to_last(rank)
        moved = np.array([amounts[axis] for axis in (*order, *(axis + rank for axis in order))], np.int64)
        inputs = [self.twins[x], self.editor.constant(moved, "pads")]
        inputs += [value for value in node.inputs[2:3] if value is not None]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return self.add(node, "Pad", inputs, attributes)


def _without_unread_border(x: ir.Value, read: list[int]) -> ir.Value:
    """What was padded behind its end, where the first `read` rows and columns are exactly what was padded.

    diffusers pads a downsampler's input by one row and column, which the pool beside the convolution never reads.
    """
    pad = x.producer()
    if pad is None or not is_op(pad, "Pad") or len(pad.inputs) > 3:
        return x
    amounts, whole = constant(operand(pad, 1)), operand(pad, 0)
    if amounts is None or np.any(amounts[:4]) or np.any(amounts[4:6]) or list(dims(whole)[2:]) != read:
        return x
    return whole


def _pads_itself(node: ir.Node) -> bool:
    attribute = node.attributes.get("auto_pad")
    return attribute is not None and attribute.as_string() not in ("", "NOTSET")


def _to_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def _to_first(rank: int) -> tuple[int, ...]:
    return (0, rank - 1, *range(1, rank - 1))


def _free_transposes(editor: Editor) -> None:
    """A Transpose that keeps the order of the axes longer than 1 moves nothing: make it a Reshape."""
    for node in editor.nodes():
        if node.graph is None or node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
            continue
        source = operand(node, 0)
        shape = dims(source)
        kept = [axis for axis in ints(node, "perm", tuple(reversed(range(len(shape))))) if shape[axis] > 1]
        if kept != sorted(kept):
            continue
        output = node.outputs[0]
        target = editor.constant(np.array(dims(output), np.int64), "shape")
        outputs = [(f"{output.name}.view", output.dtype or _F32, dims(output))]
        editor.replace(output, editor.add("Reshape", [source, target], node, outputs)[0])
