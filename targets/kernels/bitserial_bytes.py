"""W1A1 products by xor and population count in bytes: BinaryConv and BinaryGemm where vectors count bits of bytes.

That is NEON's `cnt` (and `vcnt`, `i8x16.popcnt`): an xor, a count and an addition for 128 MACs. A byte holds 31 such
counts, so sums are kept in bytes in registers and widened late: after all taps, where those are 31 steps or fewer,
else every 31, into 16-bit sums in memory.

A *step* is one vector of 16 bytes. With an even number of words a pixel it is 128 channels of one output channel, and
the input is loaded as it lies. With an odd number it is 64 channels of two output channels (`spread` 2), and a word
of the input is broadcast. Weights: uint64[O / 4][kernel row][step][4][words of a step], whose rows are consecutive.

Loop order: unit (rows x output channel groups, over threads), row block, column block, then, in registers, `pixels`
times `groups` blocks of four output channels over kernel rows and steps. Border and correction as in `bitserial`.

Limit: 24 vector instructions for 1,024 MACs and, with 4 pixels x 4 vectors of weights, 4 loads; two vector pipes
make that 85 MAC/cycle. Instructions and estimated cycles of the emitted loop: docs/bench/arm.md.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    block,
    cast,
    const,
    hold,
    let,
    load,
    loop,
    reinterpret,
    share,
    splat,
    store,
)
from edgedm.targets.kernels.byte_vectors import BYTES, add_pairs, pair_sums
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue, store_few
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import WORD_BYTES, Array, TensorSpec, as_words
from edgedm.targets.kernels.tiles import Border, Pixel, sweep

BLOCK = 4  # output channels of an int32 vector
MOST_STEPS = 255 // 8  # counts that add up within a byte
MOST_CHANNELS = 2**16  # over all taps: then 16-bit sums of parts of them do not overflow
PARALLEL_MACS = 1 << 21  # about 5 us of one AVX2 core, 9 of one of SSSE3
_VECTOR_WORDS = BYTES // WORD_BYTES


@dataclass(frozen=True)
class Tile:
    """Registers: `pixels` against `groups` blocks of four output channels, `spread` of which share a vector."""

    isa: str
    spread: int
    pixels: int
    groups: int

    @property
    def block(self) -> int:
        """Output channels of a block."""
        return BLOCK

    @property
    def step_words(self) -> int:
        """Words of the input in a step."""
        return _VECTOR_WORDS // self.spread

    @property
    def vectors(self) -> int:
        """Vectors of weights of a block in a step."""
        return BLOCK // self.spread

    def pack(self, weight: Array) -> Array:
        """uint8[O, (kh, kw,) Cb] -> uint64[ceil(O / 4), kh, steps, 4, words of a step]; missing channels are zeros."""
        words = as_words(weight)
        if words.ndim == 2:
            words = words[:, None, None]
        words = np.pad(words, [(0, -words.shape[0] % BLOCK), (0, 0), (0, 0), (0, 0)])
        steps = words.shape[2] * words.shape[3] // self.step_words
        rows = words.reshape(-1, BLOCK, words.shape[1], steps, self.step_words)
        return np.ascontiguousarray(rows.transpose(0, 2, 3, 1, 4))


def draft(
    shape: Convolution, bits: TensorSpec, weight: Array, output: tuple[int, ...], epilogue: Epilogue, tile: Tile
) -> Draft:
    """Return the kernel for bits uint64[..., words] and a canonical weight."""
    kernel = _Kernel(shape, bits.shape[-1], epilogue, tile)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        kernel.emit(inputs, outs[0], scratch)

    terms = {name: operand.spec for name, operand in epilogue.terms.items()}
    return Draft(
        family=f"bitserial-bytes {tile.spread} {tile.pixels}x{tile.groups}",
        body=body,
        inputs={"bits": bits, "weight": TensorSpec(tile.pack(weight).shape, "uint64"), **terms},
        outputs=[TensorSpec(output, "float32")],
        scratch=kernel.scratch(),
        pack={"weight": tile.pack},
        macs=shape.macs,
    )


class _Kernel:
    """Emits one kernel; sizes in words, steps and blocks, not bytes."""

    def __init__(self, shape: Convolution, words: int, epilogue: Epilogue, tile: Tile) -> None:
        self.shape, self.words, self.epilogue, self.tile = shape, words, epilogue, tile
        self.blocks = -(-shape.out_channels // BLOCK)
        self.border = Border(shape)
        self.width = self.border.width if shape.padded else shape.width  # of the image that windows read
        self.tap_steps = words // tile.step_words
        self.row_steps = shape.kernel[1] * self.tap_steps

    def scratch(self) -> list[TensorSpec]:
        """Zero-bordered image; then tap counts and corrections, int32 rows of all output channels."""
        if not self.shape.padded:
            return []
        channels = self.blocks * BLOCK
        return [
            TensorSpec((self.border.height, self.border.width, self.words), "uint64"),
            TensorSpec((self.shape.taps, channels), "int32"),
            TensorSpec((self.border.classes, channels), "int32"),
        ]

    def emit(self, inputs: Mapping[str, Buffer], y: Buffer, scratch: Sequence[Buffer]) -> None:
        image, weight = inputs["bits"], inputs["weight"]
        table, worthwhile = None, self.shape.macs >= PARALLEL_MACS
        if self.shape.padded:
            zero = functools.partial(const, 0, "uint64")
            correct = functools.partial(self._correct, weight, scratch[1], scratch[2])
            self.border.copy(image, scratch[0], self.words, zero, worthwhile, correct)
            image, table = scratch[0], scratch[2]

        def emit(pixels: Sequence[Pixel], index: Expr, together: int, tail: bool) -> None:
            sums = self._accumulate(image, weight, pixels, index, together)
            self._finish(sums, inputs, table, y, pixels, index, together, tail)

        sweep(self.shape, self.tile, self.width * self.words * WORD_BYTES, worthwhile, emit)

    def _correct(self, weight: Buffer, counts: Buffer, table: Buffer, part: Expr, parts: int) -> None:
        """Fill a part of `table`: per class valid taps * channels + 2 * the set weight bits of missing taps."""
        channels, (kh, kw) = self.blocks * BLOCK, self.shape.kernel
        with share(part, parts, self.blocks) as index:
            with loop(kh) as i, loop(kw) as j, block():
                first = (index * kh + i) * self.row_steps + j * self.tap_steps

                def add(sums: Registers, _: Expr, k: Expr, first: Expr = first) -> None:
                    for v, each in enumerate(self._weights(weight, first + k)):
                        sums[v] = sums[v] + tirx.popcount(each)

                total = self._sum(self.tile.vectors, 1, self.tap_steps, add)
                store(counts, total(0), (i * kw + j) * channels + index * BLOCK, BLOCK)
            for number, missing in self.border.missing_taps():
                valid = (self.shape.taps - len(missing)) * self.shape.channels
                total_missing = const(0, "int32", BLOCK)
                for tap in missing:
                    total_missing = total_missing + load(counts, tap * channels + index * BLOCK, BLOCK)
                value = const(valid, "int32", BLOCK) + total_missing * const(2, "int32", BLOCK)
                store(table, value, number * channels + index * BLOCK, BLOCK)

    def _accumulate(
        self, image: Buffer, weight: Buffer, pixels: Sequence[Pixel], index: Expr, together: int
    ) -> Callable[[int], Expr]:
        """Count the bits that differ; return slot (pixel * together + group) -> int32 vector of four channels."""
        kh, (sh, sw) = self.shape.kernel[0], self.shape.strides
        vectors = self.tile.vectors

        def add(sums: Registers, i: Expr, k: Expr) -> None:
            weights = []
            for g in range(together):
                weights += self._weights(weight, ((index + g) * kh + i) * self.row_steps + k)
            for p, (h, w) in enumerate(pixels):
                # the words of a kernel row are neighbours in the image, and so are those of its weights
                at = ((h * sh + i) * self.width + w * sw) * self.words + k * self.tile.step_words
                x = let(self._step(image, at))
                for v, each in enumerate(weights):
                    slot = p * len(weights) + v
                    sums[slot] = sums[slot] + tirx.popcount(x ^ each)

        return self._sum(len(pixels) * together * vectors, kh, self.row_steps, add)

    def _weights(self, weight: Buffer, step: Expr) -> list[Expr]:
        """The vectors of step `step` of a block, counted from the first weight on."""
        at = step * self.tile.vectors * _VECTOR_WORDS
        return [
            let(reinterpret(load(weight, at + v * _VECTOR_WORDS, _VECTOR_WORDS), f"uint8x{BYTES}"))
            for v in range(self.tile.vectors)
        ]

    def _step(self, image: Buffer, at: Expr) -> Expr:
        """A step of the input from word `at` on."""
        words = load(image, at, self.tile.step_words)
        return reinterpret(words if self.tile.spread == 1 else splat(words, _VECTOR_WORDS), f"uint8x{BYTES}")

    def _sum(
        self, slots: int, rows: int, row_steps: int, add: Callable[[Registers, Expr, Expr], None]
    ) -> Callable[[int], Expr]:
        """Run add(sums, row, step) over all steps, at most 31 before the byte sums are widened.

        Return number -> the int32 sums of the block whose vectors' sums are the slots from number * vectors on.
        """
        narrow = Registers(slots, BYTES, "uint8", zero=False)
        if rows * row_steps <= MOST_STEPS:
            narrow.clear()
            with loop(rows) as i, loop(row_steps) as k:
                add(narrow, i, k)
            return lambda number: self._merge([self._pairs(narrow[slot]) for slot in self._slots(number)])
        wide = Registers(slots, BYTES // 2, "uint16")
        together = max(1, MOST_STEPS // row_steps)  # rows
        parts = -(-row_steps // MOST_STEPS)  # of a row
        size = -(-row_steps // parts)
        with loop(-(-rows // together)) as group, loop(parts) as part:
            narrow.clear()
            first_row, first = let(group * together), let(part * size)
            with (
                loop(tirx.min(together, rows - first_row), first_row) as i,
                loop(tirx.min(size, row_steps - first), first) as k,
            ):
                add(narrow, i, k)
            for slot in range(slots):
                wide[slot] = wide[slot] + self._pairs(narrow[slot])
        return lambda number: self._merge([wide[slot] for slot in self._slots(number)])

    def _slots(self, number: int) -> range:
        return range(number * self.tile.vectors, (number + 1) * self.tile.vectors)

    def _pairs(self, narrow: Expr) -> Expr:
        return pair_sums(self.tile.isa, narrow, "uint8", BYTES)

    def _merge(self, vectors: list[Expr]) -> Expr:
        """The 16-bit sums of a block's vectors as four int32 sums, in order."""
        half = BYTES // 2
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [hold(add_pairs(first, second, half), half) for first, second in pairs]
        return reinterpret(pair_sums(self.tile.isa, vectors[0], "uint16", half), f"int32x{BLOCK}")

    def _finish(
        self,
        sums: Callable[[int], Expr],
        inputs: Mapping[str, Buffer],
        table: Buffer | None,
        y: Buffer,
        pixels: Sequence[Pixel],
        index: Expr,
        together: int,
        tail: bool,
    ) -> None:
        shape, channels = self.shape, self.blocks * BLOCK
        for p, (h, w) in enumerate(pixels):
            row = let(h * shape.out_width + w)
            number = let(self.border.class_of(h, w)) if table is not None else 0
            for g in range(together):
                channel = (index + g) * BLOCK
                if table is None:
                    base = const(shape.taps * shape.channels, "int32", BLOCK)
                else:
                    base = load(table, number * channels + channel, BLOCK)
                total = let(base - sums(p * together + g) * const(2, "int32", BLOCK))
                value = cast(total, "float32", BLOCK)
                if tail and g == together - 1:
                    count = shape.out_channels % BLOCK
                    store_few(value, count, BLOCK, self.epilogue, inputs, y, row, channel)
                else:
                    value = self.epilogue.apply(value, inputs, row, channel, BLOCK)
                    store(y, value, row * shape.out_channels + channel, BLOCK)
