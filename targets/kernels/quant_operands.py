"""Operands of QuantConv and QuantGemm, checked, and the bound within which no integer product overflows."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgedm.errors import UnsupportedError
from edgedm.targets.kernels.epilogue import Epilogue
from edgedm.targets.kernels.spec import Array, TensorSpec

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Operands:
    """Codes of `bits` times a constant weight of `weight_bits`, a uint8 array [O, (kh, kw,) C]; `specs` as given."""

    bits: int
    weight_bits: int
    weight: Array
    weight_zero: Array
    specs: Mapping[str, TensorSpec]
    epilogue: Epilogue
    output: tuple[int, ...]


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
