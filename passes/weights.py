"""Recognise a convolution or matrix product whose weight is stored in few bits, in every form that exports produce."""

from dataclasses import dataclass

import onnx_ir as ir

from edgedm.passes.editing import (
    Editor,
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
from edgedm.passes.low_bit import Vector, add_product, channel_vector


@dataclass(frozen=True)
class Match:
    """A product of `activation` with a weight that `unpack` makes a float; or the `refusal`, why it cannot be fused."""

    node: ir.Node
    activation: ir.Value
    unpack: ir.Node
    bias: Vector | None = None
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    refusal: str | None = None

    @property
    def is_conv(self) -> bool:
        """Whether this is a convolution (channels first) rather than a matrix product (channels last)."""
        return self.node.op_type == "Conv"

    @property
    def weight(self) -> ir.Value:
        """The weight as it is stored."""
        return operand(self.unpack, 0)

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return dims(self.unpack.outputs[0])[0]

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return dims(self.unpack.outputs[0])[1]


def match_binary(node: ir.Node) -> Match | None:
    """Match Conv(a, UnpackBits), MatMul(a, Transpose(UnpackBitsLinear)) or Gemm(a, UnpackBitsLinear, transB=1)."""
    match = _match(node)
    kind = "UnpackBits" if is_op(node, "Conv") else "UnpackBitsLinear"
    return match if match is not None and is_edgedm(match.unpack, kind) else None


def match_uniform(node: ir.Node) -> Match | None:
    """Match the same with DequantizeLinear(codes, step, zero) as the weight, unless its codes are computed."""
    match = _match(node)
    if match is None or not is_op(match.unpack, "DequantizeLinear"):
        return None
    computed = match.weight.producer() is not None and constant(match.weight) is None
    return None if computed else match


def _match(node: ir.Node) -> Match | None:
    if is_op(node, "Conv"):
        return _match_conv(node)
    if is_op(node, "MatMul") or is_op(node, "Gemm"):
        return _match_linear(node)
    return None


def _match_conv(node: ir.Node) -> Match | None:
    unpack = operand(node, 1).producer()
    if unpack is None or not unpack.inputs or len(dims(unpack.outputs[0])) < 3:  # fewer is no convolution at all
        return None
    outputs, _, *kernel = dims(unpack.outputs[0])
    bias, refusal = _bias(node, outputs)
    if len(kernel) != 2:
        refusal = f"its weight {dims(unpack.outputs[0])} is not [out, in, height, width]: no other has a low-bit kernel"
    elif constant(operand(unpack, 0)) is None:
        refusal = "its weight is not a constant"
    elif integer(node, "group", 1) != 1:
        refusal = f"grouped convolution (group = {integer(node, 'group', 1)}) has no low-bit kernel"
    elif any(dilation != 1 for dilation in ints(node, "dilations", ())):
        refusal = f"dilated convolution {ints(node, 'dilations', ())} has no low-bit kernel"
    elif ints(node, "kernel_shape", kernel) != tuple(kernel):
        refusal = f"kernel_shape {ints(node, 'kernel_shape', kernel)} contradicts its weight {tuple(kernel)}"
    elif (auto_pad := node.attributes.get("auto_pad")) is not None and auto_pad.as_string() not in ("NOTSET", ""):
        refusal = f"auto_pad {auto_pad.as_string()} is not explicit padding"
    elif len(dims(operand(node, 0))) != 4 or dims(operand(node, 0))[0] != 1:
        refusal = f"expected one image [1, C, H, W], got {dims(operand(node, 0))}"
    strides, pads = ints(node, "strides", (1, 1)), ints(node, "pads", (0, 0, 0, 0))
    return Match(node, operand(node, 0), unpack, bias, strides, pads, refusal)


def _match_linear(node: ir.Node) -> Match | None:
    unpack, transposed = operand(node, 1).producer(), False
    if transposed_by(unpack) == (1, 0):
        assert unpack is not None
        unpack, transposed = operand(unpack, 0).producer(), True
    if unpack is None or not unpack.inputs or len(dims(unpack.outputs[0])) != 2:
        return None
    gemm = is_op(node, "Gemm")
    if gemm:
        transposed ^= integer(node, "transB", 0) == 1
    bias, refusal = _bias(node, dims(unpack.outputs[0])[0])
    if not transposed:
        refusal = "its weight is not transposed: inputs stand on the rows"
    elif constant(operand(unpack, 0)) is None:
        refusal = "its weight is not a constant"
    elif gemm and (integer(node, "transA", 0), number(node, "alpha", 1.0), number(node, "beta", 1.0)) != (0, 1.0, 1.0):
        refusal = "Gemm with transA, alpha or beta has no low-bit kernel"
    return Match(node, operand(node, 0), unpack, bias, refusal=refusal)


def _bias(node: ir.Node, outputs: int) -> tuple[Vector | None, str | None]:
    """The constant bias of a Conv or Gemm, if it has one; or why it cannot be an addend."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None, None
    array = constant(value)
    vector = None if array is None else channel_vector(array, outputs, array.ndim - 1, array.ndim)
    return (vector, None) if vector is not None else (None, "its bias is not a constant per output channel")


def fused_product(
    editor: Editor,
    match: Match,
    family: str,
    operands: dict[str, ir.Value],
    attributes: dict[str, int | list[int]],
) -> ir.Value:
    """Add the product `family`Conv or `family`Gemm for `match`; the result has the axes of the node it replaces.

    `operands` by name; the bias becomes the addend, and what is missing is neutral.
    """
    node = match.node
    if match.bias is not None:
        operands = operands | {"addend": editor.constant(match.bias, f"{match.weight.name}.addend")}
    if not match.is_conv:
        shape = (*dims(operands["activation"])[:-1], match.outputs)
        return add_product(editor, f"{family}Gemm", operands, node, shape, attributes)
    _, _, height, width = dims(node.outputs[0])
    attributes = attributes | {"strides": list(match.strides), "pads": list(match.pads)}
    y = add_product(editor, f"{family}Conv", operands, node, (1, height, width, match.outputs), attributes)
    return editor.to_first(y, node)
