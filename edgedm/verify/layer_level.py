"""Level "layer", teacher-forced: every kernel call on the inputs that the reference itself has there.

The lowered graph runs under ONNX Runtime at several moments of a torch trajectory. Every compiled call is then fed
the reference's values, so that errors do not add up, and judged: (a) its integers follow from its floats by the
ONNX function, without exception; (b) its accumulator equals the int64 result on these inputs, without exception;
(c) its floats are within gamma_n of float64. Runs of calls that Relax fused from standard ops have no names of their
own inside; they are judged where they meet a named value again.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.bundle import Node, Operand
from edgedm.errors import InvalidModelError
from edgedm.verify.attempt import as_graph, attempt
from edgedm.verify.comparison import Flips, snr_db
from edgedm.verify.graphs import Graph
from edgedm.verify.judge import Verdict, judge
from edgedm.verify.op_level import kind_of
from edgedm.verify.probe import Probe
from edgedm.verify.report import Level, Row
from edgedm.verify.sampling import deal
from edgedm.verify.subject import Subject, neutral

Array = NDArray[Any]
DEMAND = "decisions and accumulators without exception, floats within gamma_n"
READS = "what it reads as"
"""How the note of a row begins whose kernel is given other constants than the graph has."""

LOW_BIT = ("BinaryConv", "BinaryGemm", "BinaryWeightConv", "BinaryWeightGemm", "QuantConv", "QuantGemm", "QuantMatMul")


@dataclass(frozen=True)
class _Slot:
    """What lies in a place of memory: a value of the reference under all its names, or something in between."""

    array: Array
    sources: frozenset[str]  # the named values that it was computed from; of a named value: its names


@dataclass(frozen=True)
class Moment:
    """A step of one image, and every graph's feeds there in the lowered graph's layout."""

    step: int
    image: int
    feeds: Mapping[str, Mapping[str, Array]]

    @property
    def name(self) -> str:
        """Which step of which image, for complaints."""
        return f"step {self.step}, image {self.image}"


@dataclass
class _Tally:
    """What one kernel call did at all moments."""

    use: float = 0.0
    operations: int = 0
    flips: Flips = field(default_factory=Flips)
    accumulators: int = 0
    complaint: str = ""
    moments: list[dict[str, float]] = field(default_factory=list)

    def record(self, moment: Moment, verdict: Verdict) -> None:
        """Keep what the call did at one moment, for the plots over timesteps."""
        found = {"step": float(moment.step), "codes": float(verdict.flips.codes), "flips": float(verdict.flips.total)}
        if verdict.error is not None:
            found["snr_db"] = snr_db(verdict.error)
        self.moments.append(found)

    def add(self, verdict: Verdict, where: str) -> None:
        self.use, self.operations = max(self.use, verdict.use), max(self.operations, verdict.operations)
        self.flips = self.flips + verdict.flips
        if verdict.complaint and not self.complaint:
            self.complaint = f"{where}: {verdict.complaint}"


def layer_level(
    probe: Probe,
    graphs: Mapping[str, Graph],
    moments: Sequence[Moment],
    share: Callable[[int], int | None] = lambda _: None,
) -> Level:
    """Judge calls at all `moments`, and the constants that every call reads.

    Every call of a graph at each moment, or `share` of their number, other ones at each.
    """
    rows: list[Row] = []
    low_bit = 0
    flips, accumulators, unnamed, left_out, constants = Flips(), 0, 0, 0, 0
    for name in graphs:
        teacher = _Teacher(probe, graphs[name], probe.calls(name))
        dealt = deal(teacher.calls, kind_of, len(moments), share(len(teacher.calls)))
        for moment, chosen in zip(moments, dealt, strict=True):
            teacher.run(moment, moment.feeds[name], {node.index for node in chosen})
        for node in teacher.calls:
            constants += teacher.judge_constants(node)
            tally = teacher.tallies.get(node.index)
            if tally is None:
                unnamed += node.index in teacher.judged
                left_out += node.index not in teacher.judged
                continue
            rows.append(_row(node, tally))
            low_bit += node.op in LOW_BIT
            flips, accumulators = flips + tally.flips, accumulators + tally.accumulators
    figures = {
        "low_bit_layers": float(low_bit),
        "accumulators": float(accumulators),
        "worst_use_of_bound": max((row.figures["use of bound"] for row in rows), default=0.0),
        "constants": float(constants),
        "codes": float(flips.codes),
        "flips": float(flips.total),
        "inside_segments": float(unnamed),
        "left_out": float(left_out),
    }
    return Level("layer", DEMAND, tuple(rows), figures)


def _row(node: Node, tally: _Tally) -> Row:
    complaint = tally.complaint or tally.flips.complaint() or ""
    name = f"{node.op} {node.module or node.kernel.split('_', 2)[-1]}"
    figures = {"n": float(tally.operations), "use of bound": tally.use}
    if tally.flips.codes:
        figures |= {"codes": float(tally.flips.codes), "flips": float(tally.flips.total)}
    return Row(name, not complaint, figures, complaint, tuple(tally.moments))


class _Teacher:
    """Walks the calls of one graph, feeding each the reference's values."""

    def __init__(self, probe: Probe, graph: Graph, calls: Sequence[Node]) -> None:
        self.probe, self.graph, self.calls = probe, graph, calls
        self.tallies: dict[int, _Tally] = {}
        self.judged: set[int] = set()
        self._names = _names_of_results(probe, calls)

    def judge_constants(self, node: Node) -> int:
        """Hold what a call reads from the weights against the graph, where both have it in one form; returns how many.

        A vector has one layout, so its bits must be the graph's; numbers of a kernel's own layout are the graph's in
        another order. Packed and padded weights are left to the products, which are judged by what they give.
        """
        compared = 0
        for operand in node.inputs:
            own = self.graph.constants.get(operand.name) if operand.source == "weights" else None
            if own is None or str(own.dtype) != operand.dtype or own.size != math.prod(operand.shape):
                continue
            held, own = self.probe.constant(operand).reshape(-1), own.reshape(-1)
            if max(operand.shape, default=1) != own.size:
                if own.dtype != np.float32:
                    continue
                held, own = np.sort(held), np.sort(own)
            compared += 1
            off = np.flatnonzero(held.view(f"u{own.itemsize}") != own.view(f"u{own.itemsize}"))
            if off.size:
                tally = self.tallies.setdefault(node.index, _Tally())
                tally.complaint = (  # before what it made of it: this is the cause
                    f"{READS} {operand.name}: {off.size} of {own.size} are other numbers, first at {off[0]}: "
                    f"expected {own[off[0]]:.9g}, got {held[off[0]]:.9g}"
                )
        return compared

    def run(self, moment: Moment, feeds: Mapping[str, Array], chosen: Collection[int]) -> None:
        """Judge the calls whose numbers are `chosen`; others run only where nothing names what they make."""
        progress.stage(f"ONNX Runtime runs {self.calls[0].graph} at {moment.name}")
        values = self.graph.run(feeds)
        self.judged.update(chosen)
        ports = self.probe.manifest.inputs[self.calls[0].graph]
        slots = {("input", number): self._named(port.name, values) for number, port in enumerate(ports)}
        for node in progress.track(self.calls, f"layers of {self.calls[0].graph}", len(self.calls)):
            named = [self._names.get((node.index, number), "") for number in range(len(node.outputs))]
            if node.index not in chosen and all(name in values for name in named):
                slots |= {
                    _place(each): self._named(name, values) for each, name in zip(node.outputs, named, strict=True)
                }
                continue
            inputs = [slots[_place(operand)] for operand in node.inputs if operand.source != "weights"]
            results = self.probe.run(node, [slot.array for slot in inputs])
            sources = frozenset[str]().union(*(slot.sources for slot in inputs))
            if node.node and node.index in chosen:
                self._judge_op(node, values, results, moment)
            for name, operand, result in zip(named, node.outputs, results, strict=True):
                if name and (node.node or self._judge_fused(node, sources, name, values, result, moment)):
                    slots[_place(operand)] = self._named(name, values)
                else:
                    slots[_place(operand)] = _Slot(result, sources)

    def _named(self, name: str, values: Mapping[str, Array]) -> _Slot:
        return _Slot(values[name], frozenset(self.graph.aliases(name)))

    def _judge_op(self, node: Node, values: Mapping[str, Array], results: Sequence[Array], moment: Moment) -> None:
        tally = self.tallies.setdefault(node.index, _Tally())
        onnx_node = self.graph.node(node.outputs[0].name)
        names = [name for name in dict.fromkeys(onnx_node.input) if name not in self.graph.constants]
        got = {name: as_graph(self.graph, name, result) for name, result in zip(onnx_node.output, results, strict=True)}
        part = self.graph.part(names, list(onnx_node.output))
        judged = judge(node.op, part, {name: values[name] for name in names}, got)
        tally.add(judged, moment.name)
        tally.record(moment, judged)
        if node.op in LOW_BIT:
            subject = Subject.of(onnx_node, self.graph.types, self.graph.constants)
            given = {role: values[subject.names[role]] for role in subject.runtime()}
            integers = {role: array for role, array in given.items() if array.dtype.kind != "f"}
            verdict = attempt(self.probe, self.graph, node, subject, neutral(subject, integers))
            if verdict is not None:
                tally.accumulators += 1
                tally.add(verdict, f"{moment.name}, accumulator")

    def _judge_fused(
        self,
        node: Node,
        sources: frozenset[str],
        name: str,
        values: Mapping[str, Array],
        result: Array,
        moment: Moment,
    ) -> bool:
        """Judge a named result of fused standard ops; False if the graph has no path from what was fed."""
        try:
            part = self.graph.part(sorted(sources), [name])
        except InvalidModelError:
            return False
        tally = self.tallies.setdefault(node.index, _Tally())
        got = {name: as_graph(self.graph, name, result)}
        judged = judge("", part, {each: values[each] for each in sources}, got)
        tally.add(judged, moment.name)
        tally.record(moment, judged)
        return True


def _names_of_results(probe: Probe, calls: Sequence[Node]) -> dict[tuple[int, int], str]:
    """(call, output) -> name: the kernel's own, that of a graph output, or the one by which a later kernel reads it."""
    found: dict[tuple[int, int], str] = {}
    holds: dict[tuple[str, int], tuple[int, int]] = {}
    for node in calls:
        for operand in node.inputs:
            event = holds.get(_place(operand))
            if event is not None and node.node and operand.name:
                found.setdefault(event, operand.name)
        for number, operand in enumerate(node.outputs):
            event = holds[_place(operand)] = (node.index, number)
            if node.node:
                found[event] = operand.name
            elif operand.source == "output":
                found[event] = probe.manifest.outputs[node.graph][operand.offset].name
    return found


def _place(operand: Operand) -> tuple[str, int]:
    return operand.source, operand.offset
