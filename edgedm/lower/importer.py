"""ONNX -> Relax: TVM's importer, with edgedm's ops (and MatMul, Softmax, Transpose) as calls of the target's kernels.

TVM's importer knows ops by name and ignores their domain, so the walk over the nodes is ours and each standard op
goes to TVM's converter. A kernel call is `call_tir` with packed constants; its scratch tensors are extra outputs
that nobody reads, so the memory plan finds room for them. Kernel functions are opaque to Relax's fusion and are
shared between equal calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, onnx_input

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.lower.code_widths import UNKNOWN, code_widths
from edgedm.lower.concatenate import WORTH_COPYING, concatenation
from edgedm.ops import DOMAIN
from edgedm.passes.editing import MODULE
from edgedm.targets.kernels.select import select
from edgedm.targets.kernels.spec import Kernel, TensorSpec
from edgedm.targets.target import Target

OURS = ("MatMul", "Softmax", "Transpose")  # standard ops that have a kernel of ours, Transpose not for every perm
SIGNED_CODES = ("BinaryWeightConv", "BinaryWeightGemm")  # their kernels depend on the width of the codes
MARK = "edgedm.kernel"
FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
OPAQUE = 8  # Relax's kOpaque: never fused with neighbours


@dataclass(frozen=True)
class KernelCall:
    """One node that became a kernel call: what the manifest says about it."""

    op: str
    node: str
    module: str
    inputs: tuple[str, ...]  # names of the node's inputs that are parameters, in their order
    outputs: tuple[str, ...]
    kernel: Kernel
    function: str  # name of the kernel's function in the Relax module
    operands: tuple[TensorSpec, ...]  # of all the node's inputs, as the graph holds them
    attributes: Mapping[str, Any]


def import_graph(model: onnx.ModelProto, target: Target) -> tuple[Any, list[KernelCall]]:
    """Return the Relax module of a channels-last graph, and its kernel calls in order.

    Raises UnsupportedError naming the node that neither edgedm nor TVM's importer can take.
    """
    importer = _Importer(target)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return importer.from_onnx(model.graph, opset), importer.calls


class _Importer(ONNXGraphImporter):  # type: ignore[misc]  # TVM is untyped
    def __init__(self, target: Target) -> None:
        super().__init__({}, "float32", sanitize=False)
        self.target = target
        self.calls: list[KernelCall] = []
        self._functions: dict[str, Any] = {}  # kernel key or own name -> GlobalVar
        self._constants: dict[str, NDArray[Any]] = {}
        self._code_widths: Mapping[str, int] = {}

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        standard = onnx.GraphProto()
        standard.node.extend(node for node in graph.node if node.domain in ("", "ai.onnx"))
        try:
            super()._check_for_unsupported_ops(standard)
        except Exception as error:  # TVM raises its own error classes
            raise UnsupportedError(f"graph {graph.name!r}: {error}") from error

    def _parse_graph_initializers(self, graph: onnx.GraphProto) -> None:
        """TVM stores no packed 4-bit constants: those reach kernels by our own hands, in the kernels' layouts."""
        self._constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
        wide = onnx.GraphProto()
        wide.initializer.extend(each for each in graph.initializer if each.data_type not in FOUR_BITS)
        super()._parse_graph_initializers(wide)

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        self._code_widths = code_widths(graph)
        for node in graph.node:
            results = self._kernel(node) if node.domain == DOMAIN else self._standard(node)
            if len(results) < len(node.output):
                raise UnsupportedError(f"node {node.name!r} ({node.op_type}): expected {len(node.output)} outputs")
            self._nodes.update(zip(node.output, results, strict=False))

    def _standard(self, node: onnx.NodeProto) -> Sequence[Any]:
        if node.op_type in OURS and len(node.output) == 1 and self._is_ours(node):
            try:
                return self._kernel(node)
            except UnsupportedError:
                pass  # a shape without a kernel: TVM's own lowering
        inputs = onnx_input()
        for name in node.input:
            if name and name not in self._nodes:
                raise UnsupportedError(f"node {node.name!r} ({node.op_type}): no kernel reads 4-bit {name!r}")
            inputs.append(self._nodes[name] if name else None)
        attributes = self._parse_attr(node.attribute)
        attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output)}
        if node.op_type == "Reshape" and inputs[0].ty.dtype.dtype == "uint64":
            return [self._reshape_words(inputs[0], node)]
        if node.op_type == "Gather":
            return [self._gather(inputs[0], node.input[1], attributes.get("axis", 0))]
        if node.op_type == "Concat" and self._worth_copying(node):
            return [self._concat(inputs, attributes["axis"])]
        try:
            result = self._convert_operator(node.op_type, inputs, attributes, self.opset)
        except Exception as error:  # TVM's converters raise anything
            raise UnsupportedError(f"node {node.name!r} ({node.op_type}): TVM cannot import it: {error}") from error
        if isinstance(result, relax.Tuple):
            return list(result)
        if isinstance(result.ty, relax.TupleType):
            return [self.bb.emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))]
        return [result]

    def _is_ours(self, node: onnx.NodeProto) -> bool:
        """Small transposes are better fused with their neighbours; there are no kernels for other dtypes."""
        if node.op_type != "Transpose" or node.input[0] in self._constants:
            return node.op_type != "Transpose"
        spec = _spec(self._nodes[node.input[0]])
        return spec.dtype == "float32" and spec.size >= WORTH_COPYING

    def _worth_copying(self, node: onnx.NodeProto) -> bool:
        tensors = all(isinstance(self._nodes[name].ty, relax.TensorType) for name in node.input)
        size = sum(_spec(self._nodes[name]).size for name in node.input) if tensors else 0
        return size >= WORTH_COPYING and not any(name in self._constants for name in node.input)

    def _concat(self, parts: Sequence[Any], axis: int) -> Any:
        specs = [_spec(part) for part in parts]
        function, result = concatenation(specs, axis % len(specs[0].shape))
        name = str(function.attrs["global_symbol"])
        if name not in self._functions:
            self._functions[name] = self.bb.add_func(opaque(function), name)
        made = [relax.TensorType(result.shape, result.dtype)]
        return self.bb.emit(relax.call_tir(self._functions[name], relax.Tuple(list(parts)), made))

    def _gather(self, data: Any, indices: str, axis: int) -> Any:
        """TVM's own conversion trusts the indices; this one clips them, whatever label or timestep comes in."""
        size = int(data.ty.shape[axis])
        if indices in self._constants:
            wrapped = relax.const(self._constants[indices] % size)
        else:
            given = self._nodes[indices]
            negative = relax.op.less(given, relax.const(0, "int64"))
            wrapped = relax.op.where(negative, relax.op.add(given, relax.const(size, "int64")), given)
        return self.bb.emit(relax.op.take(data, wrapped, axis, mode="clip"))

    def _reshape_words(self, words: Any, node: onnx.NodeProto) -> Any:
        """Reshape packed bits: the graph counts bytes, the kernels words of eight."""
        shape = [int(size) for size in self._constants[node.input[1]]]
        if shape[-1] % 8:
            raise UnsupportedError(
                f"node {node.name!r}: reshapes packed bits to {shape}; rows are multiples of 8 bytes"
            )
        return self.bb.emit(relax.op.reshape(words, [*shape[:-1], shape[-1] // 8]))

    def _kernel(self, node: onnx.NodeProto) -> list[Any]:
        operands = [self._operand(node, name) for name in node.input]
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type in SIGNED_CODES:
            attributes["code_bits"] = self._code_widths.get(node.input[0], UNKNOWN)
        module = next((each.value for each in node.metadata_props if each.key == MODULE), "")
        try:
            kernel = select(node.op_type, operands, attributes, self.target)
        except (UnsupportedError, InvalidModelError) as error:
            raise type(error)(f"node {node.name!r} (module {module or 'unknown'}): {error}") from error
        arguments = [
            self._argument(name, kernel, index) for index, name in enumerate(node.input) if index in kernel.kept
        ]
        made = [relax.TensorType(spec.shape, spec.dtype) for spec in (*kernel.outputs, *kernel.scratch)]
        function = self._function(kernel)
        call = self.bb.emit(relax.call_tir(function, relax.Tuple(arguments), made))
        kept = tuple(node.input[index] for index in kernel.kept)
        outputs = tuple(node.output)
        specs = tuple(_described(each) for each in operands)
        self.calls.append(
            KernelCall(node.op_type, node.name, module, kept, outputs, kernel, function.name_hint, specs, attributes)
        )
        if len(made) == 1:
            return [call]
        return [self.bb.emit(relax.TupleGetItem(call, index)) for index in range(len(kernel.outputs))]

    def _operand(self, node: onnx.NodeProto, name: str) -> TensorSpec | NDArray[Any]:
        if name in self._constants:
            return self._constants[name]
        if not name or name not in self._nodes:
            raise InvalidModelError(f"node {node.name!r} ({node.op_type}): an input is missing")
        return _spec(self._nodes[name])

    def _argument(self, name: str, kernel: Kernel, index: int) -> Any:
        if name not in self._constants:
            return self._nodes[name]
        array = self._constants[name]
        pack = kernel.pack.get(index)
        packed = pack(array) if pack else array
        return relax.const(np.ascontiguousarray(packed).reshape(packed.shape))  # it gives scalars an axis

    def _function(self, kernel: Kernel) -> Any:
        if kernel.key not in self._functions:
            name = str(kernel.function.attrs["global_symbol"])
            self._functions[kernel.key] = self.bb.add_func(opaque(kernel.function), name)
        return self._functions[kernel.key]


def _described(operand: TensorSpec | NDArray[Any]) -> TensorSpec:
    return operand if isinstance(operand, TensorSpec) else TensorSpec(operand.shape, str(operand.dtype))


def opaque(function: Any) -> Any:
    """Keep Relax from fusing the function with its neighbours, and mark it as ours."""
    return function.with_attrs({"op_pattern": OPAQUE, MARK: True})


def is_ours(function: Any) -> bool:
    """Whether a function of the lowered module is a kernel of edgedm's, with its loops as they shall be."""
    return MARK in function.attrs


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(tuple(int(size) for size in value.ty.shape), str(value.ty.dtype.dtype))
