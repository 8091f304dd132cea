"""Operations on vectors of 16 bytes that instruction sets name differently: look-ups and sums of neighbours.

Everything else that kernels of 16-byte vectors need (counts of bits, xor, sums, products) LLVM finds by itself.
"""

from tvm import tirx

from edgedm.targets.kernels.builder import Expr, cast, hold, intrinsic, permute

BYTES = 16

_LOOKUP = {
    "aarch64": "llvm.aarch64.neon.tbl1.v16i8",
    "wasm32": "llvm.wasm.swizzle",
    "x86": "llvm.x86.ssse3.pshuf.b.128",
}
_LOOKUP_HALF = {"arm": "llvm.arm.neon.vtbl2"}
_PAIR_SUMS = {
    "aarch64": ("llvm.aarch64.neon.saddlp", "llvm.aarch64.neon.uaddlp"),
    "arm": ("llvm.arm.neon.vpaddls", "llvm.arm.neon.vpaddlu"),
}

LOOKUP_ISAS = frozenset({*_LOOKUP, *_LOOKUP_HALF})


def look_up(isa: str, table: Expr, indices: Expr) -> Expr:
    """Lane i is table[indices[i]], or 0 where indices[i] is negative; int8x16, indices below 16."""
    if isa in _LOOKUP:
        return intrinsic("int8x16", _LOOKUP[isa], table, indices)
    table, indices = hold(table, BYTES), hold(indices, BYTES)
    low, high = (permute(table, range(first, first + 8)) for first in (0, 8))
    halves = [
        intrinsic("int8x8", _LOOKUP_HALF[isa], low, high, permute(indices, range(first, first + 8))) for first in (0, 8)
    ]
    return tirx.Shuffle(halves, list(range(BYTES)))


def pair_sums(isa: str, vector: Expr, dtype: str, lanes: int) -> Expr:
    """Lane i is the sum of lanes 2 i and 2 i + 1 of `vector`, `lanes` of `dtype`, at twice the width."""
    kind, bits = dtype.rstrip("0123456789"), int(dtype.lstrip("uint"))
    wide, half = f"{kind}{2 * bits}", lanes // 2
    if isa in _PAIR_SUMS:
        name = _PAIR_SUMS[isa][kind == "uint"]
        suffix = f".v{half}i{2 * bits}.v{lanes}i{bits}"
        return intrinsic(f"{wide}x{half}", name + suffix, vector)
    vector = hold(vector, lanes)
    even, odd = (permute(vector, range(first, lanes, 2)) for first in (0, 1))
    return cast(even, wide, half) + cast(odd, wide, half)


def add_pairs(first: Expr, second: Expr, lanes: int) -> Expr:
    """Sums of neighbours, those of `first` before those of `second`, at the same width."""
    both = [hold(first, lanes), hold(second, lanes)]
    even, odd = (tirx.Shuffle(both, list(range(start, 2 * lanes, 2))) for start in (0, 1))
    return even + odd
