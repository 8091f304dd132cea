"""W1A1 products by xor and population count: BinaryConv and BinaryGemm.

A lane is a 64-bit word of 64 input channels of one output channel. One word of the input, broadcast, is xored with
a vector of weights of as many output channels as there are lanes; the set bits are counted and added up in the
lanes. Weights: uint64[O / (2 lanes)][tap][word][2][lanes]; of each pair of vectors the first holds the even output
channels of its block, the second the odd ones, so that one shift and one or bring their sums, as int32, in order.

Loop order: unit (rows x output channel groups, over threads), row block, column block, then, in registers,
`rows` x `columns` pixels times `groups` pairs of vectors over taps and words. The input lies zero-bordered in
scratch (a zero bit means -1). For a pixel whose window reaches over the border, the border's share is known,
2 * popcount(weights of those taps), and taken off: one table row for each set of taps that some pixel lacks.

Limit with VPOPCNTDQ (an xor, a count and an addition for 8 words): 341 MAC/cycle on two 512-bit ports or four 256-bit
ones. Reached, of what `edgedm.bench.limits` measures on one core: 0.93 (1,165 of 1,247 GMAC/s) for 256 to 256 channels
3x3 on 16x16. Without VPOPCNTDQ LLVM counts by byte shuffles (0.96 of 364 GMAC/s with AVX2), which look-ups of signs
outrun: see `tuning.crossover`.
"""

import functools
from collections.abc import Mapping, Sequence
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
    let,
    load,
    loop,
    parallel,
    reinterpret,
    share,
    splat,
    store,
)
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue, store_few
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec, as_words
from edgedm.targets.kernels.tiles import Border, Grid, grid, output_groups, unit_rows

PARALLEL_MACS = 1 << 24  # about 15 us of one AVX-512 core
WORD_BITS = 64


@dataclass(frozen=True)
class Tile:
    """Registers: `pixels` broadcast words against `groups` pairs of vectors of `lanes` words."""

    lanes: int
    pixels: int
    groups: int

    @property
    def block(self) -> int:
        """Output channels of a pair of vectors."""
        return 2 * self.lanes


def pack_weight(weight: Array, lanes: int) -> Array:
    """uint8[O, (kh, kw,) Cb] -> uint64[ceil(O / 2 lanes), taps, words, 2, lanes]; missing channels are zeros."""
    words = as_words(weight)
    rows = words.reshape(words.shape[0], -1, words.shape[-1])  # O, taps, words
    missing = -rows.shape[0] % (2 * lanes)
    rows = np.pad(rows, [(0, missing), (0, 0), (0, 0)])
    blocks = rows.reshape(-1, lanes, 2, *rows.shape[1:])  # block, lane, even/odd, tap, word
    return np.ascontiguousarray(blocks.transpose(0, 3, 4, 2, 1))


def merge(even: Expr, odd: Expr, lanes: int, signed: bool = False) -> Expr:
    """Two vectors of uint64 sums, of even and odd channels, as int32 lanes in order; `signed` ones are below 0 too."""
    low = even & const(0xFFFFFFFF, "uint64", lanes) if signed else even
    return reinterpret(low | (odd << const(32, "uint64", lanes)), f"int32x{2 * lanes}")


def draft(shape: Convolution, operands: Operands, tile: Tile) -> Draft:
    """Return the kernel for bits uint64[..., words]."""
    bits = operands.specs[operands.image]
    packed = TensorSpec(pack_weight(operands.weight, tile.lanes).shape, "uint64")
    kernel = _Kernel(shape, bits.shape[-1], operands.epilogue, tile)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        kernel.emit(inputs, outs[0], scratch)

    return Draft(
        family=f"bitserial {tile.lanes}x64 {tile.pixels}x{tile.groups}",
        body=body,
        inputs={**operands.specs, "weight": packed},
        outputs=[TensorSpec(operands.output, "float32")],
        scratch=kernel.scratch(),
        pack={"weight": lambda array: pack_weight(array, tile.lanes)},
        macs=shape.macs,
    )


