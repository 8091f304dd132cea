"""Tables read by a shuffle within 16 bytes (pshufb): SSSE3, AVX2, AVX-512 BW.

A table, repeated over the vector, is looked up for as many output channels as there are bytes. With the bias an
entry of 4-bit codes is at most 60, four look-ups fit a byte (240), and 257 such bytes fit 16 bits. Read as 16-bit lanes
s the bytes' sums are x = even + 256 odd; adding up x (modulo 2^16) and x >> 8 gives both sums in three operations.

Weights: uint8[O / lanes][tap][pair of tables][lanes], the earlier table's bits in the low nibble: one bit a weight.
Byte lane 4 j + q is output channel q * lanes / 4 + j of its block, so that widening to int32 by masks and shifts
leaves four vectors in order.

Limit: 10 operations and 4 broadcasting loads for 4 tables x lanes, besides indices: with two shuffles and four
additions of 32 bytes a cycle, about 180 MAC/cycle. Reached, of what `edgedm.bench.limits` measures on one core, for
256 to 256 channels 3x3 on 16x16: 0.88 with AVX2 (463 of 525 GMAC/s), 0.95 with AVX-512 (408 of 427).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    byte_shuffle,
    const,
    let,
    load,
    loop,
    reinterpret,
    repeat,
)
from edgedm.targets.kernels.byte_vectors import look_up
from edgedm.targets.kernels.lookup import STEP_CHANNELS, STEP_TABLES, TABLE_BYTES, TABLE_CHANNELS
from edgedm.targets.kernels.spec import Array
from edgedm.targets.kernels.tiles import Window

_BYTE, _WORD = 2**8 - 1, 2**16 - 1
WIDENINGS = _WORD // _BYTE  # bytes that add up within 16 bits, at least: 257


@dataclass(frozen=True)
class ShuffleReader:
    """Tile: `pixels` tables against `groups` vectors of `block` output channels, all bytes of a vector."""

    block: int
    pixels: int
    groups: int
    bias: int = 32  # makes the smallest entry of signed 4-bit codes, 4 * -8, zero
    name = "lookup-shuffle"
    even_steps = False

    @property
    def lanes(self) -> int:
        """int32 lanes of a widened vector."""
        return self.block // 4

    @property
    def shuffle_lanes(self) -> int:
        """Bytes of a vector."""
        return self.block

    def shuffle(self, table: Expr, indices: Expr) -> Expr:
        """See `byte_shuffle`."""
        return byte_shuffle(table, indices, self.block)

    def pack(self, weight: Array, channels: int) -> Array:
        """uint8[O, (kh, kw,) Cb] -> uint8[ceil(O / block), taps, tables / 2, block]; missing channels: zero bits."""
        rows = weight.reshape(weight.shape[0], -1, weight.shape[-1])
        bits = np.unpackbits(rows, axis=-1, count=channels, bitorder="little")
        bits = np.pad(bits, [(0, -rows.shape[0] % self.block), (0, 0), (0, -channels % STEP_CHANNELS)])
        nibbles = np.packbits(bits, axis=-1, bitorder="little")  # two tables a byte, the earlier one low
        blocks = nibbles.reshape(-1, 4, self.block // 4, *nibbles.shape[1:])  # block, q, j, tap, pair
        ordered = blocks.transpose(0, 3, 4, 2, 1)  # block, tap, pair, j, q
        return np.ascontiguousarray(ordered).reshape(*ordered.shape[:3], self.block)

    def accumulate(
        self, weight: Buffer, tables: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], list[Expr]]:
        """Add up all look-ups of a tile; return slot -> its four int32 vectors."""
        lanes, half = self.block, self.block // 2
        slots = len(window.pixels) * together
        kh, row_steps = window.rows, window.row_steps
        wide = Registers(2 * slots, half, "uint16", zero=False)  # a slot's sum of x, then of x >> 8

        def step(i: Expr, k: Expr) -> None:
            """Sixteen channels of one tap."""
            nibbles = self._indices(weight, window, index, together, i, k)
            for p, pixel in enumerate(window.pixels):
                at = let((window.at(pixel, i) + k) * STEP_TABLES * TABLE_BYTES)
                entries = [
                    let(repeat(load(tables, at + t * TABLE_BYTES, TABLE_BYTES), TABLE_BYTES, lanes))
                    for t in range(STEP_TABLES)
                ]
                for g in range(together):
                    total = self.shuffle(entries[0], nibbles[g * STEP_TABLES])
                    for t in range(1, STEP_TABLES):
                        total = total + self.shuffle(entries[t], nibbles[g * STEP_TABLES + t])
                    pairs = let(reinterpret(let(total), f"uint16x{half}"))
                    even = 2 * (p * together + g)
                    wide[even] = wide[even] + pairs
                    wide[even + 1] = wide[even + 1] + (pairs >> const(8, "uint16", half))

        if kh * row_steps <= WIDENINGS:
            wide.clear()
            with loop(kh) as i, loop(row_steps) as k:
                step(i, k)
            return lambda slot: self._widened(wide, slot)
        spill = Registers(4 * slots, lanes // 4, "int32")
        with loop(kh) as i, loop(-(-row_steps // WIDENINGS)) as part:
            wide.clear()
            start = let(part * WIDENINGS)
            with loop(tirx.min(WIDENINGS, row_steps - start), start) as k:
                step(i, k)
            for slot in range(slots):
                for q, vector in enumerate(self._widened(wide, slot)):
                    spill[4 * slot + q] = spill[4 * slot + q] + vector
        return lambda slot: [spill[4 * slot + q] for q in range(4)]

    def _indices(self, weight: Buffer, window: Window, index: Expr, together: int, i: Expr, k: Expr) -> list[Expr]:
        """The indices of step k in kernel row i: those of a group's four tables, then the next group's."""
        lanes, half = self.block, self.block // 2
        nibbles = []
        for g in range(together):
            at = ((index + g) * window.rows * window.row_steps + i * window.row_steps + k) * (STEP_TABLES // 2) * lanes
            for pair in range(STEP_TABLES // 2):
                both = let(load(weight, at + pair * lanes, lanes))
                low = both & const(15, "uint8", lanes)
                high = (reinterpret(both, f"uint16x{half}") >> const(4, "uint16", half)) & const(0x0F0F, "uint16", half)
                nibbles += [let(reinterpret(low, f"int8x{lanes}")), let(reinterpret(high, f"int8x{lanes}"))]
        return nibbles

    def _widened(self, wide: Registers, slot: int) -> list[Expr]:
        """Vector q of a block's quarter q, byte lanes 4 j + q, from a slot's sums of x and of x >> 8."""
        half, quarter = self.block // 2, self.block // 4
        odd = let(wide[2 * slot + 1])
        even = let(wide[2 * slot] - (odd << const(8, "uint16", half)))
        vectors = []
        for q in range(4):
            words = reinterpret(odd if q % 2 else even, f"uint32x{quarter}")
            shift, mask = const(16, "uint32", quarter), const(0xFFFF, "uint32", quarter)
            vectors.append(reinterpret(words >> shift if q >= 2 else words & mask, f"int32x{quarter}"))
        return vectors


class SwizzleReader(ShuffleReader):
    """The same by WebAssembly's i8x16.swizzle.

    It has no addition that widens: three operations for the sums of 16 bytes where halves would take four.
    """

    name = "lookup-swizzle"

    def shuffle(self, table: Expr, indices: Expr) -> Expr:
        """See `look_up`."""
        return look_up("wasm32", table, indices)


@dataclass(frozen=True)
class NarrowReader(ShuffleReader):
    """The same for entries of up to `largest`, of which several steps fit a byte before they are widened.

    That leaves a shuffle, an addition and a broadcasting load for a table. Weights lie as for `ShuffleReader`. Signs,
    codes of +1 and -1, have entries of at most 8, with the bias: 28 of them fit. 2-bit codes have entries up to 12.
    """

    largest: int = 2 * TABLE_CHANNELS
    name = "lookup-narrow"

    @property
    def most_steps(self) -> int:
        """Steps whose sums fit 16 bits."""
        return _WORD // (STEP_TABLES * self.largest)

    @property
    def byte_steps(self) -> int:
        """Steps whose sums fit a byte."""
        return _BYTE // (STEP_TABLES * self.largest)

    def accumulate(
        self, weight: Buffer, tables: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], list[Expr]]:
        """Add up the look-ups of a tile; return slot -> its four int32 vectors."""
        lanes, half, slots = self.block, self.block // 2, len(window.pixels) * together
        wide = Registers(2 * slots, half, "uint16")  # a slot's sum of x, then of x >> 8
        narrow = Registers(slots, lanes, "int8", zero=False)
        parts = -(-window.row_steps // self.byte_steps)
        size = -(-window.row_steps // parts)
        with loop(window.rows) as i, loop(parts) as part:
            narrow.clear()
            with loop(tirx.min(size, window.row_steps - part * size), part * size) as k:
                nibbles = self._indices(weight, window, index, together, i, k)
                for p, pixel in enumerate(window.pixels):
                    at = let((window.at(pixel, i) + k) * STEP_TABLES * TABLE_BYTES)
                    for t in range(STEP_TABLES):
                        entries = let(repeat(load(tables, at + t * TABLE_BYTES, TABLE_BYTES), TABLE_BYTES, lanes))
                        for g in range(together):
                            found = self.shuffle(entries, nibbles[g * STEP_TABLES + t])
                            narrow[p * together + g] = narrow[p * together + g] + found
            for slot in range(slots):
                pairs = let(reinterpret(narrow[slot], f"uint16x{half}"))
                wide[2 * slot] = wide[2 * slot] + pairs
                wide[2 * slot + 1] = wide[2 * slot + 1] + (pairs >> const(8, "uint16", half))
        return lambda slot: self._widened(wide, slot)
