"""Register tiles of integer dot products on NEON, by what the core has; see `dot_tiles` for words and vectors.

The last two are made of plain vector operations and serve ARMv7 too, the last one WebAssembly.

- `UdotDot` (dotprod): udot by element does it all, 16 MACs; a pixel's 16 channels are one vector, no word is broadcast.
- `MatrixDot` (i8mm): ummla multiplies two pixels' 8 channels with two output channels', 32 MACs.
- `ByteDot`, codes and weights of up to 4 bits without either: with 7 taken off the codes and 8 off the weights, two
  products fit a byte (-128..112), so mul, mla and one widening addition of pairs do 32 MACs; 16-bit sums.
- `LongDot`, wider codes: umull and umlal add products in 16 bits as long as they fit (17 of 4 by 8 bits, one of 8 by
  8), then uadalp adds pairs to int32 sums.

Weights: uint8[O / 4][tap][step][...]. Up to 4 bits two vectors share one, the earlier one in the low nibbles.

Limit in vector instructions for 1,024 MACs, besides nibbles: 64 for udot, 32 for ummla and 8 to pair pixels, 96 for
`ByteDot`, 160 or 256 for `LongDot`. Emitted loops and their estimated cycles: docs/bench/arm.md.
"""

from collections.abc import Callable, Sequence
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
    intrinsic,
    let,
    load,
    loop,
    permute,
    reinterpret,
    splat,
)
from edgedm.targets.kernels.byte_vectors import BYTES, add_pairs, pair_sums
from edgedm.targets.kernels.dot_tiles import WORD_CHANNELS, Dot
from edgedm.targets.kernels.spec import Array
from edgedm.targets.kernels.tiles import Window

LANES = 4
_HALF = BYTES // 2
_UDOT = "llvm.aarch64.neon.udot.v4i32.v16i8"
_UMMLA = "llvm.aarch64.neon.ummla.v4i32.v16i8"


@dataclass(frozen=True)
class NeonDot(Dot):
    """What the tiles share: steps of several words, weights without an offset, sums of bytes."""

    isa: str = "aarch64"

    @property
    def step_words(self) -> int:
        """Words of four channels in a step, whether or not weights are packed two to a byte."""
        return 4

    @property
    def offset(self) -> int:
        """Nothing: the factors are unsigned."""
        return 0

    @property
    def step_bytes(self) -> int:
        """Bytes of a block's weights in a step."""
        return self.bytes * self.step_words // (2 if self.nibbles else 1)

    def sum_bytes(self, codes: Expr, size: int) -> Expr:
        """See `Dot`."""
        total = reinterpret(codes, f"uint8x{size}")
        for bits in (8, 16, 32):
            total = pair_sums(self.isa, total, f"uint{bits}", 8 * size // bits)
        return reinterpret(total, f"int64x{size // 8}")

    def pack(self, weight: Array) -> Array:
        """Codes [O, (kh, kw,) C] -> uint8[ceil(O / 4), taps, steps, step bytes]; missing channels count for nothing."""
        rows = weight.astype(np.uint8).reshape(weight.shape[0], -1, weight.shape[-1]) - np.uint8(self.offset)
        rows = np.pad(rows, [(0, -rows.shape[0] % LANES), (0, 0), (0, -rows.shape[2] % self.step_channels)])
        blocks = rows.reshape(-1, LANES, rows.shape[1], self.steps(rows.shape[2]), self.step_channels)
        vectors = self.arrange(blocks.transpose(0, 2, 3, 1, 4))
        if self.nibbles:
            pairs = vectors.reshape(*vectors.shape[:3], -1, 2, BYTES) & np.uint8(15)
            vectors = pairs[..., 0, :] | pairs[..., 1, :] << np.uint8(4)
        return np.ascontiguousarray(vectors.reshape(*vectors.shape[:3], self.step_bytes))

    def arrange(self, steps: Array) -> Array:
        """[..., lane, channel] of a step -> [..., vectors, 16 bytes]: here a vector for each word."""
        words = steps.reshape(*steps.shape[:3], LANES, self.step_words, WORD_CHANNELS)
        return words.transpose(0, 1, 2, 4, 3, 5).reshape(*steps.shape[:3], self.step_words, BYTES)

    def factors(self, weight: Buffer, window: Window, index: Expr, i: Expr, k: Expr) -> list[Expr]:
        """The vectors of block `index` in step k of kernel row i, uint8."""
        step = (index * window.rows + i) * window.row_steps + k
        raw = [let(load(weight, step * self.step_bytes + at, BYTES)) for at in range(0, self.step_bytes, BYTES)]
        if not self.nibbles:
            return raw
        return [hold(half, BYTES) for each in raw for half in self.halves(each)]

    def halves(self, both: Expr) -> tuple[Expr, Expr]:
        """The vectors whose nibbles share one: the low ones', the high ones'."""
        return both & const(15, "uint8", BYTES), both >> const(4, "uint8", BYTES)

    def codes(self, image: Buffer, at: Expr, k: Expr, dtype: str) -> list[Expr]:
        """The words of step k from `at` on, each repeated over a vector."""
        words = [let(load(image, at + k * self.step_words + number)) for number in range(self.step_words)]
        return [reinterpret(splat(word, LANES), f"{dtype}x{BYTES}") for word in words]

    def steps_of(self, window: Window, step: Callable[[Expr, Expr], None]) -> None:
        """Emit step(kernel row, step) over a window."""
        with loop(window.rows) as i, loop(window.row_steps) as k:
            step(i, k)


class UdotDot(NeonDot):
    """See the module."""

    name = "dot-udot"

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Expr]:
        """See `Dot`."""
        acc = Registers(len(window.pixels) * together, LANES, "int32")

        def step(i: Expr, k: Expr) -> None:
            factors = [self.factors(weight, window, index + g, i, k) for g in range(together)]
            for p, pixel in enumerate(window.pixels):
                words = let(load(image, window.at(pixel, i) + k * self.step_words, LANES))
                for number in range(self.step_words):
                    word = reinterpret(permute(words, [number] * LANES), f"int8x{BYTES}")
                    for g in range(together):
                        slot = p * together + g
                        factor = reinterpret(factors[g][number], f"int8x{BYTES}")
                        acc[slot] = intrinsic("int32x4", _UDOT, acc[slot], factor, word)

        self.steps_of(window, step)
        return lambda slot: acc[slot]


