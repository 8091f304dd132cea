"""Operands of products of codes, checked, and the bound within which no integer product overflows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgedm.errors import UnsupportedError
from edgedm.targets.kernels.epilogue import Epilogue
from edgedm.targets.kernels.spec import Array, TensorSpec

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Operands:
    """Codes of `bits`, the operand called `image`, times a constant weight of `weight_bits`; `specs` as given.

    Uniform codes are uint8, with zero points. Without `weight_zero` weights are signs (1 is +1), codes are int8 or, of
    one bit, packed signs. `weight` is as the graph holds it, and `unpack` makes codes uint8[O, taps, C] of it.
    """

    bits: int
    weight_bits: int
    weight: Array
    weight_zero: Array | None
    specs: Mapping[str, TensorSpec]
    epilogue: Epilogue
    output: tuple[int, ...]
    unpack: Callable[[Array], Array]
    image: str = "codes"

    @property
    def signed(self) -> bool:
        """Whether the codes are int8, or signs."""
        return self.weight_zero is None

    @property
    def zeros(self) -> Array:
        """The zero points of uniform weights."""
        assert self.weight_zero is not None
        return self.weight_zero

    @property
    def packed(self) -> bool:
        """Whether the codes are signs, 64 to a word."""
        return self.specs[self.image].dtype == "uint64"


def uniform_codes(weight: Array) -> Array:
    """uint4 or uint8[O, (kh, kw,) C] -> uint8[O, taps, C]."""
    return weight.astype(np.uint8).reshape(weight.shape[0], -1, weight.shape[-1])


def sign_codes(channels: int) -> Callable[[Array], Array]:
    """Return what unpacks signs uint8[O, (kh, kw,) Cb] of `channels` to uint8[O, taps, C] of 0 and 1."""

    def unpack(weight: Array) -> Array:
        rows = weight.reshape(weight.shape[0], -1, weight.shape[-1])
        return np.unpackbits(rows, axis=-1, count=channels, bitorder="little")

    return unpack


def require_exact(op: str, length: int, bits: int, other_bits: int) -> None:
    """Refuse a sum over `length` products of two codes that could leave int32, or take a step there out of it.

    The bound is that of the largest codes and does not ask which weights there are: kernels take zero points off at
    the end, so a weight that equals its zero point adds nothing to the sum and as much as any other on the way.
    """
    worst = length * (2**bits - 1) * (2**other_bits - 1)
    if worst > _INT32_MAX:
        raise UnsupportedError(
            f"{op}: a sum over {length} products of {bits}- and {other_bits}-bit codes reaches {worst}, beyond "
            f"int32's {_INT32_MAX}; use fewer input channels or fewer bits"
        )
