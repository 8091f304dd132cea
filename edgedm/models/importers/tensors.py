"""The tensors of a file by name, each checked when it is taken, so that nothing is missed and nothing left over."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from edgedm.errors import InvalidModelError

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Tensors:
    """Tensors under short names; `origin` maps a short name to the name in the file, which errors speak of.

    A name that isn't there is spoken of with `prefix`.
    """

    def __init__(
        self, file: str, values: Mapping[str, Tensor], origin: Mapping[str, str] | None = None, prefix: str = ""
    ) -> None:
        self.file, self._values, self._origin, self._prefix = file, dict(values), dict(origin or {}), prefix
        self._unused = set(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> list[str]:
        """Return all short names."""
        return list(self._values)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, which memory may be allocated by.

        Raises `InvalidModelError` where the tensor is missing, or isn't a plain one whose numbers are all stored.
        """
        return tuple(self._get(name).shape)

    def axis(self, name: str, axis: int, rank: int) -> int:
        """Return the length of one axis of a tensor of `rank` axes; raises `InvalidModelError` for another or none."""
        shape = self.shape(name)
        if len(shape) != rank or shape[axis] < 1:
            raise self.error(name, f"expected {rank} axes with numbers in them, got shape {list(shape)}")
        return shape[axis]

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype; raises as `shape` does."""
        return self._get(name).dtype

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return a float tensor as float32.

        Raises `InvalidModelError` that names it where it is missing, has another shape or type, or holds NaN or
        infinity.
        """
        value = self._checked(name, shape)
        if value.dtype not in _FLOATS:
            raise self.error(name, f"expected floating point, got {value.dtype}")
        value = value.to(torch.float32)
        if not bool(value.isfinite().all()):
            raise self.error(name, "holds NaN or infinity")
        return value.clone()

    def take_bytes(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return a uint8 tensor; raises as `take` does."""
        value = self._checked(name, shape)
        if value.dtype != torch.uint8:
            raise self.error(name, f"expected uint8, got {value.dtype}")
        return value.clone()

    def ignore(self, names: Iterable[str]) -> None:
        """Say that these tensors, where the file has them, play no part in the model that runs."""
        self._unused.difference_update(names)

    def finish(self) -> None:
        """Raise `InvalidModelError` that names the tensors that nobody took."""
        if self._unused:
            left = sorted(self._in_file(name) for name in self._unused)
            raise InvalidModelError(
                f"{self.file}: {len(left)} tensors that the layout does not have, {', '.join(map(repr, left[:3]))}: "
                "is it another layout, or another architecture option?"
            )

    def error(self, name: str, problem: str) -> InvalidModelError:
        """Return the error that says what is wrong with the tensor `name`."""
        return InvalidModelError(f"{self.file}: tensor {self._in_file(name)!r}: {problem}")

    def _checked(self, name: str, shape: tuple[int, ...] | None) -> Tensor:
        value = self._get(name)
        if shape is not None and tuple(value.shape) != tuple(shape):
            raise self.error(name, f"expected shape {list(shape)}, got {list(value.shape)}")
        self._unused.discard(name)
        return value.detach()

    def _get(self, name: str) -> Tensor:
        if name not in self._values:
            raise InvalidModelError(f"{self.file}: tensor {self._in_file(name)!r} is missing")
        value = self._values[name]
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise self.error(name, f"expected a plain tensor, got {value.layout} on {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise self.error(name, f"its shape {list(value.shape)} repeats fewer stored numbers")
        return value

    def _in_file(self, name: str) -> str:
        return self._origin.get(name, name if name in self._values else self._prefix + name)
