"""W1A4 products by byte shuffles as table look-ups: BinaryWeightConv and BinaryWeightGemm.

For every pixel and four input channels a 16-byte table holds, for each choice of the four, the sum of the chosen
codes, plus 32 so that it is unsigned: at most 60. Four weight bits of an output channel index it, so one byte
shuffle adds four channels for as many output channels as a vector has bytes. Four look-ups fit a byte (240), 273
such bytes fit 16 bits; even and odd byte lanes widen separately. With b the weight bits and a the codes,

    sum of (2 b - 1) a = 2 (look-ups - 32 * number of tables) - sum of a,

the last sum over the receptive field, once a pixel. Padding is code 0: its tables hold 32 throughout.

Weights: uint8[O / lanes][tap][pair of tables][lanes], the earlier table's bits in the low nibble: one bit a weight.
Byte lane 4 j + q is output channel q * lanes / 4 + j of its block, so that widening to int32 by masks and shifts
leaves four vectors in order.

Tables cost two operations each and serve all taps and output channels. Limit (AVX-512, a shuffle, an addition and
5/8 for widening and indices each 4 x 64): about 186 MAC/cycle.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    block,
    byte_shuffle,
    cast,
    const,
    branch,
    lane_numbers,
    let,
    load,
    local,
    loop,
    parallel,
    reinterpret,
    repeat,
    splat,
    store,
    sum_lanes,
    where,
)
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue, store_few
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec
from edgedm.targets.kernels.tiles import Border, grid, output_groups

TABLE_CHANNELS = 4  # channels of a table
TABLE_BYTES = 16
BYTE_TABLES = 4  # look-ups that add up within a byte
BIAS = 32  # makes the smallest entry, 4 * -8, zero
WIDENINGS = 65535 // (BYTE_TABLES * (BIAS + 4 * 7))  # bytes' worth that add up within 16 bits: 273
STEP_CHANNELS = TABLE_CHANNELS * BYTE_TABLES

PARALLEL_MACS = 1 << 23
L1_BYTES = 16 * 1024
_FIELD_LANES = 8
_ZERO_LANE = -128  # a shuffle index with its high bit set gives 0


@dataclass(frozen=True)
class Tile:
    """`pixels` tables against `groups` vectors of `lanes` output channels."""

    lanes: int
    pixels: int
    groups: int


def pack_weight(weight: Array, lanes: int, channels: int) -> Array:
    """uint8[O, (kh, kw,) Cb] -> uint8[ceil(O / lanes), taps, tables / 2, lanes]; missing channels are zero bits."""
    rows = weight.reshape(weight.shape[0], -1, weight.shape[-1])
    bits = np.unpackbits(rows, axis=-1, count=channels, bitorder="little")
    bits = np.pad(bits, [(0, -rows.shape[0] % lanes), (0, 0), (0, -channels % STEP_CHANNELS)])
    nibbles = np.packbits(bits, axis=-1, bitorder="little")  # two tables a byte, the earlier one low
    blocks = nibbles.reshape(-1, TABLE_CHANNELS, lanes // 4, *nibbles.shape[1:])  # block, q, j, tap, pair
    ordered = blocks.transpose(0, 3, 4, 2, 1)  # block, tap, pair, j, q
    return np.ascontiguousarray(ordered).reshape(*ordered.shape[:3], lanes)


def draft(
    shape: Convolution, codes: TensorSpec, weight: Array, output: tuple[int, ...], epilogue: Epilogue, tile: Tile
) -> Draft:
    """Return the kernel for codes int8[..., C] in -8..7 and a canonical weight."""
    packed = TensorSpec(pack_weight(weight, tile.lanes, shape.channels).shape, "uint8")
    kernel = _Kernel(shape, epilogue, tile)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        kernel.emit(inputs, outs[0], scratch)

    terms = {name: operand.spec for name, operand in epilogue.terms.items()}
    return Draft(
        family=f"lookup {tile.lanes} {tile.pixels}x{tile.groups}",
        body=body,
        inputs={"codes": codes, "weight": packed, **terms},
        outputs=[TensorSpec(output, "float32")],
        scratch=kernel.scratch(),
        pack={"weight": lambda array: pack_weight(array, tile.lanes, shape.channels)},
        macs=shape.macs,
    )


class _Kernel:
    def __init__(self, shape: Convolution, epilogue: Epilogue, tile: Tile) -> None:
        self.shape, self.epilogue, self.tile = shape, epilogue, tile
        self.quarter = tile.lanes // 4  # int32 lanes of one widened vector
        self.blocks = -(-shape.out_channels // tile.lanes)
        self.border = Border(shape)
        self.height = self.border.height if shape.padded else shape.height
        self.width = self.border.width if shape.padded else shape.width
        self.steps = -(-shape.channels // STEP_CHANNELS)  # of BYTE_TABLES tables, a pixel
        self.tables = self.steps * BYTE_TABLES
        self.grid = grid(shape.out_height, shape.out_width, tile.pixels)
        self.worthwhile = shape.macs >= PARALLEL_MACS

    def scratch(self) -> list[TensorSpec]:
        """Tables of every pixel with its border; sums of codes of pixels; of receptive fields."""
        return [
            TensorSpec((self.height, self.width, self.tables, TABLE_BYTES), "int8"),
            TensorSpec((self.height, self.width), "int32"),
            TensorSpec((self.shape.out_height, self.shape.out_width), "int32"),
        ]

    def emit(self, inputs: Mapping[str, Buffer], y: Buffer, scratch: Sequence[Buffer]) -> None:
        tables, sums, fields = scratch
        self._build_tables(inputs["codes"], tables, sums)
        if self.shape.taps > 1 or self.shape.strides != (1, 1):
            self._sum_fields(sums, fields)
        else:
            fields = sums
        self._product(inputs, tables, fields, y)

    def _build_tables(self, codes: Buffer, tables: Buffer, sums: Buffer) -> None:
        top, left = self.shape.pads[:2]
        lanes = BYTE_TABLES * TABLE_BYTES
        with parallel(self.height, self.worthwhile) as row, loop(self.width) as column:
            pixel = let(row * self.width + column)
            source = ((row - top) * self.shape.width + column - left) * self.shape.channels

            def clear() -> None:
                with loop(self.steps) as step:
                    store(tables, const(BIAS, "int8", lanes), (pixel * self.steps + step) * lanes, lanes)
                store(sums, const(0, "int32"), pixel)

            def fill() -> None:
                self._pixel_tables(codes, source, tables, sums, pixel)

            if self.shape.padded:
                inside_row = tirx.all(row >= top, row < top + self.shape.height)
                branch(tirx.all(inside_row, column >= left, column < left + self.shape.width), fill, clear)
            else:
                fill()

    def _pixel_tables(self, codes: Buffer, source: Expr, tables: Buffer, sums: Buffer, pixel: Expr) -> None:
        """Tables and the sum of codes of one pixel."""
        whole, rest = divmod(self.shape.channels, STEP_CHANNELS)
        with block():
            total = local(STEP_CHANNELS, "int32")
            store(total, const(0, "int32", STEP_CHANNELS), 0, STEP_CHANNELS)

            def add(vector: Expr, step: Expr) -> None:
                vector = let(vector)
                widened = cast(vector, "int32", STEP_CHANNELS)
                store(total, load(total, 0, STEP_CHANNELS) + widened, 0, STEP_CHANNELS)
                self._step_tables(vector, tables, (pixel * self.tables + step * BYTE_TABLES) * TABLE_BYTES)

            if whole:
                with loop(whole) as step:
                    add(load(codes, source + step * STEP_CHANNELS, STEP_CHANNELS), step)
            if rest:
                with block():
                    last = local(STEP_CHANNELS, "int8")
                    store(last, const(0, "int8", STEP_CHANNELS), 0, STEP_CHANNELS)
                    with loop(rest) as channel:
                        store(last, load(codes, source + whole * STEP_CHANNELS + channel), channel)
                    add(load(last, 0, STEP_CHANNELS), whole)
            store(sums, sum_lanes(load(total, 0, STEP_CHANNELS), STEP_CHANNELS), pixel)

    def _step_tables(self, codes: Expr, tables: Buffer, at: Expr) -> None:
        """The tables of 16 codes: lane 16 g + e sums the codes of group g that the bits of e choose, and BIAS."""
        lanes = self.tile.lanes
        repeated = let(repeat(codes, STEP_CHANNELS, lanes))
        lane = lane_numbers(lanes, "int8")
        for first in range(0, BYTE_TABLES * TABLE_BYTES, lanes):
            group = (lane >> const(4, "int8", lanes)) + const(first // TABLE_BYTES, "int8", lanes)
            total = const(BIAS, "int8", lanes)
            for bit in range(TABLE_CHANNELS):
                chosen = (lane >> const(bit, "int8", lanes)) & const(1, "int8", lanes)
                source = group * const(TABLE_CHANNELS, "int8", lanes) + const(bit, "int8", lanes)
                index = where(chosen > const(0, "int8", lanes), source, const(_ZERO_LANE, "int8", lanes))
                total = total + byte_shuffle(repeated, index, lanes)
            store(tables, total, at + first, lanes)

    def _sum_fields(self, sums: Buffer, fields: Buffer) -> None:
        """Per output pixel the sum of codes over its receptive field."""
        (kh, kw), (sh, sw) = self.shape.kernel, self.shape.strides
        lanes = _FIELD_LANES if sw == 1 else 1
        whole = self.shape.out_width // lanes

        def add(oh: Expr, ow: Expr, lanes: int) -> None:
            total = const(0, "int32", lanes)
            for i in range(kh):
                for j in range(kw):
                    total = total + load(sums, (oh * sh + i) * self.width + ow * sw + j, lanes)
            store(fields, total, oh * self.shape.out_width + ow, lanes)

        with loop(self.shape.out_height) as oh:
            if whole:
                with loop(whole) as index:
                    add(oh, index * lanes, lanes)
            if self.shape.out_width - whole * lanes:
                with loop(self.shape.out_width - whole * lanes, whole * lanes) as ow:
                    add(oh, ow, 1)

    def _product(self, inputs: Mapping[str, Buffer], tables: Buffer, fields: Buffer, y: Buffer) -> None:
        full = self.shape.out_channels // self.tile.lanes
        row_bytes = self.width * self.tables * TABLE_BYTES * self.shape.strides[0] * self.grid.rows
        for region in self.grid.regions:
            chunk = max(1, min(region.row_blocks, L1_BYTES // row_bytes))
            chunks = -(-region.row_blocks // chunk)
            for first, count, together in output_groups(full, self.tile.groups, self.blocks):
                tail = (first + count * together) * self.tile.lanes > self.shape.out_channels
                with parallel(chunks * count, self.worthwhile) as unit:
                    index = let(first + (unit % count) * together)
                    start = let((unit // count) * chunk)
                    with (
                        loop(tirx.min(chunk, region.row_blocks - start), start) as row,
                        loop(region.column_blocks) as column,
                        block(),
                    ):
                        oh = region.first_row + row * region.rows
                        ow = region.first_column + column * region.columns
                        pixels = [(oh + i, ow + j) for i in range(region.rows) for j in range(region.columns)]
                        sums = self._accumulate(inputs["weight"], tables, pixels, index, together)
                        for p, (h, w) in enumerate(pixels):
                            pixel = let(h * self.shape.out_width + w)
                            field = let(load(fields, pixel))
                            for g in range(together):
                                vectors = sums(p * together + g)
                                last = tail and g == together - 1
                                self._finish(vectors, field, inputs, y, pixel, index + g, last)

    def _accumulate(
        self, weight: Buffer, tables: Buffer, pixels: Sequence[tuple[Expr, Expr]], index: Expr, together: int
    ) -> Callable[[int], list[Expr]]:
        """Add up all look-ups of a tile; return slot -> its four int32 vectors."""
        (kh, kw), (sh, sw) = self.shape.kernel, self.shape.strides
        lanes, half = self.tile.lanes, self.tile.lanes // 2
        slots = len(pixels) * together
        row_steps = kw * self.steps
        wide = local(slots * lanes, "uint16")  # even lanes of a slot, then its odd ones
        spill = local(slots * lanes, "int32") if kh * row_steps > WIDENINGS else None

        def clear(buffer: Buffer, dtype: str, size: int) -> None:
            for at in range(0, slots * lanes, size):
                store(buffer, const(0, dtype, size), at, size)

        def step(i: Expr, k: Expr) -> None:
            """Sixteen channels of one tap."""
            nibbles = []
            for g in range(together):
                at = ((index + g) * kh * row_steps + i * row_steps + k) * (BYTE_TABLES // 2) * lanes
                for pair in range(BYTE_TABLES // 2):
                    both = let(load(weight, at + pair * lanes, lanes))
                    low = both & const(15, "uint8", lanes)
                    high = (reinterpret(both, f"uint16x{half}") >> const(4, "uint16", half)) & const(0x0F0F, "uint16", half)
                    nibbles += [let(reinterpret(low, f"int8x{lanes}")), let(reinterpret(high, f"int8x{lanes}"))]
            for p, (h, w) in enumerate(pixels):
                at = let((((h * sh + i) * self.width + w * sw) * self.steps + k) * BYTE_TABLES * TABLE_BYTES)
                entries = [
                    let(repeat(load(tables, at + t * TABLE_BYTES, TABLE_BYTES), TABLE_BYTES, lanes)) for t in range(BYTE_TABLES)
                ]
                for g in range(together):
                    total = byte_shuffle(entries[0], nibbles[g * BYTE_TABLES], lanes)
                    for t in range(1, BYTE_TABLES):
                        total = total + byte_shuffle(entries[t], nibbles[g * BYTE_TABLES + t], lanes)
                    pairs = let(reinterpret(let(total), f"uint16x{half}"))
                    even, odd = (p * together + g) * lanes, (p * together + g) * lanes + half
                    store(wide, load(wide, even, half) + (pairs & const(0xFF, "uint16", half)), even, half)
                    store(wide, load(wide, odd, half) + (pairs >> const(8, "uint16", half)), odd, half)

        def widened(slot: int) -> list[Expr]:
            """Vector q of a block's quarter q: byte lanes 4 j + q."""
            vectors = []
            for q in range(4):
                at = slot * lanes + (q % 2) * half
                words = reinterpret(load(wide, at, half), f"uint32x{self.quarter}")
                shift, mask = const(16, "uint32", self.quarter), const(0xFFFF, "uint32", self.quarter)
                vectors.append(reinterpret(words >> shift if q >= 2 else words & mask, f"int32x{self.quarter}"))
            return vectors

        def flush() -> None:
            for slot in range(slots):
                for q, vector in enumerate(widened(slot)):
                    at = slot * lanes + q * self.quarter
                    store(spill, load(spill, at, self.quarter) + vector, at, self.quarter)

        if spill is None:
            clear(wide, "uint16", half)
            with loop(kh) as i, loop(row_steps) as k:
                step(i, k)
            return widened
        clear(spill, "int32", self.quarter)
        with loop(kh) as i, loop(-(-row_steps // WIDENINGS)) as part:
            clear(wide, "uint16", half)
            start = let(part * WIDENINGS)
            with loop(tirx.min(WIDENINGS, row_steps - start), start) as k:
                step(i, k)
            flush()
        return lambda slot: [load(spill, slot * lanes + q * self.quarter, self.quarter) for q in range(4)]

    def _finish(
        self,
        vectors: Sequence[Expr],
        field: Expr,
        inputs: Mapping[str, Buffer],
        y: Buffer,
        pixel: Expr,
        index: Expr,
        tail: bool,
    ) -> None:
        size, out_channels = self.quarter, self.shape.out_channels
        first = index * self.tile.lanes
        bias = 2 * BIAS * self.tables * self.shape.taps
        left = out_channels % self.tile.lanes if tail else self.tile.lanes
        for q, vector in enumerate(vectors):
            channel = first + q * size
            count = min(size, left - q * size)
            if count <= 0:
                break
            total = let(vector * const(2, "int32", size) - splat(field + bias, size))
            if count == size:
                value = self.epilogue.apply(cast(total, "float32", size), inputs, pixel, channel, size)
                store(y, value, pixel * out_channels + channel, size)
            else:
                store_few(total, count, size, self.epilogue, inputs, y, pixel, channel)

