"""Level "op": every distinct kernel against the ONNX function of its op, on inputs that try it."""

import numpy as np

from edgedm import progress
from edgedm.bundle import Node
from edgedm.errors import ParityError
from edgedm.verify.comparison import Flips
from edgedm.verify.graphs import Graph
from edgedm.verify.judge import Verdict, judge
from edgedm.verify.probe import Probe
from edgedm.verify.report import Level, Row
from edgedm.verify.trials import Subject, Trial, trials

DEMAND = "integers equal; floats within rounding of float64"


def op_level(probe: Probe, graphs: dict[str, Graph]) -> Level:
    """Try one call of every kernel that stands for an op; what Relax fused is judged at level "layer"."""
    nodes: dict[str, Node] = {}
    for node in probe.manifest.nodes:
        if node.node:
            nodes.setdefault(node.kernel, node)
    rows, isolated = [], 0
    for node in progress.track(list(nodes.values()), "kernels", len(nodes)):
        row, accumulators = _try(probe, graphs[node.graph], node)
        rows.append(row)
        isolated += accumulators
    figures = {
        "kernels": float(len(rows)),
        "trials": sum(row.figures["trials"] for row in rows),
        "accumulators": float(isolated),
        "worst_use_of_bound": max((row.figures["use of bound"] for row in rows), default=0.0),
    }
    return Level("op", DEMAND, tuple(rows), figures)


def _try(probe: Probe, graph: Graph, node: Node) -> tuple[Row, int]:
    """Run all trials of one kernel; also returns whether its accumulator came out."""
    subject = Subject.of(graph.node(node.outputs[0].name), graph.types, graph.constants)
    use, operations, done, accumulators = 0.0, 0, 0, 0
    complaint, flips = "", Flips()
    for trial in trials(subject):
        verdict = _run(probe, graph, node, subject, trial)
        if verdict is None:
            continue
        done += 1
        accumulators += trial.name == "accumulator"
        use, operations, flips = max(use, verdict.use), max(operations, verdict.operations), flips + verdict.flips
        if verdict.complaint and not complaint:
            complaint = f"{trial.name}: {verdict.complaint}"
    name = f"{node.op} {node.module or node.node} ({node.family})"
    figures = {"trials": float(done), "n": float(operations), "use of bound": use, "flips": float(flips.total)}
    return Row(name, not complaint, figures, complaint), accumulators


def _run(probe: Probe, graph: Graph, node: Node, subject: Subject, trial: Trial) -> Verdict | None:
    """One trial; None if the kernel has constants baked in that the trial would change."""
    changed = {subject.names[role]: array for role, array in trial.constants.items()}
    lent = {}
    for number, operand in enumerate(node.inputs):
        if operand.name not in changed:
            continue
        own = graph.constants[operand.name]
        held = probe.constant(operand)
        if held.size != own.size or not np.array_equal(held.reshape(-1), own.reshape(-1)):
            return None  # another layout: what ships cannot be told otherwise
        lent[number] = changed[operand.name]
    kept = {operand.name for operand in node.inputs}
    if any(name not in kept and not _same(changed[name], graph.constants[name]) for name in changed):
        return None
    feeds = {subject.names[role]: array for role, array in trial.feeds.items()}
    part = graph.part(list(feeds), list(subject.node.output), changed or None)
    arguments = [feeds[operand.name] for operand in node.inputs if operand.source != "weights"]
    try:
        with probe.constants(lent, node):
            results = probe.run(node, arguments)
    except ParityError:
        return None
    got = {name: _as_graph(graph, name, array) for name, array in zip(subject.node.output, results, strict=True)}
    return judge(node.op, part, feeds, got, trial.ceiling)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.reshape(-1), b.reshape(-1)))


def _as_graph(graph: Graph, name: str, array: np.ndarray) -> np.ndarray:
    """A kernel's output in the dtype and shape that the graph gives it: packed words become bytes."""
    shape = [each.dim_value for each in graph.types[name].type.tensor_type.shape.dim]
    return (array.view(np.uint8) if array.dtype == np.uint64 else array).reshape(shape)