class MatrixDot(NeonDot):
    """See the module; weights of two output channels share a vector: [step][first or last 8 channels][pair][2][8]."""

    name = "dot-ummla"

    def arrange(self, steps: Array) -> Array:
        """See `NeonDot`; nibbles hold a pair's first and last channels."""
        parts = steps.reshape(*steps.shape[:3], LANES // 2, 2, 2, _HALF)  # pair, lane, part, channel
        parts = parts.transpose(0, 1, 2, 3, 5, 4, 6)  # pair, part, lane, channel
        return parts.reshape(*steps.shape[:3], 4, BYTES)

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Expr]:
        """See `Dot`."""
        pixels = list(window.pixels)
        pairs = [(pixels[p], pixels[min(p + 1, len(pixels) - 1)]) for p in range(0, len(pixels), 2)]
        acc = Registers(len(pairs) * together * 2, LANES, "int32")  # two pixels x two output channels

        def step(i: Expr, k: Expr) -> None:
            factors = [self.factors(weight, window, index + g, i, k) for g in range(together)]
            for q, pair in enumerate(pairs):
                first, second = (
                    let(load(image, window.at(pixel, i) + k * self.step_words, self.step_words)) for pixel in pair
                )
                for part in range(2):
                    lanes = [2 * part, 2 * part + 1, 4 + 2 * part, 5 + 2 * part]
                    rows = reinterpret(hold(tirx.Shuffle([first, second], lanes), LANES), f"int8x{BYTES}")
                    for g in range(together):
                        for half in range(2):
                            slot = (q * together + g) * 2 + half
                            factor = reinterpret(factors[g][2 * half + part], f"int8x{BYTES}")
                            acc[slot] = intrinsic("int32x4", _UMMLA, acc[slot], rows, factor)

        self.steps_of(window, step)

        def sums(slot: int) -> Expr:
            p, g = divmod(slot, together)
            first = (p // 2 * together + g) * 2
            lane = p % 2 * 2
            return tirx.Shuffle([acc[first], acc[first + 1]], [lane, lane + 1, lane + 4, lane + 5])

        return sums


class ByteDot(NeonDot):
    """See the module; codes and weights of up to 4 bits."""

    name = "dot-bytes"

    @property
    def step_words(self) -> int:
        """See `NeonDot`: two, whose products fit a byte."""
        return 2

    @property
    def offset(self) -> int:
        """Makes weights -8..7 of 4 bits."""
        return 1 << (self.weight_bits - 1)

    @property
    def image_offset(self) -> int:
        """Makes codes -7..8 of 4 bits: one less than half, so that -8 never meets -8 and two products fit a byte."""
        return (1 << (self.bits - 1)) - 1

    @property
    def most_steps(self) -> int:
        """Steps, of four products in a lane, whose sums fit 16 bits."""
        return 2**15 // (2 * self.step_words * (1 << (self.bits - 1)) * self.offset)

    def halves(self, both: Expr) -> tuple[Expr, Expr]:
        """See `NeonDot`; signed nibbles."""
        signed = reinterpret(both, f"int8x{BYTES}")
        four = const(4, "int8", BYTES)
        return (signed << four) >> four, signed >> four

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Expr]:
        """See `Dot`; 16-bit sums in registers, int32 in memory where they outgrow that."""
        slots, rows, row_steps = len(window.pixels) * together, window.rows, window.row_steps
        narrow = Registers(slots, _HALF, "int16", zero=False)

        def step(i: Expr, k: Expr) -> None:
            factors = [
                [reinterpret(each, f"int8x{BYTES}") for each in self.factors(weight, window, index + g, i, k)]
                for g in range(together)
            ]
            for p, pixel in enumerate(window.pixels):
                codes = self.codes(image, window.at(pixel, i), k, "int8")
                for g in range(together):
                    slot = p * together + g
                    both = codes[0] * factors[g][0] + codes[1] * factors[g][1]
                    narrow[slot] = narrow[slot] + pair_sums(self.isa, both, "int8", BYTES)

        def widened(slot: int) -> Expr:
            return pair_sums(self.isa, narrow[slot], "int16", _HALF)

        if rows * row_steps <= self.most_steps:
            narrow.clear()
            self.steps_of(window, step)
            return widened
        wide = Registers(slots, LANES, "int32")
        together_rows = max(1, self.most_steps // row_steps)
        parts = -(-row_steps // self.most_steps)
        size = -(-row_steps // parts)
        with loop(-(-rows // together_rows)) as group, loop(parts) as part:
            narrow.clear()
            row, first = let(group * together_rows), let(part * size)
            with (
                loop(tirx.min(together_rows, rows - row), row) as i,
                loop(tirx.min(size, row_steps - first), first) as k,
            ):
                step(i, k)
            for slot in range(slots):
                wide[slot] = wide[slot] + widened(slot)
        return lambda slot: wide[slot]


class LongDot(NeonDot):
    """See the module; codes and weights of any width."""

    name = "dot-long"

    @property
    def step_words(self) -> int:
        """See `NeonDot`: what adds up within 16 bits, or fills a vector of nibbles."""
        return max(self.together, 2 if self.nibbles else 1)

    @property
    def together(self) -> int:
        """Words whose products add up within 16 bits: 1, 2 or 4."""
        fit = (2**16 - 1) // (((1 << self.bits) - 1) * ((1 << self.weight_bits) - 1))
        return 4 if fit >= 4 else 2 if fit >= 2 else 1

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Expr]:
        """See `Dot`; a slot has two vectors, of pairs of sums of two output channels each."""
        acc = Registers(2 * len(window.pixels) * together, LANES, "uint32")

        def step(i: Expr, k: Expr) -> None:
            factors = [self.factors(weight, window, index + g, i, k) for g in range(together)]
            for p, pixel in enumerate(window.pixels):
                codes = self.codes(image, window.at(pixel, i), k, "uint8")
                for g in range(together):
                    for half in range(2):
                        slot = 2 * (p * together + g) + half
                        for first in range(0, self.step_words, self.together):
                            numbers = range(first, first + self.together)
                            total = _products([(codes[n], factors[g][n]) for n in numbers], half)
                            acc[slot] = acc[slot] + pair_sums(self.isa, total, "uint16", _HALF)

        self.steps_of(window, step)
        return lambda slot: reinterpret(add_pairs(acc[2 * slot], acc[2 * slot + 1], LANES), "int32x4")


def _products(pairs: Sequence[tuple[Expr, Expr]], half: int) -> Expr:
    """The sum of products of uint8 vectors' lower or upper halves, in 16 bits."""
    total = None
    for pair in pairs:
        one, other = (cast(permute(each, range(half * _HALF, (half + 1) * _HALF)), "uint16", _HALF) for each in pair)
        total = one * other if total is None else total + one * other
    return total