class _Kernel:
    """Emits one kernel; sizes in words and blocks, not bytes."""

    def __init__(self, shape: Convolution, words: int, epilogue: Epilogue, tile: Tile) -> None:
        self.shape, self.words, self.epilogue, self.tile = shape, words, epilogue, tile
        self.blocks = -(-shape.out_channels // tile.block)
        self.border = Border(shape)
        self.width = self.border.width if shape.padded else shape.width  # of the image that windows read
        self.worthwhile = shape.macs >= PARALLEL_MACS
        self.grid: Grid = grid(shape.out_height, shape.out_width, tile.pixels)

    def scratch(self) -> list[TensorSpec]:
        """Zero-bordered image; then tap counts and corrections, int32 rows of all output channels."""
        if not self.shape.padded:
            return []
        channels = self.blocks * self.tile.block
        return [
            TensorSpec((self.border.height, self.border.width, self.words), "uint64"),
            TensorSpec((self.shape.taps, channels), "int32"),
            TensorSpec((self.border.classes, channels), "int32"),
        ]

    def emit(self, inputs: Mapping[str, Buffer], y: Buffer, scratch: Sequence[Buffer]) -> None:
        image, weight = inputs["bits"], inputs["weight"]
        table = None
        if self.shape.padded:
            zero = functools.partial(const, 0, "uint64")
            correct = functools.partial(self._correct, weight, scratch[1], scratch[2])
            self.border.copy(image, scratch[0], self.words, zero, self.worthwhile, correct)
            image, table = scratch[0], scratch[2]
        self._product(inputs, image, weight, table, y)

    def _correct(self, weight: Buffer, counts: Buffer, table: Buffer, part: Expr, parts: int) -> None:
        """Fill a part of `table`: per class valid taps * channels + 2 * the set weight bits of missing taps."""
        lanes, size = self.tile.lanes, self.tile.block
        channels = self.blocks * size
        steps = self.shape.taps * self.words
        with share(part, parts, self.blocks) as index:
            with loop(self.shape.taps) as tap, block():
                acc = Registers(2, lanes, "uint64")
                with loop(self.words) as word:
                    for half in range(2):
                        at = ((index * steps) + tap * self.words + word) * size + half * lanes
                        acc[half] = acc[half] + tirx.popcount(load(weight, at, lanes))
                store(counts, merge(acc[0], acc[1], lanes), tap * channels + index * size, size)
            for number, missing in self.border.missing_taps():
                valid = (self.shape.taps - len(missing)) * self.shape.channels
                total = const(0, "int32", size)
                for tap in missing:
                    total = total + load(counts, tap * channels + index * size, size)
                value = const(valid, "int32", size) + total * const(2, "int32", size)
                store(table, value, number * channels + index * size, size)

    def _product(
        self, inputs: Mapping[str, Buffer], image: Buffer, weight: Buffer, table: Buffer | None, y: Buffer
    ) -> None:
        full = self.shape.out_channels // self.tile.block
        row_bytes = self.width * self.words * 8 * self.shape.strides[0] * self.grid.rows
        for region in self.grid.regions:
            for first, count, together in output_groups(full, self.tile.groups, self.blocks):
                chunk = unit_rows(region.row_blocks, row_bytes, count)
                chunks = -(-region.row_blocks // chunk)
                tail = first * self.tile.block + count * together * self.tile.block > self.shape.out_channels
                with parallel(chunks * count, self.worthwhile) as unit:
                    index = first + (unit % count) * together
                    start = let((unit // count) * chunk)
                    with (
                        loop(tirx.min(chunk, region.row_blocks - start), start) as row,
                        loop(region.column_blocks) as c,
                    ):
                        oh = region.first_row + row * region.rows
                        ow = region.first_column + c * region.columns
                        with block():
                            pixels = [(i, j) for i in range(region.rows) for j in range(region.columns)]
                            acc = self._accumulate(image, weight, oh, ow, pixels, index, together)
                            self._finish(acc, inputs, table, y, oh, ow, pixels, index, together, tail)

    def _accumulate(
        self,
        image: Buffer,
        weight: Buffer,
        oh: Expr,
        ow: Expr,
        pixels: Sequence[tuple[int, int]],
        index: Expr,
        together: int,
    ) -> Registers:
        lanes, size = self.tile.lanes, self.tile.block
        kh, kw = self.shape.kernel
        sh, sw = self.shape.strides
        steps = kh * kw * self.words
        vectors = range(2 * together)
        acc = Registers(len(pixels) * len(vectors), lanes, "uint64")
        # the words of a kernel row are neighbours in the image, and so are those of its weights
        with loop(kh) as i, loop(kw * self.words) as step:
            weights = [
                let(
                    load(
                        weight,
                        ((index + v // 2) * steps + i * kw * self.words + step) * size + (v % 2) * lanes,
                        lanes,
                    )
                )
                for v in vectors
            ]
            for p, (dh, dw) in enumerate(pixels):
                at = (((oh + dh) * sh + i) * self.width + (ow + dw) * sw) * self.words + step
                x = let(load(image, at))
                for v in vectors:
                    slot = p * len(vectors) + v
                    acc[slot] = acc[slot] + tirx.popcount(splat(x, lanes) ^ weights[v])
        return acc

    def _finish(
        self,
        acc: Registers,
        inputs: Mapping[str, Buffer],
        table: Buffer | None,
        y: Buffer,
        oh: Expr,
        ow: Expr,
        pixels: Sequence[tuple[int, int]],
        index: Expr,
        together: int,
        tail: bool,
    ) -> None:
        size, shape = self.tile.block, self.shape
        channels = self.blocks * size
        for p, (dh, dw) in enumerate(pixels):
            row = let((oh + dh) * shape.out_width + ow + dw)
            number = let(self.border.class_of(oh + dh, ow + dw)) if table is not None else 0
            for g in range(together):
                channel = (index + g) * size
                if table is None:
                    base = const(shape.taps * shape.channels, "int32", size)
                else:
                    base = load(table, number * channels + channel, size)
                slot = 2 * (p * together + g)
                bits = merge(acc[slot], acc[slot + 1], self.tile.lanes)
                total = let(base - bits * const(2, "int32", size))
                if tail and g == together - 1:
                    store_few(
                        cast(total, "float32", size),
                        shape.out_channels % size,
                        size,
                        self.epilogue,
                        inputs,
                        y,
                        row,
                        channel,
                    )
                else:
                    value = self.epilogue.apply(cast(total, "float32", size), inputs, row, channel, size)
                    store(y, value, row * shape.out_channels + channel, size)
