"""The ONNX domain `edgedm`: every op is a model-local function of standard ONNX ops.

An op's ONNX function is its only definition; kernels and torch functions are tested against it. The torch side
needs torch but not onnx, the graph side needs onnx but not torch, so both are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edgedm.ops.domain import DOMAIN, IR_VERSION, ONNX_OPSET, VERSION

if TYPE_CHECKING:
    from edgedm.ops.codes import pack_codes, unpack_codes
    from edgedm.ops.library import FUNCTIONS, attach_functions
    from edgedm.ops.shapes import infer_shapes
    from edgedm.ops.torch_ops import (
        binarize,
        dequantize_weight,
        quantize4,
        quantize_uniform,
        timestep_lookup,
        unpack_bits,
    )

_MEMBERS = {
    "binarize": "torch_ops",
    "unpack_bits": "torch_ops",
    "timestep_lookup": "torch_ops",
    "quantize4": "torch_ops",
    "quantize_uniform": "torch_ops",
    "dequantize_weight": "torch_ops",
    "pack_codes": "codes",
    "unpack_codes": "codes",
    "FUNCTIONS": "library",
    "attach_functions": "library",
    "infer_shapes": "shapes",
}

__all__ = [
    "DOMAIN",
    "FUNCTIONS",
    "IR_VERSION",
    "ONNX_OPSET",
    "VERSION",
    "attach_functions",
    "binarize",
    "dequantize_weight",
    "infer_shapes",
    "pack_codes",
    "quantize4",
    "quantize_uniform",
    "timestep_lookup",
    "unpack_bits",
    "unpack_codes",
]


def __getattr__(name: str) -> Any:
    if name not in _MEMBERS:
        raise AttributeError(f"module 'edgedm.ops' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgedm.ops.{_MEMBERS[name]}"), name)
