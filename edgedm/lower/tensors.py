"""What a plan is made of: tensors with their places, kernel calls on them, and chains of calls."""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from edgedm.lower.importer import KernelCall


class Part(IntEnum):
    """Which part of a tensor a call of a chain gets: all; one head's; some rows of a head; its task's own."""

    ALL = 0
    HEAD = 1
    ROWS = 2
    TASK = 3


@dataclass(eq=False)
class Buffer:
    """Memory with one place; tensors are views of it. `offset` is a port's number for inputs and outputs."""

    place: str  # "arena", "strips" (arena too: what a chain keeps between its calls), "weights", "input" or "output"
    size: int
    offset: int = -1
    first: int = -1
    last: int = -1


@dataclass(frozen=True)
class Tensor:
    """A typed view of a whole buffer."""

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Call:
    """One kernel call. `origin` is the ONNX node that it stands for, None where Relax fused standard ops.

    `parts` are those of inputs, outputs and scratch where the call is of a chain. There `before`, if any, is a function
    of the same arguments that has to run once before a task's units of one head.
    """

    function: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scratch: tuple[Tensor, ...] = ()
    origin: KernelCall | None = None
    parts: tuple[Part, ...] = ()
    before: str = ""

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of all that it runs."""
        return (self.before, self.function) if self.before else (self.function,)


@dataclass(frozen=True)
class Chain:
    """`count` calls from `first` on that run together on one unit after another: `strips` units of each head.

    The units are shared by `tasks`, each with memory of its own between the calls.
    """

    first: int
    count: int
    heads: int
    strips: int
    tasks: int
