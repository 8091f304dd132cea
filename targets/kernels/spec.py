"""What a kernel is to the rest of edgedm: a TIR function, its parameters, and how constants reach its layout."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
WORD_BYTES = 8


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's static shape and its numpy dtype name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Kernel:
    """One op at one set of shapes, for one target.

    `function` takes the operands `kept` (indices of the op's inputs, in order), then the outputs, then the
    scratch tensors; all static, compact and 64-byte aligned. `inputs` are the kept operands' physical specs:
    packed bits are uint64[..., Cb / 8], a packed constant has its kernel's own layout. `pack[i]` makes that
    layout from input i as the graph holds it (absent: as is). `dropped` are neutral or unused constants, which
    are no parameters. Equal `key`: the same function, fit to be shared.

    `apart`, where there is one, makes two functions of the same parameters that do together what `function` does: the
    first lays the operands but the first one out in scratch, the second may run for many first operands after it.
    """

    function: Any
    kept: tuple[int, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scratch: tuple[TensorSpec, ...]
    pack: Mapping[int, Callable[[Array], Array]]
    dropped: frozenset[int]
    family: str
    macs: int
    key: str
    apart: Callable[[], tuple[Any, Any]] | None = field(default=None, compare=False)

    def packed(self, index: int, constant: Array) -> Array:
        """Return input `index`, a constant in its ONNX layout, in this kernel's layout."""
        return self.pack[index](constant) if index in self.pack else constant


@dataclass(frozen=True)
class Operand:
    """An input of an op inside `select`: its physical spec, and its value where the graph holds a constant."""

    spec: TensorSpec
    value: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The physical shape."""
        return self.spec.shape

    def equals(self, number: float) -> bool:
        """Whether this is a constant whose every element is `number`."""
        return self.value is not None and bool(np.all(self.value == number))


@dataclass(frozen=True)
class Request:
    """What `select` hands to a kernel family: operands by name, attributes, the target; a family where one is asked."""

    op: str
    operands: Mapping[str, Operand]
    attrs: Mapping[str, Any]
    target: Any
    family: str | None = None


def words(spec: TensorSpec) -> TensorSpec:
    """Return uint8[..., 8 n] as uint64[..., n], the physical form of packed bits; uint64 stays as it is."""
    if spec.dtype == "uint64":
        return spec
    if spec.dtype != "uint8" or not spec.shape or spec.shape[-1] % WORD_BYTES:
        raise ValueError(f"packed bits are uint8[..., 8 n] or uint64[..., n], got {spec.dtype}{list(spec.shape)}")
    return TensorSpec((*spec.shape[:-1], spec.shape[-1] // WORD_BYTES), "uint64")


def as_words(array: Array) -> Array:
    """View uint8[..., 8 n] as little-endian uint64[..., n]."""
    return array if array.dtype == np.uint64 else np.ascontiguousarray(array).view("<u8")
