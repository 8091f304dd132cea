"""Which operand shapes each op of the domain takes, and which types it gives.

One function an op: (input shapes, attributes) -> types of the outputs; ValueError says which operand doesn't fit.
The layouts are those of the docstrings in `edgedm.ops.functions`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from edgedm.ops.packing import packed_bytes

Shape = tuple[int, ...]
TensorType = tuple[ir.DataType, Shape]
Attributes = Mapping[str, Any]

_F32, _U8, _I8 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT8

KEPT = ir.DataType.UNDEFINED
"""The dtype of an output that has that of the first input."""


def output_types(op: str, shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    """Return dtype and shape of every output of the `edgedm` op `op` for inputs of `shapes`.

    Raises KeyError for an op outside the domain or a missing attribute and ValueError where an operand, or the
    number of operands, doesn't fit.
    """
    return _RULES[op](shapes, attributes)


def _binarize(shapes: Sequence[Shape], _: Attributes) -> list[TensorType]:
    x, threshold = shapes
    _broadcast("threshold", threshold, x)
    return [(_F32, x)]


def _unpack_bits(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    ((out, height, width, row),) = shapes
    _equal("bytes in a row", row, packed_bytes(attributes["channels"]))
    return [(_F32, (out, attributes["channels"], height, width))]


def _unpack_bits_linear(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    ((out, row),) = shapes
    _equal("bytes in a row", row, packed_bytes(attributes["channels"]))
    return [(_F32, (out, attributes["channels"]))]


def _timestep_lookup(shapes: Sequence[Shape], _: Attributes) -> list[TensorType]:
    (bins, columns), edges, timestep = shapes
    _equal("edges", edges, (bins,))
    _equal("timestep", timestep, (1,))
    return [(_F32, (columns,))]


def _pack_bits(shapes: Sequence[Shape], _: Attributes) -> list[TensorType]:
    x, threshold = shapes
    _equal("threshold", threshold, x[-1:])
    return [(_U8, _packed(x))]


def _pack_bits_mean_abs(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    return [*_pack_bits(shapes, attributes), (_F32, (*shapes[0][:-1], 1))]


def _quantize_codes(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    x, step = shapes
    _equal("step", step, ())
    if not -128 <= attributes.get("low", -8) <= attributes.get("high", 7) <= 127:
        raise ValueError("low and high: expected -128 <= low <= high <= 127")
    return [(_I8, x)]


def _quantize_uniform(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    x, divisor, step, zero = shapes
    if divisor != (1,):
        _equal("divisor", divisor, x[-1:])
    _equal("step", step, ())
    _equal("zero", zero, ())
    _check_bits(attributes, "bits")
    return [(_U8, x)]


def _quantize_heads(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    x, step, zero = shapes
    _one_a_head(x, step=step, zero=zero)
    _check_bits(attributes, "bits")
    return [(_U8, x)]


def _binary_conv(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    bits, weight, multiplier, pixel_scale, addend, residual, residual_scale = shapes
    _equal("bytes in a row of bits", bits[-1], packed_bytes(attributes["channels"]))
    _equal("bytes in a row of the weight", weight[-1], packed_bytes(attributes["channels"]))
    out = _convolved(bits, weight[0], weight[1:3], attributes)
    if pixel_scale != (1, 1, 1, 1):
        _equal("pixel_scale", pixel_scale, (*out[:-1], 1))
    _epilogue(out, multiplier, addend, residual, residual_scale)
    return [(_F32, out)]


def _binary_gemm(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    bits, weight, *epilogue = shapes
    _equal("bytes in a row of bits", bits[-1], packed_bytes(attributes["channels"]))
    _equal("weight", weight, (weight[0], packed_bytes(attributes["channels"])))
    _epilogue((*bits[:-1], weight[0]), *epilogue)
    return [(_F32, (*bits[:-1], weight[0]))]


def _binary_weight_conv(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    codes, weight, *epilogue = shapes
    _equal("bytes in a row of the weight", weight[-1], packed_bytes(codes[-1]))
    out = _convolved(codes, weight[0], weight[1:3], attributes)
    _epilogue(out, *epilogue)
    return [(_F32, out)]


def _binary_weight_gemm(shapes: Sequence[Shape], _: Attributes) -> list[TensorType]:
    codes, weight, *epilogue = shapes
    _equal("weight", weight, (weight[0], packed_bytes(codes[-1])))
    _epilogue((*codes[:-1], weight[0]), *epilogue)
    return [(_F32, (*codes[:-1], weight[0]))]


def _quant_conv(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    codes, zero, weight, weight_zero, multiplier, step, *epilogue = shapes
    _equal("input channels of the weight", weight[3:], codes[-1:])
    out = _convolved(codes, weight[0], weight[1:3], attributes)
    _quant_operands(out, zero, weight_zero, step, attributes)
    _epilogue(out, multiplier, *epilogue)
    return [(_F32, out)]


def _quant_gemm(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    codes, zero, weight, weight_zero, multiplier, step, *epilogue = shapes
    _equal("weight", weight, (weight[0], codes[-1]))
    out = (*codes[:-1], weight[0])
    _quant_operands(out, zero, weight_zero, step, attributes)
    _epilogue(out, multiplier, *epilogue)
    return [(_F32, out)]


def _quant_operands(out: Shape, zero: Shape, weight_zero: Shape, step: Shape, attributes: Attributes) -> None:
    _equal("zero", zero, ())
    _equal("weight_zero", weight_zero, out[-1:])
    _equal("step", step, ())
    _check_bits(attributes, "bits", "weight_bits")


def _quant_matmul(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    a, a_zero, a_step, b, b_zero, b_step = shapes
    _one_a_head(a, a_zero=a_zero, a_step=a_step)
    _one_a_head(b, b_zero=b_zero, b_step=b_step)
    _equal("heads of b", b[1], a[1])
    transposed = attributes.get("transposed", 1)
    if transposed not in (0, 1):
        raise ValueError(f"transposed: expected 0 or 1, got {transposed}")
    columns, depth = b[2:] if transposed else b[:1:-1]
    _equal("depth of b", depth, a[3])
    _check_bits(attributes, "bits", "other_bits")
    return [(_F32, (*a[:3], columns))]


def _one_a_head(x: Shape, **operands: Shape) -> None:
    if len(x) != 4 or x[0] != 1:
        raise ValueError(f"expected one image in heads, [1, H, T, D], got {x}")
    for what, shape in operands.items():
        _equal(what, shape, x[1:2])


def _check_bits(attributes: Attributes, *names: str) -> None:
    for name in names:
        if not 2 <= attributes.get(name, 4) <= 8:
            raise ValueError(f"{name}: expected 2..8, got {attributes[name]}")


def _group_norm(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    x, gamma, beta = shapes
    groups = attributes["groups"]
    if x[0] != 1 or groups < 1 or x[-1] % groups or not isinstance(attributes["epsilon"], float):
        raise ValueError(f"expected one image and channels in whole groups, got {x} in {groups} groups")
    _equal("gamma", gamma, x[-1:])
    _equal("beta", beta, x[-1:])
    return [(_F32, x)]


def _group_norm_silu_pack(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    x, *affine, threshold = shapes
    return [*_group_norm([x, *affine], attributes), *_pack_bits_mean_abs([x, threshold], attributes)]


def _group_norm_silu_quantize(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    x, *affine, step = shapes
    _group_norm([x, *affine], attributes)
    return _quantize_codes([x, step], attributes)


def _group_norm_silu_quantize_uniform(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    x, gamma, beta, *grid = shapes
    _group_norm([x, gamma, beta], attributes)
    return _quantize_uniform([x, *grid], attributes)


def _float_conv(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    x, weight, bias = shapes
    _equal("weight", weight[1:2], x[-1:])
    _equal("bias", bias, weight[:1])
    return [(_F32, _convolved(x, weight[0], weight[2:], attributes))]


def _upsample_nearest(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    ((batch, height, width, channels),) = shapes
    factor = attributes["factor"]
    if factor < 1:
        raise ValueError(f"factor {factor}, expected 1 or more")
    return [(KEPT, (batch, height * factor, width * factor, channels))]


def _average_pool(shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    ((batch, height, width, channels),) = shapes
    rows, columns = attributes["kernel"]
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise ValueError(f"kernel {rows} x {columns} on {height} x {width} pixels")
    return [(_F32, (batch, height // rows, width // columns, channels))]


def _convolved(image: Shape, out: int, kernel: Shape, attributes: Attributes) -> Shape:
    (batch, height, width, _), (rows, columns) = image, kernel
    (top, left, bottom, right), strides = attributes["pads"], attributes["strides"]
    if batch != 1 or len(strides) != 2 or min(strides) < 1 or min(top, left, bottom, right) < 0:
        raise ValueError(f"batch {batch}, strides {strides}, pads {attributes['pads']}: expected 1, >= 1, >= 0")
    pixels = (
        (height + top + bottom - rows) // strides[0] + 1,
        (width + left + right - columns) // strides[1] + 1,
    )
    if min(pixels) < 1:
        raise ValueError(f"kernel {rows} x {columns} is larger than the padded image")
    return (1, *pixels, out)


def _epilogue(out: Shape, multiplier: Shape, addend: Shape, residual: Shape, residual_scale: Shape) -> None:
    _equal("multiplier", multiplier, out[-1:])
    _equal("addend", addend, out[-1:])
    _broadcast("residual", residual, out)
    _equal("residual_scale", residual_scale, (1,))


def _equal(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ValueError(f"{what}: expected {expected}, got {got}")


def _broadcast(what: str, shape: Shape, to: Shape) -> None:
    padded = (1,) * (len(to) - len(shape)) + shape
    if len(padded) != len(to) or any(got not in (1, size) for got, size in zip(padded, to, strict=True)):
        raise ValueError(f"{what}: {shape} does not broadcast to {to}")


def _packed(shape: Shape) -> Shape:
    return (*shape[:-1], packed_bytes(shape[-1]))


_RULES: dict[str, Callable[[Sequence[Shape], Attributes], list[TensorType]]] = {
    "Binarize": _binarize,
    "UnpackBits": _unpack_bits,
    "UnpackBitsLinear": _unpack_bits_linear,
    "TimestepLookup": _timestep_lookup,
    "PackBits": _pack_bits,
    "PackBitsMeanAbs": _pack_bits_mean_abs,
    "QuantizeCodes": _quantize_codes,
    "QuantizeUniform": _quantize_uniform,
    "QuantizeHeads": _quantize_heads,
    "BinaryConv": _binary_conv,
    "BinaryGemm": _binary_gemm,
    "BinaryWeightConv": _binary_weight_conv,
    "BinaryWeightGemm": _binary_weight_gemm,
    "QuantConv": _quant_conv,
    "QuantGemm": _quant_gemm,
    "QuantMatMul": _quant_matmul,
    "GroupNorm": _group_norm,
    "GroupNormSilu": _group_norm,
    "GroupNormSiluPack": _group_norm_silu_pack,
    "GroupNormSiluQuantize": _group_norm_silu_quantize,
    "GroupNormSiluQuantizeUniform": _group_norm_silu_quantize_uniform,
    "FloatConv": _float_conv,
    "UpsampleNearest": _upsample_nearest,
    "AveragePool2d": _average_pool,
}
