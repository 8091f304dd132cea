"""Where the tensors of our modules stand in another repository's UNet."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgedm.models.importers.tensors import Tensors


@dataclass(frozen=True)
class Origin:
    """A module of the file. `rows` int64[O] are those of its output channels that ours has (q of a fused qkv),
    `total` counts all; `trailing` counts the axes of size 1 that its weight has and ours lacks (Conv1d, Linear)."""

    path: str
    rows: Tensor | None = None
    total: int | None = None
    trailing: int = 0


@dataclass(frozen=True)
class Naming:
    """An architecture of diffusers and, for every module of it that has tensors, the module of the file.

    `attentions` maps attention blocks to those of the file; `inputs` counts the file's input blocks, in LDM's
    numbering, and is 0 where it has none.
    """

    architecture: dict[str, Any]
    origins: dict[str, Origin]
    attentions: dict[str, str] = field(default_factory=dict)
    inputs: int = 0


class Layer:
    """One layer of ours in the file: its tensors in the file's shapes, returned in ours."""

    def __init__(self, tensors: Tensors, origin: Origin, shape: tuple[int, ...]) -> None:
        self.tensors, self.origin, self.shape = tensors, origin, tuple(shape)

    def name(self, suffix: str) -> str:
        """Return the name of one of the layer's tensors."""
        return f"{self.origin.path}.{suffix}"

    def has(self, suffix: str) -> bool:
        """Return whether the file has this tensor of the layer."""
        return self.name(suffix) in self.tensors

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape of the weight in the file."""
        return (self._total, *self.shape[1:], *(1,) * self.origin.trailing)

    def weight(self) -> Tensor:
        """Return the weight f32 in our shape."""
        return self.adapt(self.tensors.take(self.name("weight"), self.file_shape))

    def adapt(self, weight: Tensor) -> Tensor:
        """Return a tensor of the file's weight shape in ours: our rows, without the trailing axes."""
        return self._ours(weight).reshape(self.shape).contiguous()

    def vector(self, suffix: str) -> Tensor:
        """Return one value an output channel, [total] in the file."""
        return self._ours(self.tensors.take(self.name(suffix), (self._total,)))

    def per_out(self, suffix: str) -> Tensor:
        """Return f32[O] of a tensor [total, 1, ...] of as many axes as the file's weight."""
        shape = (self._total, *(1,) * (len(self.file_shape) - 1))
        return self._ours(self.tensors.take(self.name(suffix), shape)).reshape(-1)

    def per_in(self, suffix: str) -> Tensor:
        """Return f32[I] of a tensor [1, I, 1, ...] of as many axes as the file's weight."""
        shape = (1, self.shape[1], *(1,) * (len(self.file_shape) - 2))
        return self.tensors.take(self.name(suffix), shape).reshape(-1)

    def scalar(self, suffix: str) -> Tensor:
        """Return f32[] of a tensor [] or [1]."""
        name = self.name(suffix)
        return self.tensors.take(name, () if self.tensors.shape(name) == () else (1,)).reshape(())

    def ignore(self, *suffixes: str) -> None:
        """Say that these tensors of the layer play no part in the model that runs."""
        self.tensors.ignore(self.name(suffix) for suffix in suffixes)

    @property
    def _total(self) -> int:
        return self.shape[0] if self.origin.total is None else self.origin.total

    def _ours(self, values: Tensor) -> Tensor:
        return values if self.origin.rows is None else values[self.origin.rows]


def fused_rows(channels: int, heads: int, order: str) -> dict[str, Tensor]:
    """Return which rows of a fused qkv projection [3 C] are to_q, to_k and to_v, int64[C] each, heads in order.

    "legacy" (QKVAttentionLegacy) lists q, k, v of head 0, then of head 1, ...; "new" (QKVAttention) lists q of all
    heads, then k, then v.
    """
    index = torch.arange(3 * channels)
    if order == "legacy":
        parts = index.reshape(heads, 3, channels // heads).movedim(1, 0).reshape(3, channels)
    else:
        parts = index.reshape(3, channels)
    return dict(zip(("to_q", "to_k", "to_v"), parts, strict=True))
