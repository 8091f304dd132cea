"""The small table from target and shape to a tile for vectors of 16 bytes that no x86 instruction set serves.

Chosen by the instructions and estimated cycles of the emitted loops (docs/bench/arm.md): no such machine was at hand.
"""

from dataclasses import replace

from edgedm.targets.kernels import bitserial_bytes
from edgedm.targets.kernels.byte_vectors import BYTES, LOOKUP_ISAS
from edgedm.targets.kernels.dot_neon import LANES, ByteDot, LongDot, MatrixDot, NeonDot, UdotDot
from edgedm.targets.kernels.dot_tiles import Dot
from edgedm.targets.kernels.dot_wasm import SumDot, WordDot
from edgedm.targets.kernels.lookup import Reader
from edgedm.targets.kernels.lookup_bytes import ByteReader
from edgedm.targets.kernels.lookup_shuffle import SwizzleReader
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.target import Target

_FEWEST_STEPS = 8  # whose sums have to fit 16 bits, or they are widened too often
_VECTORS = frozenset({"neon", "simd128"})  # features that count bits of bytes and look up bytes


def bits(target: Target, shape: Convolution, words: int) -> bitserial_bytes.Tile | None:
    """Sixteen accumulators; None without vectors that count, or for sums beyond the kernel's."""
    if not target.features & _VECTORS or shape.taps * words * 64 > bitserial_bytes.MOST_CHANNELS:
        return None
    spread = 1 + words % 2
    pixels = min(4, shape.out_height * shape.out_width)
    return bitserial_bytes.Tile(target.isa, spread, pixels, spread * (4 // pixels))


def lookup(target: Target, shape: Convolution, code_bits: int) -> Reader | None:
    """Two 16-bit sums for each of four pairs of a table and a vector of indices; None without a byte look-up.

    With 4 x 2 or 8 x 1 pairs LLVM moves loads up until sums spill, unless it schedules for a named core.
    """
    if not target.features & _VECTORS or target.isa not in LOOKUP_ISAS:
        return None
    pixels = min(4, shape.out_height * shape.out_width)
    groups = 4 // pixels if pixels > 1 else 2
    reader = ByteReader(target.isa, pixels, groups, max(2, code_bits))
    if target.isa == "wasm32" and reader.most_steps == 1:  # sums are widened after every step
        return SwizzleReader(BYTES, pixels, groups, reader.bias)
    return reader


def dot(target: Target, pixels: int, bits: int, weight_bits: int, nibbles: bool, constant: bool) -> Dot | None:
    """Sixteen accumulators of the best product that the core has, eight in 16 registers; None without vectors.

    Matrix products take their right factors by pairs of output channels, which only `constant` weights are laid out
    for. WebAssembly has products of 16 bits alone.
    """
    if not target.features & _VECTORS:
        return None
    if target.isa == "wasm32":
        sums = SumDot(LANES, min(4, pixels), 2, bits, weight_bits, nibbles)
        if sums.most_steps >= _FEWEST_STEPS:
            return sums
        return WordDot(LANES, min(4, pixels), 2, bits, weight_bits, nibbles)
    codes = (bits, weight_bits, nibbles, target.isa)
    if "dotprod" in target.features:
        kind: type[NeonDot] = MatrixDot if constant and "i8mm" in target.features and pixels > 1 else UdotDot
        return kind(LANES, min(8, pixels), 2 if pixels > 1 else 4, *codes)
    many = target.isa == "aarch64"  # 32 vector registers
    if max(bits, weight_bits) <= 4 and "neon" in target.features:
        wide = 2 if pixels > 2 else 4
        return ByteDot(LANES, min(8 if many else 4, pixels), wide if many else 2, *codes)
    long = LongDot(LANES, min(4, pixels), 2 if many else 1, *codes)
    return replace(long, pixels=min(2, pixels)) if long.step_words == 4 else long
