"""Products of codes of up to 4 bits and weights of 1 or a few by byte shuffles as table look-ups.

For every pixel and four input channels a 16-byte table holds, for each choice of the four, the sum of the chosen
codes, plus a bias that makes signed ones unsigned where the reader needs that. Four weight bits of an output channel
index it: one byte shuffle adds up four channels for as many output channels as a vector has bytes.

A weight of several bits is as many planes of bits, v = sum of 2^i b_i, which read the same tables one after the other.
So BinaryWeightConv and BinaryWeightGemm take one pass, QuantConv and QuantGemm of 2-bit weights two. BinaryConv takes
one as well: a sign is a code of +-1.

Sums, zero points and loop order: see `code_product`. Tables are built once for all pixels, the border included: of code
0 they hold the bias throughout, of a zero point its multiples. A table costs two operations and serves all taps, planes
and output channels. In registers stands the tile of a `Reader`, over taps and steps of 16 channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgedm.targets.kernels import code_product
from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    block,
    cast,
    const,
    lane_numbers,
    let,
    load,
    local,
    loop,
    reinterpret,
    repeat,
    splat,
    store,
    sum_lanes,
    view,
    where,
)
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec
from edgedm.targets.kernels.tiles import Window

WORD_BITS = 64  # signs of a packed word
TABLE_CHANNELS = 4
TABLE_BYTES = 16
STEP_TABLES = 4
STEP_CHANNELS = STEP_TABLES * TABLE_CHANNELS
STEP_BYTES = STEP_TABLES * TABLE_BYTES

PARALLEL_MACS = 1 << 22  # about 8 us of one core
_ZERO_LANE = -128  # a shuffle index with its high bit set gives 0


class Reader(Protocol):
    """How tables are read: a vector instruction set's way, its weight layout and its register tile."""

    @property
    def name(self) -> str:
        """Names the family in a kernel's key."""

    @property
    def bias(self) -> int:
        """What tables of signed codes add to every entry."""

    @property
    def block(self) -> int:
        """Output channels of a vector of indices."""

    @property
    def lanes(self) -> int:
        """int32 lanes of the sums."""

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""

    @property
    def groups(self) -> int:
        """Vectors of indices of a tile."""

    @property
    def shuffle_lanes(self) -> int:
        """Bytes of the vectors that build tables."""

    @property
    def even_steps(self) -> bool:
        """Whether the weights hold steps in pairs."""

    def shuffle(self, table: Expr, indices: Expr) -> Expr:
        """Look up, in each 16 bytes, table[indices]; 0 for a negative index."""

    def pack(self, weight: Array, channels: int) -> Array:
        """Canonical uint8[O, (kh, kw,) Cb] -> uint8[blocks, taps, ...]."""

    def accumulate(
        self, weight: Buffer, tables: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], list[Expr]]:
        """Add up the look-ups of a tile; slot (pixel * together + group) -> int32 vectors, channels in order."""


def draft(shape: Convolution, operands: Operands, reader: Reader) -> Draft:
    """Return the kernel for codes of up to 4 bits, or for packed signs."""
    return code_product.draft(shape, operands, _Form(shape, operands, reader))


