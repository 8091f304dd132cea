"""Fold weight dilation (DilateQuant, eq. 10-12) into the norm before or into the quantiser after.

Given   h = GroupNorm(x; g, b);  q = Quantize(h / s)      every reader of h such a quantiser, with the same s
Result  h' = GroupNorm(x; g / s, b / s);  q = Quantize(h')
Given   q = Quantize(v / s)                               v anything else: a SiLU, a sum, an attention's result
Result  q = Quantize(v; divisor s)

s is one number a channel; h may be turned round on the way. The first is reassociating, since (n g + b) / s becomes
n (g / s) + b / s; through a SiLU the division cannot move, so the second is what is left there. It is exact: the
quantiser divides by s and then by its step, as the graph did.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import (
    TO_FIRST,
    TO_LAST,
    Editor,
    constant,
    describe,
    dims,
    is_edgedm,
    is_op,
    operand,
    transposed_by,
)
from edgedm.passes.fuse_norm_act_pack import norm_attributes
from edgedm.passes.low_bit import Vector, channel_vector


class FoldWeightDilation(GraphPass):
    """Div by a constant per channel before QuantizeUniform -> gamma and beta of the norm before, or the divisor.

    Figures: how many channels were divided (by other than 1) in a norm and in a quantiser; details: which, by node.
    """

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float]:
        """See the module."""
        channels: dict[str, dict[str, list[int]]] = {"channels.norm": {}, "channels.quantiser": {}}
        for node in editor.nodes():
            if not is_edgedm(node, "QuantizeUniform") or constant(operand(node, 1)) is None:
                continue
            quotient, axis = _before(operand(node, 0), TO_LAST)
            division = quotient.producer()
            if division is None or (dilation := _dilation(division, axis)) is None:
                continue
            norm = _norm_behind(division, dilation)
            if norm is not None:
                _fold_into_norm(editor, norm, dilation)
                channels["channels.norm"][describe(norm)] = _dilated(dilation)
            elif np.all(constant(operand(node, 1)) == 1):
                _fold_into_quantiser(editor, node, division, dilation)
                channels["channels.quantiser"][describe(node)] = _dilated(dilation)
            else:
                editor.refuse(node, "it has a divisor already")
        editor.details.update({kind: found for kind, found in channels.items() if found})
        return {kind: float(sum(map(len, found.values()))) for kind, found in channels.items()}


def _before(value: ir.Value, turn: dict[int, tuple[int, ...]]) -> tuple[ir.Value, int]:
    """(v, 1) if a transpose of v by `turn`, to or from channels first, makes `value`; else (`value`, its last axis).

    So with TO_LAST the channels of a channels-last value, with TO_FIRST those of what a norm made, are found.
    """
    producer, rank = value.producer(), len(dims(value))
    if producer is not None and transposed_by(producer) == turn.get(rank, ()):
        return operand(producer, 0), 1
    return value, rank - 1


def _dilation(division: ir.Node, axis: int) -> Vector | None:
    """The divisor of a Div by a constant per channel, where `axis` is that of the channels; else None."""
    if not is_op(division, "Div") or dims(operand(division, 0)) != dims(division.outputs[0]):
        return None
    array, shape = constant(operand(division, 1)), dims(division.outputs[0])
    return None if array is None else channel_vector(array, shape[axis], axis, len(shape))


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int] | None]:
    """Who reads `value`, and as which operand, through transposes; None stands for the graph's caller."""
    if value.is_graph_output():
        yield None
    for node, index in value.uses():
        if transposed_by(node) in (TO_LAST.get(len(dims(value))), TO_FIRST.get(len(dims(value)))):
            yield from _readers(node.outputs[0])
        else:
            yield node, index


def _norm_behind(division: ir.Node, dilation: Vector) -> ir.Node | None:
    """The GroupNorm that `division` divides, if all that reads it are quantisers behind divisions by the same."""
    norm = _divided_norm(division, dilation)
    if norm is None:
        return None
    affine = [constant(operand(norm, index)) for index in (1, 2)]
    if any(array is None or not _keeps_precision(array, dilation) for array in affine):
        return None
    for reader in _readers(norm.outputs[0]):
        if reader is None or reader[1] != 0 or _divided_norm(reader[0], dilation) is not norm:
            return None
        for user in _readers(reader[0].outputs[0]):
            if user is None or user[1] != 0 or not is_edgedm(user[0], "QuantizeUniform"):
                return None
    return norm


def _divided_norm(division: ir.Node, dilation: Vector) -> ir.Node | None:
    """The GroupNorm whose result `division` divides by `dilation` along its channels, perhaps turned channels first."""
    y, axis = _before(operand(division, 0), TO_FIRST)
    norm, divisor = y.producer(), _dilation(division, axis)
    found = norm is not None and is_edgedm(norm, "GroupNorm") and divisor is not None
    return norm if found and np.array_equal(divisor, dilation) else None  # type: ignore[arg-type]  # found: not None


def _keeps_precision(array: Vector, dilation: Vector) -> bool:
    """Whether the quotient neither overflows nor loses bits below float32's normal range."""
    with np.errstate(all="ignore"):
        quotient = array / dilation
    normal = np.abs(quotient) >= np.finfo(np.float32).tiny
    return bool(np.all(np.isfinite(quotient) & (normal | (array == 0))))


def _fold_into_norm(editor: Editor, norm: ir.Node, dilation: Vector) -> None:
    affine = []
    for index, name in ((1, "gamma"), (2, "beta")):
        value = operand(norm, index)
        array = constant(value)
        assert array is not None
        affine.append(editor.constant((array / dilation).astype(np.float32), f"{value.name}.{name}"))
    y = norm.outputs[0]
    (divided,) = editor.add(
        "GroupNorm",
        [operand(norm, 0), *affine],
        norm,
        [(f"{y.name}.divided", ir.DataType.FLOAT, dims(y))],
        norm_attributes(norm),
        domain=DOMAIN,
    )
    for division in dict.fromkeys(reader[0] for reader in _readers(y) if reader is not None):
        result = division.outputs[0]
        same = operand(division, 0) is y  # else the division stands behind a transpose to channels first
        editor.replace(result, divided if same else editor.to_first(divided, norm))
    editor.rewritten.append(describe(norm))


def _fold_into_quantiser(editor: Editor, node: ir.Node, division: ir.Node, dilation: Vector) -> None:
    value, quantised = operand(division, 0), operand(node, 0)
    if quantised is not division.outputs[0]:
        value = editor.to_last(value, node)
    node.replace_input_with(0, value)
    node.replace_input_with(1, editor.constant(dilation, f"{operand(division, 1).name}.divisor"))
    editor.rewritten.append(describe(node))


def _dilated(dilation: Vector) -> list[int]:
    """The channels that are divided by other than 1."""
    return [int(channel) for channel in np.flatnonzero(dilation != 1)]
