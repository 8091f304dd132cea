"""Tables read by a permutation of 64 bytes (vpermb) and added up by an int8 dot product (vpdpbusd): AVX-512.

One vector holds the four tables of a step; the index of byte lane 4 j + g is four weight bits of output channel j
and the table's number g. The dot product with ones adds the four tables into the int32 lane of channel j: two
instructions for 16 x 16 MACs, nothing to widen, signed entries.

Weights: uint8[O / 16][tap][pair of steps][64], the earlier step's bits in the low nibble: one bit a weight.

Limit: 256 MAC/cycle where one 512-bit permutation and one dot product start each cycle, 192 on four 256-bit pipes
that share them. Reached: 0.92 of what `edgedm.bench.limits` measures on one core (583 of 636 GMAC/s), tables and
epilogue included, for 256 to 256 channels 3x3 on 16x16.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    byte_shuffle,
    const,
    intrinsic,
    lane_numbers,
    let,
    load,
    loop,
    reinterpret,
)
from edgedm.targets.kernels.lookup import STEP_BYTES, STEP_CHANNELS, STEP_TABLES
from edgedm.targets.kernels.spec import Array
from edgedm.targets.kernels.tiles import Window

_PERMUTE = "llvm.x86.avx512.permvar.qi.512"
_DOT = "llvm.x86.avx512.vpdpbusd.512"
_OUT = 16  # output channels of a vector


@dataclass(frozen=True)
class PermuteReader:
    """Tile: `pixels` vectors of tables against `groups` vectors of indices."""

    pixels: int
    groups: int
    name = "lookup-permute"
    bias = 0
    block = _OUT
    lanes = _OUT
    shuffle_lanes = STEP_BYTES
    even_steps = True

    def shuffle(self, table: Expr, indices: Expr) -> Expr:
        """See `byte_shuffle`."""
        return byte_shuffle(table, indices, STEP_BYTES)

    def pack(self, weight: Array, channels: int) -> Array:
        """uint8[O, (kh, kw,) Cb] -> uint8[ceil(O / 16), taps, steps / 2, 64]; missing channels are zero bits."""
        rows = weight.reshape(weight.shape[0], -1, weight.shape[-1])
        bits = np.unpackbits(rows, axis=-1, count=channels, bitorder="little")
        bits = np.pad(bits, [(0, -rows.shape[0] % _OUT), (0, 0), (0, -channels % (2 * STEP_CHANNELS))])
        nibbles = np.packbits(bits.reshape(*bits.shape[:2], -1, 4), axis=-1, bitorder="little")[..., 0]
        steps = nibbles.reshape(-1, _OUT, bits.shape[1], nibbles.shape[-1] // (2 * STEP_TABLES), 2, STEP_TABLES)
        both = steps[..., 0, :] | steps[..., 1, :] << 4  # block, j, tap, pair, g
        ordered = both.transpose(0, 2, 3, 1, 4)
        return np.ascontiguousarray(ordered).reshape(*ordered.shape[:3], STEP_BYTES)

    def accumulate(
        self, weight: Buffer, tables: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], list[Expr]]:
        """Add up all look-ups of a tile; return slot -> its int32 vector."""
        slots = len(window.pixels) * together
        acc = Registers(slots, _OUT, "int32")
        pairs = window.row_steps // 2
        table_number = let((lane_numbers(STEP_BYTES, "uint8") & _bytes(STEP_TABLES - 1)) << _bytes(4))
        with loop(window.rows) as i, loop(pairs) as k:
            both = [
                let(load(weight, (((index + g) * window.rows + i) * pairs + k) * STEP_BYTES, STEP_BYTES))
                for g in range(together)
            ]
            for half in range(2):
                indices = [let(((each >> _bytes(4) if half else each) & _bytes(15)) | table_number) for each in both]
                for p, pixel in enumerate(window.pixels):
                    table = let(load(tables, (window.at(pixel, i) + 2 * k + half) * STEP_BYTES, STEP_BYTES))
                    for g in range(together):
                        entries = intrinsic("int8x64", _PERMUTE, table, reinterpret(indices[g], "int8x64"))
                        slot = p * together + g
                        ones = reinterpret(_bytes(1), "int8x64")
                        acc[slot] = intrinsic("int32x16", _DOT, acc[slot], ones, entries)
        return lambda slot: [acc[slot]]


def _bytes(value: int) -> Expr:
    return const(value, "uint8", STEP_BYTES)
