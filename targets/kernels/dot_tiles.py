"""Register tiles of integer dot products: how int32 sums come from bytes, by instruction set.

A *word* is four channels' codes of one pixel, in 32 bits. It is broadcast and multiplied with a vector that holds, of
as many output channels as it has int32 lanes, the weights of the same four channels; an instruction's result is the
sum of the four products in each output channel's lane.

- `VnniDot`: vpdpbusd does all of it, 64 MACs in 512 bits.
- `PairDot`: vpmaddubsw adds pairs of products in 16 bits, which hold a number of them that follows from the codes'
  widths (72 of 4-bit ones); they are widened to int32 sums in memory before they would overflow.
- `WideDot`: vpmaddwd of codes widened to 16 bits, for codes too wide for `PairDot`; the image holds each word as two
  words of two 16-bit codes, its even and its odd bytes, which is how masks and shifts widen the weights too.

These instructions multiply unsigned by signed bytes: codes of up to 7 bits are either. Where both factors have 8 bits,
128 is taken off the weights (`offset`), and off their zero points.

Weights: uint8[O / lanes][tap][step][4 lanes]. Up to 4 bits, two words of channels share a vector, the earlier one in
the low nibbles; a step is 8 channels, one load, a mask, and a shift and a mask, which serve all pixels of the tile.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    const,
    intrinsic,
    let,
    load,
    loop,
    reinterpret,
    splat,
    sum_bytes,
)
from edgedm.targets.kernels.spec import Array
from edgedm.targets.kernels.tiles import Window

WORD_CHANNELS = 4
PARALLEL_MACS = 1 << 21  # about 9 us of one core
_SIGN = 128
_INT16_MAX = 2**15 - 1


@dataclass(frozen=True)
class Dot:
    """`pixels` broadcast words against `groups` vectors of `lanes` output channels; codes of `bits`."""

    lanes: int
    pixels: int
    groups: int
    bits: int
    weight_bits: int
    nibbles: bool  # whether the weights are packed two to a byte
    # whether the codes, not the weights, are int8; `WideDot` takes none
    signed: bool = field(default=False, kw_only=True)
    name = ""
    image_words = 1  # words of the image for four channels
    sums_a_lane = 1  # sums in the 32 bits of a lane

    @property
    def block(self) -> int:
        """Output channels of a vector."""
        return self.lanes

    @property
    def bytes(self) -> int:
        """Bytes of a vector."""
        return 4 * self.lanes

    @property
    def step_words(self) -> int:
        """Words of four channels in a vector of packed weights."""
        return 2 if self.nibbles else 1

    @property
    def step_channels(self) -> int:
        """Channels of a step."""
        return self.step_words * WORD_CHANNELS

    @property
    def offset(self) -> int:
        """What is taken off the weights."""
        return _SIGN if self.bits == self.weight_bits == 8 and not self.signed else 0

    @property
    def image_offset(self) -> int:
        """What is taken off the codes."""
        return 0

    def steps(self, channels: int) -> int:
        """Steps that hold `channels`."""
        return -(-channels // self.step_channels)

    def pack(self, weight: Array) -> Array:
        """Codes [O, (kh, kw,) C] -> uint8[ceil(O / lanes), taps, steps, 4 lanes]; missing channels are zeros."""
        rows = weight.astype(np.uint8).reshape(weight.shape[0], -1, weight.shape[-1]) ^ np.uint8(self.offset)
        rows = np.pad(rows, [(0, -rows.shape[0] % self.lanes), (0, 0), (0, -rows.shape[2] % self.step_channels)])
        blocks = rows.reshape(-1, self.lanes, rows.shape[1], self.steps(rows.shape[2]), self.step_words, WORD_CHANNELS)
        words = blocks.transpose(0, 2, 3, 4, 1, 5)  # block, tap, step, word, lane, channel
        words = words.reshape(*words.shape[:4], self.bytes)
        packed = words[..., 0, :] | words[..., 1, :] << np.uint8(4) if self.nibbles else words[..., 0, :]
        return np.ascontiguousarray(packed)

    def sum_bytes(self, codes: Expr, size: int) -> Expr:
        """Add up each 8 of `size` unsigned bytes (int8 lanes): int64 lanes."""
        return sum_bytes(codes, size)

    def widen(self, vector: Expr) -> list[Expr]:
        """The factors of `image_words` words from a vector of weights: itself, unless they are widened."""
        return [vector]

    def add(self, acc: Expr, word: Expr, factor: Expr) -> Expr:
        """One instruction's worth: `acc` plus the products of a broadcast word and a factor, in `acc`'s lanes."""
        raise NotImplementedError

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Expr]:
        """Add up a tile's products; return slot (pixel * together + group) -> its int32 vector.

        `window.at` counts words of the image. Here the sums stay int32 in registers.
        """
        slots = len(window.pixels) * together
        acc = Registers(slots, self.lanes, "int32")
        with loop(window.rows) as i, loop(window.row_steps) as k:
            self._step(weight, image, window, index, acc, i, k)
        return lambda slot: acc[slot]

    def _step(
        self,
        weight: Buffer,
        image: Buffer,
        window: Window,
        index: Expr,
        acc: Registers,
        i: Expr,
        k: Expr,
    ) -> None:
        """Add step k of kernel row i to all slots."""
        together = len(acc) // len(window.pixels)
        raw = self._load(weight, window, index, i, k, together)
        for number, vectors in enumerate(zip(*(self.vectors(each) for each in raw), strict=True)):
            for part, factors in enumerate(zip(*(self.widen(each) for each in vectors), strict=True)):
                at = (k * self.step_words + number) * self.image_words + part
                for p, pixel in enumerate(window.pixels):
                    word = let(load(image, window.at(pixel, i) + at))
                    for g in range(together):
                        slot = p * together + g
                        acc[slot] = self.add(acc[slot], word, factors[g])

    def vectors(self, raw: Expr) -> list[Expr]:
        """The weights of the words of a packed vector, int8 lanes."""
        if not self.nibbles:
            return [reinterpret(raw, f"int8x{self.bytes}")]
        half = self.bytes // 2
        high = (reinterpret(raw, f"uint16x{half}") >> const(4, "uint16", half)) & const(0x0F0F, "uint16", half)
        low = raw & const(15, "uint8", self.bytes)
        return [let(reinterpret(each, f"int8x{self.bytes}")) for each in (low, high)]

    def operands(self, word: Expr, vector: Expr) -> tuple[Expr, Expr]:
        """A broadcast word and weights as the unsigned and the signed factor."""
        codes = reinterpret(splat(word, self.lanes), f"int8x{self.bytes}")
        return (vector, codes) if self.signed or self.bits < 8 else (codes, vector)

    def _load(self, weight: Buffer, window: Window, index: Expr, i: Expr, k: Expr, together: int) -> list[Expr]:
        """The packed vectors of step k in kernel row i."""
        return [
            let(load(weight, (((index + g) * window.rows + i) * window.row_steps + k) * self.bytes, self.bytes))
            for g in range(together)
        ]


class VnniDot(Dot):
    """See the module."""

    name = "dot-vnni"

    def add(self, acc: Expr, word: Expr, factor: Expr) -> Expr:
        """See `Dot`."""
        return intrinsic(f"int32x{self.lanes}", _VNNI[self.lanes], acc, *self.operands(word, factor))


class WideDot(Dot):
    """See the module."""

    name = "dot-wide"
    image_words = 2

    @property
    def offset(self) -> int:
        """Nothing: 16 bits hold all codes."""
        return 0

    def widen(self, vector: Expr) -> list[Expr]:
        """The even and the odd bytes as 16-bit factors."""
        half = 2 * self.lanes
        both = reinterpret(vector, f"uint16x{half}")
        pair = (both & const(255, "uint16", half), both >> const(8, "uint16", half))
        return [let(reinterpret(each, f"int16x{half}")) for each in pair]

    def add(self, acc: Expr, word: Expr, factor: Expr) -> Expr:
        """See `Dot`."""
        codes = reinterpret(splat(word, self.lanes), f"int16x{2 * self.lanes}")
        return acc + intrinsic(f"int32x{self.lanes}", _ADD_WORDS[self.lanes], codes, factor)


class PairDot(Dot):
    """See the module."""

    name = "dot-pairs"
    sums_a_lane = 2

    @property
    def most_steps(self) -> int:
        """Steps whose sums fit 16 bits."""
        product = ((1 << self.bits) - 1) * ((1 << self.weight_bits) - 1)
        return _INT16_MAX // (2 * product * self.step_words)

    def lane_sums(self, sums: Expr) -> Expr:
        """int32 lanes: the sums of the two 16-bit ones in each."""
        return intrinsic(f"int32x{self.lanes}", _ADD_WORDS[self.lanes], sums, const(1, "int16", 2 * self.lanes))

    def add(self, acc: Expr, word: Expr, factor: Expr) -> Expr:
        """See `Dot`; `acc` has 16-bit lanes."""
        return acc + intrinsic(f"int16x{2 * self.lanes}", _PAIRS[self.lanes], *self.operands(word, factor))

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Expr]:
        """See `Dot`; the sums are 16 bits in registers, and int32 in memory where they outgrow that."""
        lanes, half, slots = self.lanes, 2 * self.lanes, len(window.pixels) * together
        narrow = Registers(slots, half, "int16", zero=False)

        def widened(slot: int) -> Expr:
            return self.lane_sums(narrow[slot])

        if window.rows * window.row_steps <= self.most_steps:
            narrow.clear()
            with loop(window.rows) as i, loop(window.row_steps) as k:
                self._step(weight, image, window, index, narrow, i, k)
            return widened
        wide = Registers(slots, lanes, "int32")
        parts = -(-window.row_steps // self.most_steps)
        size = -(-window.row_steps // parts)
        with loop(window.rows) as i, loop(parts) as part:
            narrow.clear()
            with loop(tirx.min(size, window.row_steps - part * size), part * size) as k:
                self._step(weight, image, window, index, narrow, i, k)
            for slot in range(slots):
                wide[slot] = wide[slot] + widened(slot)
        return lambda slot: wide[slot]


_VNNI = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
_PAIRS = {
    4: "llvm.x86.ssse3.pmadd.ub.sw.128",
    8: "llvm.x86.avx2.pmadd.ub.sw",
    16: "llvm.x86.avx512.pmaddubs.w.512",
}
_ADD_WORDS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
