"""Fold constants, drop what does nothing, and give every value a static shape.

onnxsim folds constants and removes no-ops; onnx_ir merges equal subexpressions and initialisers. Both drop or mix
up node metadata, so the module paths are put back afterwards, by output name; a node that onnxsim made itself takes
the path of the node that it feeds. Packed weights stay packed: calls of model-local functions are not folded.

Exact: constants are folded by ONNX Runtime itself, and onnxsim's fusions that change the order of float32 operations
are off.
"""

import onnx
import onnx_ir as ir
import onnxsim
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from edgedm.errors import InvalidModelError
from edgedm.ops import infer_shapes
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import MODULE, Editor, dims, is_op, operand

REORDERING = [
    "fuse_add_bias_into_conv",
    "fuse_bn_into_conv",
    "fuse_matmul_add_bias_into_gemm",
    "fuse_transpose_into_gemm",
    "fuse_mul_into_conv",
    "fuse_preceding_mul_into_conv",
    "fuse_consecutive_mul",
    "fuse_rms_norm",
    "fuse_attention",
    "fuse_qkv",
    "rewrite_where",
]
"""onnxsim's optimisers that change which float32 operations are done, or in which order (onnxsim is pinned, and
`optimize --check` shows what a newer one adds)."""

_LIFT = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)

_CLEAN_UPS = [
    _LIFT,
    IdentityEliminationPass(),
    DeduplicateInitializersPass(),
    CommonSubexpressionEliminationPass(),
    RemoveUnusedNodesPass(),
]


class Simplify(GraphPass):
    """onnxsim, onnx_ir's clean-ups and static shapes; only metadata of this project is kept on nodes."""

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float]:
        """See the module."""
        before = len(model.graph)
        modules = {value.name: node.metadata_props.get(MODULE) for node in model.graph for value in node.outputs}
        outputs = [value.name for value in model.graph.outputs]
        _LIFT(model)
        simplified = _onnxsim(model)
        for each in _CLEAN_UPS:
            each(simplified)
        _restore_outputs(simplified.graph, outputs)
        _restore_modules(simplified.graph, modules)
        infer_shapes(simplified)
        for node in simplified.graph:
            for value in node.outputs:
                dims(value)
        model.graph = editor.graph = simplified.graph
        return {"nodes.removed": before - len(model.graph)}


def _onnxsim(model: ir.Model) -> ir.Model:
    proto = ir.serde.serialize_model(model)
    try:
        simplified, _ = onnxsim.simplify(proto, skipped_optimizers=REORDERING, initializers_as_constants=True)
    except (RuntimeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidModelError(f"onnxsim rejects the graph: {error}") from error
    return ir.serde.deserialize_model(simplified)


def _restore_outputs(graph: ir.Graph, names: list[str | None]) -> None:
    """Give every output its own name again: of outputs that are equal, the clean-ups may keep one node for all.

    The first of them is the value itself; the others are copies that nothing reads, at the end, in order.
    """
    for value in dict.fromkeys(graph.outputs):
        maker = value.producer()
        if maker is not None and is_op(maker, "Identity"):
            _read_source(graph, maker)
    seen: set[ir.Value] = set()
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        maker = value.producer()
        if value in seen:
            maker = ir.node("Identity", [value])
            copy = maker.outputs[0]
            copy.type, copy.shape = value.type, value.shape
            graph.outputs[index] = value = copy
        seen.add(value)
        value.name = name
        if maker is not None and is_op(maker, "Identity"):
            maker.name = f"{name}.copy"
            graph.append(maker)


def _read_source(graph: ir.Graph, identity: ir.Node) -> None:
    """Let all read what `identity` copies, the outputs too unless that is an input or a constant."""
    source, copy = operand(identity, 0), identity.outputs[0]
    for node, index in list(copy.uses()):
        node.replace_input_with(index, source)
    if source.producer() is not None:
        copy.replace_all_uses_with(source, replace_graph_outputs=True)
        graph.remove(identity, safe=True)


def _restore_modules(graph: ir.Graph, modules: dict[str | None, str | None]) -> None:
    for node in reversed(graph):
        known = [modules.get(value.name) for value in node.outputs]
        readers = [user.metadata_props.get(MODULE) for value in node.outputs for user in value.consumers()]
        module = next((path for path in [*known, *readers] if path), None)
        node.metadata_props.clear()
        node.doc_string = None
        if module:
            node.metadata_props[MODULE] = module
        for value in node.outputs:
            value.metadata_props.clear()
