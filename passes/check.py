"""`optimize --check`: run the graph before and after a pass and hold them against each other.

An exact pass must give the same bits at every output. A reassociating pass changes regions: the values that it
computes anew under an old name. Each such value is computed by its new region alone, fed with what the graph before
computed at the region's edge, and may differ from the old value by what float32 rounding can do to both: the sum of the
running error bounds of the two regions (Higham, chapter 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.errors import ParityError
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import MODULE, Array, dims
from edgedm.passes.regions import Feeds, Region, Side
from edgedm.passes.split_prepare import PREPARE
from edgedm.passes.standard_functions import spell_out
from edgedm.verify.comparison import Flips, count_flips, worst_use
from edgedm.verify.float64 import evaluate
from edgedm.verify.rounding import Bounded

_MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity")
_DECIDED = ("DequantizeLinear", "Binarize")
"""Results that enter an old region's bound as they were computed: rounding must not decide twice."""

_PACKING = ("PackBits", "PackBitsMeanAbs", "GroupNormSiluPack")
"""Ops whose bytes are packed signs."""

SIGMOID_ERROR = 2.0**-22
"""ONNX Runtime's Sigmoid errs by up to 1.7e-7 whatever its value (measured over -25..25), so far below 0, where the
rounding bound shrinks with the value, the bound does not cover it; a SiLU multiplies it by its argument."""


@dataclass
class Verdict:
    """What the check of one pass found; `failure` says what broke, or is None."""

    name: str
    exact: bool
    regions: int = 0  # values computed anew; of an exact pass: outputs
    identical: int = 0  # of these, how many came out bit by bit the same
    use: float = 0.0  # the largest error over its bound
    flips: int = 0  # codes and bits that rounding decided otherwise
    failure: str | None = None


@dataclass
class Checker:
    """Checks passes on fixed inputs of the whole graph; keeps one verdict a pass."""

    feeds: Sequence[Feeds]
    verdicts: list[Verdict] = field(default_factory=list)
    prefix: str = ""  # of the passes' names

    def check(self, each: GraphPass, before: Side, after: ir.Model) -> Side:
        """Compare the graphs around one pass; raises `ParityError` naming the pass if it broke the model.

        Returns `after` as the side that stands before the next pass.
        """
        verdict = Verdict(self.prefix + each.name, each.exact)
        self.verdicts.append(verdict)
        new = Side(after)
        if new.proto.graph == before.proto.graph:
            return before  # the pass found nothing to do
        if each.exact:
            _check_outputs(verdict, before, new, after.meta.get(PREPARE), self.feeds)
        else:
            _check_regions(verdict, before, new, self.feeds)
        if verdict.failure:
            raise ParityError(f"{verdict.name} changed the model: {verdict.failure}")
        return new


def random_feeds(model: ir.Model, roles: Mapping[str, str], timestep: int) -> dict[str, Array]:
    """Seeded inputs for a graph without golden data: normal floats, `timestep`, label 0, has_state 1."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        name, shape = value.name or "", dims(value)
        if value.dtype == ir.DataType.INT64:
            feeds[name] = np.full(shape, timestep if roles.get(name) == "timestep" else 0, np.int64)
        elif roles.get(name) == "has_state":
            feeds[name] = np.ones(shape, np.float32)
        else:
            feeds[name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def _check_outputs(
    verdict: Verdict, before: Side, after: Side, prepare: ir.Model | None, feeds: Sequence[Feeds]
) -> None:
    rows = Side(prepare) if prepare is not None else None
    for each in feeds:
        old = before.run(each)
        new = after.run({**each, **(rows.run(each) if rows is not None else {})})
        for name, left in old.items():
            verdict.regions += 1
            if same_bits(left, new[name]):
                verdict.identical += 1
            elif verdict.failure is None:
                verdict.failure = f"output {name!r}: {_difference(left, new[name])}; an exact pass must keep every bit"


def _check_regions(verdict: Verdict, before: Side, after: Side, feeds: Sequence[Feeds]) -> None:
    changed = _changed_values(before, after)
    if not changed:
        return
    old_values = before.all_values()
    values = [{**each, **old_values.run(each)} for each in feeds]
    regions = [Region(name, after.edge(name, values[0], _MOVES)) for name in changed]
    new_values = after.separately(regions)
    for known in values:
        for region, new in zip(regions, new_values.run(known).values(), strict=True):
            _judge(verdict, before, after, region, known, new)


def _judge(verdict: Verdict, before: Side, after: Side, region: Region, values: Feeds, new: Array) -> None:
    old = values[region.name]
    verdict.regions += 1
    complaint = None
    if same_bits(old, new):
        verdict.identical += 1
    elif np.issubdtype(old.dtype, np.floating):
        error = np.abs(new.astype(np.float64) - old.astype(np.float64))
        bound = _bound(before, after, region, values)
        verdict.use = max(verdict.use, worst_use(error, bound))
        complaint = _excess(old, new, error, bound)
    else:
        flips = _flips(before, after, region, values, new)
        verdict.flips += flips.total
        complaint = flips.complaint()
        complaint = complaint and f"{complaint}{_first_difference(old, new)}"
    if complaint and verdict.failure is None:
        verdict.failure = f"{region.name!r}{_made_by(after, region.name)}: {complaint}"


def _made_by(side: Side, name: str) -> str:
    """The op and the module of the node that makes a value, in words."""
    maker = side.makers[name]
    module = next((each.value for each in maker.metadata_props if each.key == MODULE), "")
    return f" ({' '.join(filter(None, (maker.op_type, module)))})"


def _excess(old: Array, new: Array, error: Array, bound: Array) -> str | None:
    """Where an error (NaN counts as one) exceeds its bound most, in words."""
    beyond = ~(error <= bound)
    if not beyond.any():
        return None
    worst = np.unravel_index(np.argmax(np.where(beyond, np.nan_to_num(error - bound, nan=np.inf), 0.0)), error.shape)
    where = tuple(int(index) for index in worst)
    return (
        f"changed by {error[worst]:.3g} at {where}: expected {old[worst]:.6g}, got {new[worst]:.6g}, of which float32 "
        f"rounding explains {bound[worst]:.3g}; "
        f"{np.count_nonzero(beyond)} of {error.size} values are beyond their bound"
    )


def same_bits(left: Array, right: Array) -> bool:
    """Whether two arrays agree in dtype, shape and every bit (so -0.0 is not 0.0, and NaN is itself)."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def _difference(left: Array, right: Array) -> str:
    if left.shape != right.shape or left.dtype != right.dtype:
        return f"was {left.dtype} {left.shape}, is {right.dtype} {right.shape}"
    gap = np.abs(left.astype(np.float64) - right.astype(np.float64))
    count = f"{np.count_nonzero(left != right)} of {left.size} values differ, by up to {float(np.max(gap)):.3g}"
    return count + _first_difference(left, right)


