"""Run one compiled kernel on one trial and judge what comes out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.bundle import Node
from edgedm.errors import ParityError
from edgedm.verify.graphs import Graph
from edgedm.verify.judge import Verdict, judge
from edgedm.verify.probe import Probe
from edgedm.verify.subject import Subject, Trial

Array = NDArray[Any]


def attempt(probe: Probe, graph: Graph, node: Node, subject: Subject, trial: Trial) -> Verdict | None:
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
        with probe.lend(lent, node):
            results = probe.run(node, arguments)
    except ParityError:
        return None
    got = {name: as_graph(graph, name, array) for name, array in zip(subject.node.output, results, strict=True)}
    return judge(node.op, part, feeds, got, trial.ceiling)


def _same(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a.reshape(-1), b.reshape(-1)))


def as_graph(graph: Graph, name: str, array: Array) -> Array:
    """A kernel's output in the dtype and shape that the graph gives it: packed words become bytes."""
    return (array.view(np.uint8) if array.dtype == np.uint64 else array).reshape(graph.shape(name))
