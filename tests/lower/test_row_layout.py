"""The rows of a step lie close together, and every one where its kernels may read it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgedm.bundle import Port
from edgedm.lower.codegen import Graph, lay_out
from edgedm.lower.plan import Plan

SHAPES: list[tuple[int, ...]] = [(), (1,), (4,), (3,), (1, 8), (1, 1, 1, 64), (1, 77, 5)]


def _graph(rows: list[tuple[tuple[int, ...], str]]) -> Graph:
    ports = [
        Port(name=f"row.{number}", role="row", shape=shape, dtype=dtype) for number, (shape, dtype) in enumerate(rows)
    ]
    plan = Plan(calls=[], chains=[], inputs=[], outputs=[], copies={}, arena_bytes=0, functions={})
    return Graph("prepare", plan, [], ports)


@given(st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(["float32", "uint8", "int64"])), max_size=40))
def test_rows_are_aligned_to_their_size_and_apart(rows) -> None:
    graph = _graph(rows)
    layout = lay_out(graph, graph)
    taken = np.zeros(layout.row_bytes, bool)
    for port in graph.outputs:
        size = int(np.prod(port.shape, dtype=np.int64)) * np.dtype(port.dtype).itemsize
        offset = layout.rows[port.name]
        widest = 1 << size.bit_length() - 1  # a single access is no wider than the row
        assert offset % min(64, widest) == 0
        assert not taken[offset : offset + size].any()
        taken[offset : offset + size] = True
    assert layout.row_bytes % 64 == 0


def test_scalar_rows_take_no_more_than_they_hold() -> None:
    rows: list[tuple[tuple[int, ...], str]] = [((), "float32"), ((), "uint8")] * 64
    graph = _graph([((1, 1, 1, 64), "float32"), *rows])
    assert lay_out(graph, graph).row_bytes == 64 * (4 + 4 + 1)
