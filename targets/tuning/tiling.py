"""The small table from target and shape to a tile, measured on one core of an AVX-512 machine."""

from edgedm.targets.kernels import bitserial as _bitserial
from edgedm.targets.kernels import float_conv as _float_conv
from edgedm.targets.kernels.dot_tiles import Dot, PairDot, VnniDot, WideDot
from edgedm.targets.kernels.lookup import STEP_CHANNELS, TABLE_CHANNELS, Reader
from edgedm.targets.kernels.lookup_permute import PermuteReader
from edgedm.targets.kernels.lookup_shuffle import NarrowReader, ShuffleReader
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.target import Target
from edgedm.targets.tuning import byte_tiles

_WORD_BYTES = 8
_FEWEST_STEPS = 8  # in 16 bits before they are widened: with fewer, 16-bit factors are faster


def float_lanes(target: Target) -> int:
    """float32 values of a vector."""
    return target.vector_bytes // 4


def sign_lanes(target: Target) -> int:
    """float32 values whose signs are decided at once: one where vectors take denormals for 0, as ARMv7's do."""
    return 1 if target.isa == "arm" else float_lanes(target)


def bitserial(target: Target, shape: Convolution) -> _bitserial.Tile:
    """Sixteen accumulators where there are 32 vector registers, fewer where a popcount takes several."""
    lanes = target.vector_bytes // _WORD_BYTES
    pixels = shape.out_height * shape.out_width
    if "vpopcntdq" not in target.features:
        return _bitserial.Tile(lanes, 2, 1) if pixels > 1 else _bitserial.Tile(lanes, 1, 2)
    if pixels >= 8:
        return _bitserial.Tile(lanes, 8, 1)
    return _bitserial.Tile(lanes, 4, 2) if pixels >= 4 else _bitserial.Tile(lanes, pixels, 4)


def lookup(target: Target, shape: Convolution, bits: int = 4) -> Reader | None:
    """Sixteen accumulators for the permutation; for shuffles, with three a pixel, eight or four pixels.

    Entries of few bits add up in bytes, one accumulator a vector of output channels, unless the sums outgrow 16 bits.
    1 bit means signs. None where no instruction looks bytes up.
    """
    if "ssse3" not in target.features:
        return byte_tiles.lookup(target, shape, bits)
    pixels = shape.out_height * shape.out_width
    if {"vbmi", "vnni"} <= target.features:
        if pixels >= 8:
            return PermuteReader(8, 2)
        return PermuteReader(4, 4) if pixels >= 4 else PermuteReader(pixels, 8)
    lanes = target.vector_bytes
    while lanes > 16 and shape.out_channels <= lanes // 2:
        lanes //= 2
    largest = TABLE_CHANNELS * (2**bits - 1 if bits > 1 else 2)
    bias = TABLE_CHANNELS << (bits - 1)
    most = 4 if target.vector_bytes == 64 else 8
    few = min(most, pixels)
    narrow = NarrowReader(lanes, few, 16 // most if few == most else 4, bias, largest)
    if narrow.byte_steps > 1 and shape.taps * -(-shape.channels // STEP_CHANNELS) <= narrow.most_steps:
        return narrow
    most = 8 if target.vector_bytes == 64 else 4
    groups = 1 if pixels >= most else max(1, most // pixels // 2)
    return ShuffleReader(lanes, min(most, pixels), groups, bias)


def matmul_rows(target: Target) -> int:
    """Rows of a product of floats that share two vectors of columns: 16 accumulators in 32 registers, 8 in 16."""
    return 8 if target.vector_bytes == 64 or target.isa == "aarch64" else 4


def float_conv(target: Target, shape: Convolution) -> _float_conv.Tile:
    """24 accumulators in 32 registers, 12 in 16; few pixels leave room for more output channels."""
    lanes = float_lanes(target)
    pixels = shape.out_height * shape.out_width
    if target.vector_bytes == 64 or target.isa == "aarch64":
        return _float_conv.Tile(lanes, 6, 4) if pixels >= 6 else _float_conv.Tile(lanes, pixels, 4)
    return _float_conv.Tile(lanes, 6, 2) if pixels >= 6 else _float_conv.Tile(lanes, pixels, 4)


def dot(
    target: Target,
    pixels: int,
    bits: int,
    weight_bits: int,
    nibbles: bool,
    constant: bool = True,
    signed: bool = False,
) -> Dot | None:
    """Up to 20 accumulators for vpdpbusd in 32 registers, up to eight in 16; None where nothing multiplies bytes.

    Few pixels leave room for four groups of output channels, but with nibbles those take eight registers beside the
    accumulators: 6 x 4 spills and halves the speed (113 GMAC/s of 219 for 6x512x512). `nibbles` says whether the
    weights lie two to a byte, `constant` whether they are packed beforehand, `signed` whether codes are int8.
    """
    if "ssse3" not in target.features:
        return None if signed else byte_tiles.dot(target, pixels, bits, weight_bits, nibbles, constant)
    lanes = target.vector_bytes // 4
    if (lanes == 16 and "vnni" in target.features) or (lanes == 8 and "avxvnni" in target.features):
        most, most_beside_four = (8, 5) if lanes == 16 else (4, 2)
        groups = 4 if pixels <= most_beside_four else 2
        return VnniDot(lanes, min(pixels, most), groups, bits, weight_bits, nibbles, signed=signed)
    tall, wide = (8, 1) if pixels >= 8 else (4, 2) if pixels >= 4 else (pixels, 3)
    pairs = PairDot(lanes, tall, wide, bits, weight_bits, nibbles, signed=signed)
    if signed or pairs.most_steps >= _FEWEST_STEPS:
        return pairs
    return WideDot(lanes, tall, wide, bits, weight_bits, nibbles)
