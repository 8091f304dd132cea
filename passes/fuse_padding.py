"""Let a convolution of codes pad by itself where its activation is padded with zeros (diffusers' downsamplers).

Given   q = QuantizeUniform(ToLast(Pad(x, p, 0)), d, s, z);  y = QuantConv(q, z, ...; pads)
Result  q = QuantizeUniform(ToLast(x), d, s, z);  y = QuantConv(q, z, ...; pads + p)
        and likewise QuantizeCodes and BinaryWeightConv.

Exact: 0 / d / s is 0, so what was padded has the code z (QuantizeCodes: 0), and that is what the convolution pads
with. d has no zeros; steps are positive, and z lies on the grid, since the export refuses others. What a Binarize
reads is not folded: the sign of a padded 0 is no 0.
"""

import numpy as np
import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import (
    TO_LAST,
    Editor,
    constant,
    describe,
    dims,
    ints,
    is_edgedm,
    is_op,
    operand,
    transposed_by,
)

_PRODUCTS = {"QuantizeUniform": "QuantConv", "QuantizeCodes": "BinaryWeightConv"}


class FusePadding(GraphPass):
    """Pad with zeros, quantiser, convolution of codes -> quantiser, convolution that pads."""

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            if not is_edgedm(node, *_PRODUCTS) or transposed_by(operand(node, 0).producer()) != TO_LAST[4]:
                continue
            pad = operand(operand(node, 0).producer(), 0).producer()  # type: ignore[arg-type]  # a Transpose made it
            if pad is None or not is_op(pad, "Pad"):
                continue
            amounts = _around_the_image(pad)
            if amounts is None or not _zeros_stay_zeros(node):
                editor.refuse(node, "what it reads is not padded with zeros around the image alone")
            elif not _read_by_products(node):
                editor.refuse(node, "other nodes than convolutions read its codes")
            else:
                _fuse(editor, node, operand(pad, 0), amounts)


def _around_the_image(pad: ir.Node) -> list[int] | None:
    """Top, left, bottom, right of a Pad with zeros of [1, C, H, W]; None of any other."""
    amounts = constant(operand(pad, 1))
    value = constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(())
    mode = pad.attributes.get("mode")
    plain = (mode is None or mode.as_string() == "constant") and (len(pad.inputs) < 4 or pad.inputs[3] is None)
    if not plain or amounts is None or value is None or np.any(value != 0):
        return None
    batch, channels, top, left, *ends = amounts.tolist()
    return [top, left, *ends[2:]] if {batch, channels, *ends[:2]} == {0} and min(amounts) >= 0 else None


def _zeros_stay_zeros(quantise: ir.Node) -> bool:
    divisor = constant(operand(quantise, 1))
    if quantise.op_type == "QuantizeCodes":
        return divisor is not None and bool(divisor > 0)
    return divisor is not None and not np.any((divisor == 0) | np.isnan(divisor))


def _read_by_products(quantise: ir.Node) -> bool:
    codes = quantise.outputs[0]
    readers = [is_edgedm(node, _PRODUCTS[quantise.op_type]) and index == 0 for node, index in codes.uses()]
    return all(readers) and not codes.is_graph_output()


def _fuse(editor: Editor, quantise: ir.Node, x: ir.Value, amounts: list[int]) -> None:
    x = editor.to_last(x, quantise)
    old = quantise.outputs[0]
    (codes,) = editor.add(
        quantise.op_type,
        [x, *(operand(quantise, index) for index in range(1, len(quantise.inputs)))],
        quantise,
        [(f"{x.name}.codes", old.dtype or ir.DataType.UINT8, dims(x))],
        {name: attribute.as_int() for name, attribute in quantise.attributes.items()},
        domain=DOMAIN,
    )
    for product, index in list(old.uses()):
        pads = [own + more for own, more in zip(ints(product, "pads", (0,) * 4), amounts, strict=True)]
        product.attributes["pads"] = ir.AttrInt64s("pads", pads)
        product.replace_input_with(index, codes)
    editor.rewritten.append(describe(quantise))
