"""Which of many kernels or layers a sample takes: one of every kind, then more of each, spread from end to end."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Kind = Callable[[Item], Hashable]


def in_order(items: Sequence[Item], kind: Kind[Item]) -> list[Item]:
    """The items in an order of which any beginning has as many kinds as it can, and each kind's from end to end."""
    groups: dict[Hashable, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(kind(item), []).append(number)
    rank = [0] * len(items)
    for group in groups.values():
        for place, member in enumerate(_spread(len(group))):
            rank[group[member]] = place
    return [items[number] for number in sorted(range(len(items)), key=lambda number: rank[number])]


def deal(items: Sequence[Item], kind: Kind[Item], moments: int, sample: int | None) -> list[list[Item]]:
    """For each of `moments` the items to look at: all, or `sample` of them, in turn, until every one has been."""
    if sample is None or sample >= len(items):
        return [list(items)] * moments
    order = in_order(items, kind)
    return [[order[(first + k) % len(order)] for k in range(sample)] for first in range(0, moments * sample, sample)]


def _spread(count: int) -> list[int]:
    """0..count-1, so that any beginning is spread over all: counted with the bits of each number turned round."""
    width = max(count - 1, 1).bit_length()
    turned = (int(f"{number:0{width}b}"[::-1], 2) for number in range(1 << width))
    return [number for number in turned if number < count]
