"""The memory plan: every buffer gets an offset in one arena; buffers that live at the same time never overlap.

Greedy by size (Y. Pisarchyk and J. Lee, arXiv 2001.03288): the largest buffer first, each at the lowest gap
between the buffers placed before it that live at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # the kernels' vectors


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `size` bytes, written by call `first` and last touched by call `last`."""

    size: int
    first: int
    last: int


def align(size: int) -> int:
    """Round up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def plan_arena(buffers: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Return the offset of every buffer and the size of the arena, all multiples of ALIGNMENT."""
    order = sorted(range(len(buffers)), key=lambda index: (-buffers[index].size, index))
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for index in order:
        offsets[index] = _lowest_gap(buffers, offsets, placed, index)
        placed.append(index)
    total = max((offsets[i] + align(each.size) for i, each in enumerate(buffers)), default=0)
    return offsets, total


def _lowest_gap(buffers: Sequence[Lifetime], offsets: Sequence[int], placed: Sequence[int], index: int) -> int:
    mine = buffers[index]
    alive = [i for i in placed if buffers[i].first <= mine.last and mine.first <= buffers[i].last]
    offset = 0
    for other in sorted(alive, key=lambda i: offsets[i]):
        if offset + align(mine.size) <= offsets[other]:
            break
        offset = max(offset, offsets[other] + align(buffers[other].size))
    return offset
