"""What the kernels of QuantConv and QuantGemm share: their checked operands and the sums that overflow nowhere."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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


def require_exact(op: str, weight: Array, zero: Array, bits: int) -> None:
    """Refuse a reduction whose sum could leave int32; sums on the way there may wrap.

    The sum of (code - zero point) * (weight - zero) is at most top * sum of |weight - zero|, per output channel.
    """
    rows = weight.reshape(weight.shape[0], -1).astype(np.int64)
    worst = int(np.abs(rows - zero.astype(np.int64)[:, None]).sum(axis=1).max()) * (2**bits - 1)
    if worst > _INT32_MAX:
        raise UnsupportedError(
            f"{op}: a sum over {rows.shape[1]} products of {bits}-bit codes reaches {worst}, beyond int32's "
            f"{_INT32_MAX}; use fewer input channels or fewer bits"
        )


def require_exact_length(op: str, length: int, bits: int, other_bits: int) -> None:
    """Refuse a product of two activations over `length` terms that could leave int32."""
    worst = length * (2**bits - 1) * (2**other_bits - 1)
    if worst > _INT32_MAX:
        raise UnsupportedError(
            f"{op}: a sum over {length} products of {bits}- and {other_bits}-bit codes reaches {worst}, beyond "
            f"int32's {_INT32_MAX}; use fewer channels or fewer bits"
        )
