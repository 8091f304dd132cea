"""Timesteps whose own path holds a coin: a decision that rounding may take either way, for all images alike."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.verify.graphs import Graph


def undecided(graph: Graph, name: str, timestep: int) -> bool:
    """Whether rounding may take a decision that depends on the input `name` alone, at `timestep`, either way."""
    read = frontier(graph, name)
    if not read:
        return False
    part = graph.part([name], read)
    feeds = {name: np.array([timestep], np.int64)}
    low, high = (part.evaluate(feeds, lean) for lean in (-1, 1))
    return any(_differ(low[each].value, high[each].value, low[each].bound + high[each].bound) for each in part.outputs)


def frontier(graph: Graph, name: str) -> list[str]:
    """What depends on the input `name` and constants alone, and that something else reads or the graph gives."""
    inside, fixed = {name}, set(graph.constants)
    read: list[str] = []
    for node in graph.proto.graph.node:
        given = {each for each in node.input if each} - fixed
        if not given:
            fixed.update(node.output)
        elif given <= inside:
            inside.update(node.output)
        else:
            read += [each for each in node.input if each in inside]
    read += [item.name for item in graph.proto.graph.output if item.name in inside]
    return [each for each in dict.fromkeys(read) if each != name]


def _differ(low: NDArray[Any], high: NDArray[Any], bound: NDArray[np.float64]) -> bool:
    return bool(np.any(np.abs(np.subtract(low, high, dtype=np.float64)) > bound))
