"""Level "op": every distinct kernel against the ONNX function of its op, on inputs that try it."""

from collections.abc import Mapping

from edgedm import progress
from edgedm.bundle import Node
from edgedm.verify.attempt import attempt
from edgedm.verify.comparison import Flips
from edgedm.verify.graphs import Graph
from edgedm.verify.probe import Probe
from edgedm.verify.report import Level, Row
from edgedm.verify.sampling import deal
from edgedm.verify.subject import Subject
from edgedm.verify.trials import trials

DEMAND = "integers equal; floats within rounding of float64"


def op_level(probe: Probe, graphs: Mapping[str, Graph], sample: int | None = None) -> Level:
    """Try one call of every kernel that stands for an op, or of `sample` kernels.

    What Relax fused is judged at level "layer".
    """
    nodes: dict[str, Node] = {}
    for node in probe.manifest.nodes:
        if node.node:
            nodes.setdefault(node.kernel, node)
    (chosen,) = deal(list(nodes.values()), kind_of, 1, sample)
    rows, isolated = [], 0
    for node in progress.track(chosen, "kernels", len(chosen)):
        row, accumulators = _try(probe, graphs[node.graph], node)
        rows.append(row)
        isolated += accumulators
    figures = {
        "kernels": float(len(rows)),
        "trials": sum(row.figures["trials"] for row in rows),
        "accumulators": float(isolated),
        "worst_use_of_bound": max((row.figures["use of bound"] for row in rows), default=0.0),
        "left_out": float(len(nodes) - len(rows)),
    }
    return Level("op", DEMAND, tuple(rows), figures)


def kind_of(node: Node) -> tuple[str, str]:
    """What kernels of one kind share: the op and how it is done."""
    return node.op, node.family


def _try(probe: Probe, graph: Graph, node: Node) -> tuple[Row, int]:
    """Run all trials of one kernel; also returns whether its accumulator came out."""
    subject = Subject.of(graph.node(node.outputs[0].name), graph.types, graph.constants)
    use, operations, done, accumulators = 0.0, 0, 0, 0
    complaint, flips = "", Flips()
    for trial in trials(subject):
        verdict = attempt(probe, graph, node, subject, trial)
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
