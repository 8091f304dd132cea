"""Recognise a convolution or matrix product whose weight is unpacked signs, in every form that exports produce."""

from dataclasses import dataclass

import onnx_ir as ir

from edgedm.passes.editing import (
    constant,
    dims,
    integer,
    ints,
    is_edgedm,
    is_op,
    number,
    operand,
    transposed_by,
)
from edgedm.passes.low_bit import Vector, channel_vector, channels_of


@dataclass(frozen=True)
class Match:
    """A product of `activation` with the signs `bits`; or the `refusal`, why it cannot be fused."""

    node: ir.Node
    activation: ir.Value
    bits: ir.Value
    channels: int
    bias: Vector | None = None
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    refusal: str | None = None

    @property
    def is_conv(self) -> bool:
        """Whether this is a convolution (channels first) rather than a matrix product (channels last)."""
        return self.node.op_type == "Conv"


def match_product(node: ir.Node) -> Match | None:
    """Match Conv(a, UnpackBits), MatMul(a, Transpose(UnpackBitsLinear)) or Gemm(a, UnpackBitsLinear, transB=1)."""
    if is_op(node, "Conv") and is_edgedm(operand(node, 1).producer(), "UnpackBits"):
        return _match_conv(node)
    if is_op(node, "MatMul") or is_op(node, "Gemm"):
        return _match_linear(node)
    return None


def _match_conv(node: ir.Node) -> Match:
    unpack = operand(node, 1).producer()
    assert unpack is not None
    bits, channels = operand(unpack, 0), channels_of(unpack)
    kernel = dims(bits)[1:3]
    bias, refusal = _bias(node, dims(bits)[0])
    if constant(bits) is None:
        refusal = "its packed weight is not a constant"
    elif integer(node, "group", 1) != 1:
        refusal = f"grouped convolution (group = {integer(node, 'group', 1)}) has no binary kernel"
    elif any(dilation != 1 for dilation in ints(node, "dilations", ())):
        refusal = f"dilated convolution {ints(node, 'dilations', ())} has no binary kernel"
    elif ints(node, "kernel_shape", kernel) != kernel:
        refusal = f"kernel_shape {ints(node, 'kernel_shape', kernel)} contradicts its weight {kernel}"
    elif (auto_pad := node.attributes.get("auto_pad")) is not None and auto_pad.as_string() not in ("NOTSET", ""):
        refusal = f"auto_pad {auto_pad.as_string()} is not explicit padding"
    elif len(dims(operand(node, 0))) != 4 or dims(operand(node, 0))[0] != 1:
        refusal = f"expected one image [1, C, H, W], got {dims(operand(node, 0))}"
    strides, pads = ints(node, "strides", (1, 1)), ints(node, "pads", (0, 0, 0, 0))
    return Match(node, operand(node, 0), bits, channels, bias, strides, pads, refusal)


def _match_linear(node: ir.Node) -> Match | None:
    producer, transposed = operand(node, 1).producer(), False
    if transposed_by(producer) == (1, 0):
        assert producer is not None
        producer, transposed = operand(producer, 0).producer(), True
    if producer is None or not is_edgedm(producer, "UnpackBitsLinear"):
        return None
    gemm = is_op(node, "Gemm")
    if gemm:
        transposed ^= integer(node, "transB", 0) == 1
    bits = operand(producer, 0)
    bias, refusal = _bias(node, dims(bits)[0])
    if not transposed:
        refusal = "its unpacked weight is not transposed: inputs stand on the rows"
    elif constant(bits) is None:
        refusal = "its packed weight is not a constant"
    elif gemm and (integer(node, "transA", 0), number(node, "alpha", 1.0), number(node, "beta", 1.0)) != (0, 1.0, 1.0):
        refusal = "Gemm with transA, alpha or beta has no binary kernel"
    return Match(node, operand(node, 0), bits, channels_of(producer), bias, refusal=refusal)


def _bias(node: ir.Node, outputs: int) -> tuple[Vector | None, str | None]:
    """The constant bias of a Conv or Gemm, if it has one; or why it cannot be an addend."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None, None
    array = constant(value)
    vector = None if array is None else channel_vector(array, outputs, array.ndim - 1, array.ndim)
    return (vector, None) if vector is not None else (None, "its bias is not a constant per output channel")