def steps_of(channels: int, even: bool) -> int:
    """Steps of 16 channels that hold `channels`, an even number of them where asked for."""
    steps = -(-channels // STEP_CHANNELS)
    return steps + (steps % 2 if even else 0)


@dataclass(frozen=True)
class _Form:
    """See `code_product.Form`."""

    shape: Convolution
    operands: Operands
    reader: Reader
    offset = 0
    image_offset = 0
    needs_copy = True
    parallel_macs = PARALLEL_MACS

    @property
    def name(self) -> str:
        reader, operands = self.reader, self.operands
        return f"{reader.name} {operands.bits}x{operands.weight_bits} {reader.block} {reader.pixels}x{reader.groups}"

    @property
    def block(self) -> int:
        return self.reader.block

    @property
    def pixels(self) -> int:
        return self.reader.pixels

    @property
    def groups(self) -> int:
        return self.reader.groups

    @property
    def lanes(self) -> int:
        return self.reader.lanes

    @property
    def steps(self) -> int:
        return steps_of(self.shape.channels, self.reader.even_steps)

    @property
    def pitch(self) -> int:
        return self.steps

    @property
    def bias(self) -> int:
        return self._entry_bias * self.steps * STEP_TABLES * self.shape.taps

    @property
    def _entry_bias(self) -> int:
        return self.reader.bias if self.operands.signed else 0

    @property
    def _words(self) -> int:
        """Packed words of a pixel's signs; 0 where codes have bytes."""
        return self.operands.specs[self.operands.image].shape[-1] if self.operands.packed else 0

    def image(self, height: int, width: int) -> TensorSpec:
        return TensorSpec((height, width, self.steps, STEP_BYTES), "int8")

    def view(self, codes: Buffer) -> Buffer:
        raise AssertionError("codes are no tables")

    def pack(self, weight: Array) -> Array:
        """The planes one after the other, the lowest first, each as the reader wants signs."""
        planes = [np.packbits(weight >> i & 1, axis=-1, bitorder="little") for i in range(self.operands.weight_bits)]
        return np.concatenate([self.reader.pack(plane, self.shape.channels) for plane in planes])

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Sequence[Expr]]:
        planes, vectors = self.operands.weight_bits, self.block // self.lanes
        if planes == 1:
            return self.reader.accumulate(weight, image, window, index, together)
        blocks, slots = -(-self.shape.out_channels // self.block), len(window.pixels) * together
        total = Registers(slots * vectors, self.lanes, "int32")
        for plane in range(planes):
            sums = self.reader.accumulate(weight, image, window, index + plane * blocks, together)
            for slot in range(slots):
                for q, vector in enumerate(sums(slot)):
                    number = slot * vectors + q
                    total[number] = total[number] + vector * const(1 << plane, "int32", self.lanes)
        return lambda slot: [total[slot * vectors + q] for q in range(vectors)]

    def stage(self, codes: Buffer, source: Expr, image: Buffer | None, sums: Buffer | None, pixel: Expr) -> None:
        """Tables and the sum of codes of one pixel."""
        if self._words:
            codes = view(codes, (codes.shape[0] * (WORD_BITS // STEP_CHANNELS),), "uint16")
        whole, rest = divmod(self.shape.channels, STEP_CHANNELS)
        with block():
            total = local(STEP_CHANNELS, "int32")
            store(total, const(0, "int32", STEP_CHANNELS), 0, STEP_CHANNELS)

            def add(vector: Expr, step: Expr) -> None:
                vector = let(vector)
                widened = cast(vector, "int32", STEP_CHANNELS)
                store(total, load(total, 0, STEP_CHANNELS) + widened, 0, STEP_CHANNELS)
                self._tables(vector, image, (pixel * self.steps + step) * STEP_BYTES)

            if whole:
                with loop(whole) as step:
                    add(self._whole_step(codes, source, step), step)
            if rest:
                add(self._part_step(codes, source, whole, rest), whole)
            for step in range(-(-self.shape.channels // STEP_CHANNELS), self.steps):
                at = (pixel * self.steps + step) * STEP_BYTES
                store(image, const(self._entry_bias, "int8", STEP_BYTES), at, STEP_BYTES)
            if sums is not None:
                store(sums, sum_lanes(load(total, 0, STEP_CHANNELS), STEP_CHANNELS), pixel)

    def border(self, zero: Expr | None, image: Buffer, pixel: Expr) -> None:
        first = pixel * self.steps * STEP_BYTES
        if zero is None:
            entries = const(self._entry_bias, "int8", STEP_BYTES)
        else:
            self._tables(splat(cast(zero, "int8"), STEP_CHANNELS), image, first)
            entries = let(load(image, first, STEP_BYTES))
        with loop(self.steps) as step:
            store(image, entries, first + step * STEP_BYTES, STEP_BYTES)

    def _whole_step(self, codes: Buffer, source: Expr, step: Expr) -> Expr:
        """The 16 codes of a step of pixel `source`; a sign's code is +1 or -1."""
        if not self._words:
            found = load(codes, source * self.shape.channels + step * STEP_CHANNELS, STEP_CHANNELS)
            return found if self.operands.signed else reinterpret(found, f"int8x{STEP_CHANNELS}")
        bits = load(codes, source * self._words * (WORD_BITS // STEP_CHANNELS) + step)
        lanes = const(1, "uint16", STEP_CHANNELS) << lane_numbers(STEP_CHANNELS, "uint16")
        positive = (splat(bits, STEP_CHANNELS) & lanes) != const(0, "uint16", STEP_CHANNELS)
        return where(positive, const(1, "int8", STEP_CHANNELS), const(-1, "int8", STEP_CHANNELS))

    def _part_step(self, codes: Buffer, source: Expr, step: int, count: int) -> Expr:
        """The first `count` codes of a step; the others are 0."""
        if self._words:
            inside = lane_numbers(STEP_CHANNELS, "int8") < const(count, "int8", STEP_CHANNELS)
            return where(inside, self._whole_step(codes, source, step), const(0, "int8", STEP_CHANNELS))
        last = local(STEP_CHANNELS, "int8")
        store(last, const(0, "int8", STEP_CHANNELS), 0, STEP_CHANNELS)
        with loop(count) as channel:
            code = load(codes, source * self.shape.channels + step * STEP_CHANNELS + channel)
            store(last, cast(code, "int8"), channel)
        return load(last, 0, STEP_CHANNELS)

    def _tables(self, codes: Expr, tables: Buffer, at: Expr) -> None:
        """The tables of 16 codes: lane 16 g + e sums the codes of group g that the bits of e choose, and the bias."""
        lanes = self.reader.shuffle_lanes
        repeated = let(repeat(codes, STEP_CHANNELS, lanes))
        lane = lane_numbers(lanes, "int8")
        for first in range(0, STEP_BYTES, lanes):
            group = (lane >> const(4, "int8", lanes)) + const(first // TABLE_BYTES, "int8", lanes)
            total = const(self._entry_bias, "int8", lanes)
            for bit in range(TABLE_CHANNELS):
                chosen = (lane >> const(bit, "int8", lanes)) & const(1, "int8", lanes)
                source = group * const(TABLE_CHANNELS, "int8", lanes) + const(bit, "int8", lanes)
                index = where(chosen > const(0, "int8", lanes), source, const(_ZERO_LANE, "int8", lanes))
                total = total + self.reader.shuffle(repeated, index)
            store(tables, total, at + first, lanes)
