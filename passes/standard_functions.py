"""Standard operators that ONNX itself defines by simpler ones, spelled out by that very definition.

ONNX Runtime runs GroupNormalization by its definition (with the variance as a difference of means, which cancels),
so this is what rounding has to be judged by.
"""

import onnx

DOMAIN = "edgedm.standard"
_SPELLED_OUT = ("GroupNormalization",)


def spell_out(model: onnx.ModelProto, types: dict[str, onnx.ValueInfoProto]) -> onnx.ModelProto:
    """A copy of `model` where such nodes call functions; `types` gives dtype and shape of every value by name."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    for index, node in enumerate(result.graph.node):
        if node.domain == "" and node.op_type in _SPELLED_OUT:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
            operands = [types[name].type.SerializeToString() for name in node.input]
            function = onnx.FunctionProto()
            body = schema.get_context_dependent_function(node.SerializeToString(), operands)  # type: ignore[attr-defined]  # missing in its stub
            function.ParseFromString(body)
            function.domain, function.name = DOMAIN, f"{node.op_type}_{index}"
            result.functions.append(function)
            node.domain, node.op_type = function.domain, function.name
    return result