def _first_difference(old: Array, new: Array) -> str:
    """Where the first number is another one, to be put behind something else; nothing where only bits differ."""
    if old.shape != new.shape or not np.any(old != new):
        return ""
    place = tuple(int(index) for index in np.argwhere(old != new)[0])
    return f"; first at {place}: expected {float(old[place]):.9g}, got {float(new[place]):.9g}"


def _changed_values(before: Side, after: Side) -> list[str]:
    """Names that both graphs compute, but by different nodes."""
    known = {_signature(node) for node in before.proto.graph.node}
    changed = [node for node in after.proto.graph.node if _signature(node) not in known]
    return [name for node in changed for name in node.output if name in before.makers]


def _signature(node: onnx.NodeProto) -> bytes:
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.ClearField("metadata_props")
    plain.ClearField("name")
    return bytes(plain.SerializeToString(deterministic=True))


def _flips(before: Side, after: Side, region: Region, values: Feeds, new: Array) -> Flips:
    """Codes or packed bits that differ, and whether rounding on either side explains them."""
    packed = _is_packed(after, region.name)
    low, high = (
        [_codes(each.value.astype(new.dtype), packed) for each in _evaluate(before, after, region, values, lean)]
        for lean in (-1, 1)
    )
    return count_flips(_codes(new, packed), _codes(values[region.name], packed), np.minimum(*low), np.maximum(*high))


def _is_packed(side: Side, name: str) -> bool:
    """Whether the bytes of `name` hold eight signs each, rather than a code."""
    maker = side.makers.get(name)
    while maker is not None and maker.op_type in _MOVES:
        maker = side.makers.get(maker.input[0])
    return maker is not None and maker.op_type in _PACKING


def _codes(array: Array, packed: bool) -> NDArray[np.int64]:
    """One integer a decision: packed bits are taken apart."""
    return (np.unpackbits(array, axis=-1, bitorder="little") if packed else array).astype(np.int64)


def _bound(before: Side, after: Side, region: Region, values: Feeds) -> NDArray[np.float64]:
    """How far float32 rounding may take the old and the new value apart."""
    old, new = _evaluate(before, after, region, values)
    return old.bound + new.bound + 2 * _sigmoid_slack(before, region.name, values)


def _sigmoid_slack(side: Side, name: str, values: Feeds) -> NDArray[np.float64] | float:
    """What `SIGMOID_ERROR` makes of h * Sigmoid(h), if that is what `name` holds, perhaps moved; else 0."""
    maker = side.makers.get(name)
    if maker is None:
        return 0.0
    if maker.op_type in _MOVES:
        slack = _sigmoid_slack(side, maker.input[0], values)
        if not isinstance(slack, np.ndarray):
            return slack
        if maker.op_type == "Transpose":
            return slack.transpose(onnx.helper.get_node_attr_value(maker, "perm"))
        return slack.reshape(values[name].shape)
    gates = [gate for gate in map(side.makers.get, maker.input) if gate is not None and gate.op_type == "Sigmoid"]
    if maker.op_type != "Mul" or not gates:
        return 0.0
    return SIGMOID_ERROR * np.abs(values[gates[0].input[0]].astype(np.float64))


def _evaluate(before: Side, after: Side, region: Region, values: Feeds, lean: int = 0) -> tuple[Bounded, Bounded]:
    """The region's value in float64 by the old and by the new nodes, with rounding bounds."""
    old = Region(region.name, before.edge(region.name, region.edge, (), _DECIDED))
    results = []
    for side, each in ((before, old), (after, region)):
        model = spell_out(side.model_of(each), side.types)
        results.append(evaluate(model, {name: values[name] for name in each.edge}, lean)[each.name])
    return results[0], results[1]
