"""Tables read by a look-up in 16 bytes: NEON's `tbl` (`vtbl`, `i8x16.swizzle`), for codes of 2 to 4 bits.

A table is looked up for 16 output channels: one look-up and one addition for 64 MACs. The entries for codes of b bits
are at most 4 * (2^b - 1) with their bias, so a byte holds 4 of them for b = 4, 8 for b = 3 and 20 for b = 2; then the
sums are widened to 16 bits, and to int32 after 257 such bytes.

Weights: uint8[O / 16][tap][pair of tables][16], the earlier table's bits in the low nibble: one bit a weight. Lane j
is output channel j of its block.

Limit for b = 4: 4 look-ups, 3 additions and 2 widening additions for 256 MACs, and with tiles of 4 pixels x 2 vectors
of indices one mask or shift more: 40 vector instructions for 1,024 MACs and 10 loads. Instructions and estimated
cycles of the emitted loop: docs/bench/arm.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    cast,
    const,
    hold,
    let,
    load,
    loop,
    permute,
    reinterpret,
)
from edgedm.targets.kernels.byte_vectors import BYTES, look_up
from edgedm.targets.kernels.lookup import STEP_CHANNELS, STEP_TABLES, TABLE_BYTES, TABLE_CHANNELS
from edgedm.targets.kernels.spec import Array
from edgedm.targets.kernels.tiles import Window

_HALF, _QUARTER = BYTES // 2, BYTES // 4
_WIDENINGS = 65535 // 255  # bytes that add up within 16 bits


@dataclass(frozen=True)
class ByteReader:
    """Tile: `pixels` tables against `groups` vectors of 16 output channels; codes of `bits`."""

    isa: str
    pixels: int
    groups: int
    bits: int
    even_steps = False
    block = BYTES
    lanes = _QUARTER
    shuffle_lanes = BYTES

    @property
    def name(self) -> str:
        """Names the family in a kernel's key."""
        return f"lookup-bytes {self.bits}"

    @property
    def bias(self) -> int:
        """Makes the smallest entry zero."""
        return TABLE_CHANNELS << (self.bits - 1)

    @property
    def most_steps(self) -> int:
        """Steps of four look-ups that a byte holds."""
        return 255 // (TABLE_CHANNELS * ((1 << self.bits) - 1)) // STEP_TABLES

    def shuffle(self, table: Expr, indices: Expr) -> Expr:
        """Look up 16 bytes; a negative index gives 0."""
        return look_up(self.isa, table, indices)

    def pack(self, weight: Array, channels: int) -> Array:
        """uint8[O, (kh, kw,) Cb] -> uint8[ceil(O / 16), taps, tables / 2, 16]; missing channels are zero bits."""
        rows = weight.reshape(weight.shape[0], -1, weight.shape[-1])
        bits = np.unpackbits(rows, axis=-1, count=channels, bitorder="little")
        bits = np.pad(bits, [(0, -rows.shape[0] % BYTES), (0, 0), (0, -channels % STEP_CHANNELS)])
        nibbles = np.packbits(bits, axis=-1, bitorder="little")  # two tables a byte, the earlier one low
        return np.ascontiguousarray(nibbles.reshape(-1, BYTES, *nibbles.shape[1:]).transpose(0, 2, 3, 1))

    def accumulate(
        self, weight: Buffer, tables: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], list[Expr]]:
        """Add up all look-ups of a tile; return slot -> its four int32 vectors."""
        slots, kh, row_steps = len(window.pixels) * together, window.rows, window.row_steps
        wide = Registers(2 * slots, _HALF, "uint16")  # a slot's first eight channels, then the others
        size = _part(row_steps, self.most_steps)
        parts = -(-row_steps // size)  # of a kernel row, each within bytes

        def add(i: Expr, part: Expr) -> None:
            if size == 1:
                self._step(weight, tables, window, index, together, i, part, None, wide)
                return
            narrow = Registers(slots, BYTES, "uint8")
            first = let(part * size)
            with loop(size if row_steps % size == 0 else tirx.min(size, row_steps - first), first) as k:
                self._step(weight, tables, window, index, together, i, k, narrow, wide)
            for slot in range(slots):
                self._widen(wide, slot, narrow[slot])

        if kh * parts <= _WIDENINGS:
            with loop(kh) as i, loop(parts) as part:
                add(i, part)
            return lambda slot: self._quarters(wide, slot)
        total = Registers(4 * slots, _QUARTER, "int32")
        with loop(kh) as i, loop(-(-parts // _WIDENINGS)) as stretch:
            start = let(stretch * _WIDENINGS)
            with loop(tirx.min(_WIDENINGS, parts - start), start) as part:
                add(i, part)
            for slot in range(slots):
                for q, vector in enumerate(self._quarters(wide, slot)):
                    total[4 * slot + q] = total[4 * slot + q] + vector
            wide.clear()
        return lambda slot: [total[4 * slot + q] for q in range(4)]

    def _step(
        self,
        weight: Buffer,
        tables: Buffer,
        window: Window,
        index: Expr,
        together: int,
        i: Expr,
        k: Expr,
        narrow: Registers | None,
        wide: Registers,
    ) -> None:
        """Sixteen channels of one tap: into bytes, or, where a byte holds no more, into 16 bits at once."""
        indices = self._indices(weight, window, index, together, i, k)
        for p, pixel in enumerate(window.pixels):
            at = let((window.at(pixel, i) + k) * STEP_TABLES * TABLE_BYTES)
            entries = [let(load(tables, at + t * TABLE_BYTES, TABLE_BYTES)) for t in range(STEP_TABLES)]
            for g in range(together):
                slot = p * together + g
                found = [
                    reinterpret(self.shuffle(entries[t], indices[g * STEP_TABLES + t]), f"uint8x{BYTES}")
                    for t in range(STEP_TABLES)
                ]
                total = found[0] + found[1] + found[2] + found[3]
                if narrow is None:
                    self._widen(wide, slot, total)
                else:
                    narrow[slot] = narrow[slot] + total

    def _indices(self, weight: Buffer, window: Window, index: Expr, together: int, i: Expr, k: Expr) -> list[Expr]:
        """The indices of step k in kernel row i: those of a group's four tables, then the next group's."""
        pairs = STEP_TABLES // 2
        indices = []
        for g in range(together):
            step = ((index + g) * window.rows + i) * window.row_steps + k
            for pair in range(pairs):
                both = let(load(weight, (step * pairs + pair) * BYTES, BYTES))
                for nibble in (both & const(15, "uint8", BYTES), both >> const(4, "uint8", BYTES)):
                    indices.append(hold(reinterpret(nibble, f"int8x{BYTES}"), BYTES))
        return indices

    def _widen(self, wide: Registers, slot: int, total: Expr) -> None:
        total = hold(total, BYTES)
        for half in range(2):
            part = cast(permute(total, range(half * _HALF, (half + 1) * _HALF)), "uint16", _HALF)
            wide[2 * slot + half] = wide[2 * slot + half] + part

    def _quarters(self, wide: Registers, slot: int) -> list[Expr]:
        halves = [wide[2 * slot + half] for half in range(2)]
        return [
            cast(permute(half, range(first, first + _QUARTER)), "int32", _QUARTER)
            for half in halves
            for first in (0, _QUARTER)
        ]


def _part(extent: int, most: int) -> int:
    """The largest divisor of `extent` up to `most`, whose loop LLVM unrolls, if it is at least half of that."""
    divisor = max(size for size in range(1, min(most, extent) + 1) if extent % size == 0)
    return divisor if 2 * divisor >= most else min(most, extent)
