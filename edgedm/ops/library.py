"""The ONNX functions of the domain, ready to attach to a model."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgedm.ops.domain import DOMAIN, IR_VERSION, ONNX_OPSET, VERSION
from edgedm.ops.functions import (
    binarize,
    binary_conv,
    binary_weight_conv,
    channels_last,
    group_norm,
    pack_bits,
    parts,
    quant_conv,
    quant_matmul,
    quantize_codes,
    quantize_uniform,
    timestep_lookup,
    unpack_bits,
)
from edgedm.ops.opset import PARTS_DOMAIN

_SCRIPTS = [
    binarize.Binarize,
    unpack_bits.UnpackBits,
    unpack_bits.UnpackBitsLinear,
    timestep_lookup.TimestepLookup,
    pack_bits.PackBits,
    pack_bits.PackBitsMeanAbs,
    quantize_codes.QuantizeCodes,
    quantize_uniform.QuantizeUniform,
    quantize_uniform.QuantizeHeads,
    binary_conv.BinaryConv,
    binary_conv.BinaryGemm,
    binary_weight_conv.BinaryWeightConv,
    binary_weight_conv.BinaryWeightGemm,
    quant_conv.QuantConv,
    quant_conv.QuantGemm,
    quant_matmul.QuantMatMul,
    group_norm.GroupNorm,
    group_norm.GroupNormSilu,
    group_norm.GroupNormSiluPack,
    group_norm.GroupNormSiluQuantize,
    group_norm.GroupNormSiluQuantizeUniform,
    channels_last.FloatConv,
    channels_last.UpsampleNearest,
    channels_last.AveragePool2d,
]

_PARTS = [
    parts.UnpackRows,
    parts.PackRows,
    parts.Positive,
    parts.MeanAbs,
    parts.Codes,
    parts.UniformCodes,
    parts.Normalize,
    parts.Silu,
    parts.AddResidual,
]


def attach_functions(model: ir.Model) -> None:
    """Give `model` exactly the `edgedm` functions that its nodes call, and import the domain if there are any."""
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
    for identifier in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[identifier]
    for name in sorted(used):
        function = FUNCTIONS[name].clone()
        model.functions[function.identifier()] = function
    if used:
        model.opset_imports[DOMAIN] = VERSION
    else:
        model.opset_imports.pop(DOMAIN, None)


def _compile(script: Any) -> ir.Function:
    """Turn a script into a function of standard ops: the shared parts are inlined.

    Each in a model of its own, so that a function's bytes depend on nothing but its script and its parts.
    """
    functions = [ir.serde.deserialize_function(each.to_function_proto()) for each in [script, *_PARTS]]
    empty = ir.Graph([], [], nodes=[], opset_imports={"": ONNX_OPSET, DOMAIN: VERSION, PARTS_DOMAIN: 1})
    model = ir.Model(empty, ir_version=IR_VERSION, functions=functions)
    InlinePass(criteria=lambda function: function.domain == PARTS_DOMAIN)(model)
    (function,) = [each for each in model.functions.values() if each.domain == DOMAIN]
    function.opset_imports.clear()
    function.opset_imports[""] = ONNX_OPSET
    return function


FUNCTIONS: Mapping[str, ir.Function] = MappingProxyType({script.name: _compile(script) for script in _SCRIPTS})
