"""Register tiles of integer products for WebAssembly, which multiplies lanes of 16 bits; see `dot_tiles` for words.

Codes and weights are widened to 16 bits: the image holds each word of four channels as its even and its odd bytes, two
codes of 16 bits each, and masks and shifts widen the weights alike, once for all pixels of a tile.

- `SumDot`, where many products fit 16 bits (145 of 4 by 4 bits): i16x8.mul and i16x8.add, two instructions for 8 MACs
  on every processor; the sums of pairs of lanes are taken when they are full, by i32x4.dot_i16x8_s with ones.
- `WordDot`, for wider codes: i32x4.dot_i16x8_s and i32x4.add. That is one instruction (pmaddwd) on x86, three on ARM.

Limit: 256 vector instructions for 1,024 MACs besides the image's loads and the weights. Measured: docs/web.md.
"""

from edgedm.targets.kernels.builder import Expr, const, intrinsic, reinterpret, splat
from edgedm.targets.kernels.byte_vectors import pair_sums
from edgedm.targets.kernels.dot_tiles import PairDot, WideDot

LANES = 4
_DOT = "llvm.wasm.dot"


class WordDot(WideDot):
    """See the module."""

    name = "dot-wasm"

    def sum_bytes(self, codes: Expr, size: int) -> Expr:
        """See `Dot`."""
        total = reinterpret(codes, f"uint8x{size}")
        for bits in (8, 16, 32):
            total = pair_sums("wasm32", total, f"uint{bits}", 8 * size // bits)
        return reinterpret(total, f"int64x{size // 8}")

    def add(self, acc: Expr, word: Expr, factor: Expr) -> Expr:
        """See `Dot`."""
        codes = reinterpret(splat(word, LANES), f"int16x{2 * LANES}")
        return acc + intrinsic(f"int32x{LANES}", _DOT, codes, factor)


class SumDot(WordDot, PairDot):
    """See the module; 16-bit lanes, two sums a lane of 32 bits."""

    name = "dot-wasm-sums"

    def add(self, acc: Expr, word: Expr, factor: Expr) -> Expr:
        """See `Dot`; `acc` has 16-bit lanes."""
        return acc + reinterpret(splat(word, LANES), f"int16x{2 * LANES}") * factor

    def lane_sums(self, sums: Expr) -> Expr:
        """See `PairDot`."""
        return intrinsic(f"int32x{LANES}", _DOT, sums, const(1, "int16", 2 * LANES))
