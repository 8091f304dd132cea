"""W1A4 products by byte shuffles as table look-ups: BinaryWeightConv and BinaryWeightGemm.

They serve BinaryConv and BinaryGemm too, where counting bits takes several instructions: a sign is a code of +-1.

For every pixel and four input channels a 16-byte table holds, for each choice of the four, the sum of the chosen
codes, plus a bias that makes it unsigned where the reader needs that. Four weight bits of an output channel index
it: one byte shuffle adds up four channels for as many output channels as a vector has bytes. With b the weight
bits and a the codes,

    sum of (2 b - 1) a = 2 (look-ups - bias * number of tables) - sum of a,

the last sum over the receptive field, once a pixel. Padding is code 0, whose tables hold the bias throughout.

Loop order: tables of all pixels, sums over receptive fields, then as in `bitserial`: unit (rows x output channel
groups, over threads), row block, column block, and in registers the tile of a `Reader`, over taps and steps of 16
channels. A table costs two operations and serves all taps and output channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    block,
    branch,
    cast,
    const,
    lane_numbers,
    let,
    load,
    local,
    loop,
    parallel,
    repeat,
    splat,
    store,
    sum_lanes,
    view,
    where,
)
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue, store_few
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec
from edgedm.targets.kernels.tiles import Border, Pixel, Window, sum_fields, sweep

WORD_BITS = 64  # signs of a packed word
TABLE_CHANNELS = 4
TABLE_BYTES = 16
STEP_TABLES = 4
STEP_CHANNELS = STEP_TABLES * TABLE_CHANNELS
STEP_BYTES = STEP_TABLES * TABLE_BYTES

PARALLEL_MACS = 1 << 23  # about 20 us of one core
_ZERO_LANE = -128  # a shuffle index with its high bit set gives 0


class Reader(Protocol):
    """How tables are read: a vector instruction set's way, its weight layout and its register tile."""

    @property
    def name(self) -> str:
        """Names the family in a kernel's key."""

    @property
    def bias(self) -> int:
        """What tables add to every entry."""

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


def draft(
    shape: Convolution, codes: TensorSpec, weight: Array, output: tuple[int, ...], epilogue: Epilogue, reader: Reader
) -> Draft:
    """Return the kernel for codes int8[..., C] in -8..7, or bits uint64[..., words], and a canonical weight."""
    packed = TensorSpec(reader.pack(weight, shape.channels).shape, "uint8")
    name = "bits" if codes.dtype == "uint64" else "codes"
    kernel = _Kernel(shape, epilogue, reader, codes)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        kernel.emit(inputs, inputs[name], outs[0], scratch)

    terms = {name: operand.spec for name, operand in epilogue.terms.items()}
    return Draft(
        family=f"{reader.name} {reader.block} {reader.pixels}x{reader.groups}",
        body=body,
        inputs={name: codes, "weight": packed, **terms},
        outputs=[TensorSpec(output, "float32")],
        scratch=kernel.scratch(),
        pack={"weight": lambda array: reader.pack(array, shape.channels)},
        macs=shape.macs,
    )


def steps_of(channels: int, even: bool) -> int:
    """Steps of 16 channels that hold `channels`, an even number of them where asked for."""
    steps = -(-channels // STEP_CHANNELS)
    return steps + (steps % 2 if even else 0)


class _Kernel:
    def __init__(self, shape: Convolution, epilogue: Epilogue, reader: Reader, codes: TensorSpec) -> None:
        self.shape, self.epilogue, self.reader = shape, epilogue, reader
        self.words = codes.shape[-1] if codes.dtype == "uint64" else 0  # of signs, a bit each
        self.blocks = -(-shape.out_channels // reader.block)
        self.border = Border(shape)
        self.height = self.border.height if shape.padded else shape.height
        self.width = self.border.width if shape.padded else shape.width
        self.steps = steps_of(shape.channels, reader.even_steps)
        self.worthwhile = shape.macs >= PARALLEL_MACS

    def scratch(self) -> list[TensorSpec]:
        """Tables of every pixel with its border; sums of codes of pixels; of receptive fields of more than a pixel."""
        specs = [
            TensorSpec((self.height, self.width, self.steps, STEP_BYTES), "int8"),
            TensorSpec((self.height, self.width), "int32"),
        ]
        if not self.shape.pointwise:
            specs.append(TensorSpec((self.shape.out_height, self.shape.out_width), "int32"))
        return specs

    def emit(self, inputs: Mapping[str, Buffer], codes: Buffer, y: Buffer, scratch: Sequence[Buffer]) -> None:
        tables, sums, *rest = scratch
        fields = rest[0] if rest else sums
        if self.words:
            codes = view(codes, (codes.shape[0] * (WORD_BITS // STEP_CHANNELS),), "uint16")
        self._build_tables(codes, tables, sums)
        if fields is not sums:
            sum_fields(self.shape, self.width, sums, fields)
        self._product(inputs, tables, fields, y)

    def _build_tables(self, codes: Buffer, tables: Buffer, sums: Buffer) -> None:
        top, left = self.shape.pads[:2]
        with parallel(self.height, self.worthwhile) as row, loop(self.width) as column:
            pixel = let(row * self.width + column)
            source = (row - top) * self.shape.width + column - left

            def clear() -> None:
                with loop(self.steps) as step:
                    at = (pixel * self.steps + step) * STEP_BYTES
                    store(tables, const(self.reader.bias, "int8", STEP_BYTES), at, STEP_BYTES)
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
                self._step_tables(vector, tables, (pixel * self.steps + step) * STEP_BYTES)

            if whole:
                with loop(whole) as step:
                    add(self._whole_step(codes, source, step), step)
            if rest:
                add(self._part_step(codes, source, whole, rest), whole)
            for step in range(-(-self.shape.channels // STEP_CHANNELS), self.steps):
                at = (pixel * self.steps + step) * STEP_BYTES
                store(tables, const(self.reader.bias, "int8", STEP_BYTES), at, STEP_BYTES)
            store(sums, sum_lanes(load(total, 0, STEP_CHANNELS), STEP_CHANNELS), pixel)

    def _whole_step(self, codes: Buffer, source: Expr, step: Expr) -> Expr:
        """The 16 codes of a step of pixel `source`; a sign's code is +1 or -1."""
        if not self.words:
            return load(codes, source * self.shape.channels + step * STEP_CHANNELS, STEP_CHANNELS)
        bits = load(codes, source * self.words * (WORD_BITS // STEP_CHANNELS) + step)
        lanes = const(1, "uint16", STEP_CHANNELS) << lane_numbers(STEP_CHANNELS, "uint16")
        positive = (splat(bits, STEP_CHANNELS) & lanes) != const(0, "uint16", STEP_CHANNELS)
        return where(positive, const(1, "int8", STEP_CHANNELS), const(-1, "int8", STEP_CHANNELS))

    def _part_step(self, codes: Buffer, source: Expr, step: int, count: int) -> Expr:
        """The first `count` codes of a step; the others are 0."""
        if self.words:
            inside = lane_numbers(STEP_CHANNELS, "int8") < const(count, "int8", STEP_CHANNELS)
            return where(inside, self._whole_step(codes, source, step), const(0, "int8", STEP_CHANNELS))
        last = local(STEP_CHANNELS, "int8")
        store(last, const(0, "int8", STEP_CHANNELS), 0, STEP_CHANNELS)
        with loop(count) as channel:
            store(last, load(codes, source * self.shape.channels + step * STEP_CHANNELS + channel), channel)
        return load(last, 0, STEP_CHANNELS)

    def _step_tables(self, codes: Expr, tables: Buffer, at: Expr) -> None:
        """The tables of 16 codes: lane 16 g + e sums the codes of group g that the bits of e choose, and the bias."""
        lanes = self.reader.shuffle_lanes
        repeated = let(repeat(codes, STEP_CHANNELS, lanes))
        lane = lane_numbers(lanes, "int8")
        for first in range(0, STEP_BYTES, lanes):
            group = (lane >> const(4, "int8", lanes)) + const(first // TABLE_BYTES, "int8", lanes)
            total = const(self.reader.bias, "int8", lanes)
            for bit in range(TABLE_CHANNELS):
                chosen = (lane >> const(bit, "int8", lanes)) & const(1, "int8", lanes)
                source = group * const(TABLE_CHANNELS, "int8", lanes) + const(bit, "int8", lanes)
                index = where(chosen > const(0, "int8", lanes), source, const(_ZERO_LANE, "int8", lanes))
                total = total + self.reader.shuffle(repeated, index)
            store(tables, total, at + first, lanes)

    def _product(self, inputs: Mapping[str, Buffer], tables: Buffer, fields: Buffer, y: Buffer) -> None:
        def tile(pixels: Sequence[Pixel], index: Expr, together: int, tail: bool) -> None:
            self._tile(inputs, tables, fields, y, pixels, index, together, tail)

        row_bytes = self.width * self.steps * STEP_BYTES
        sweep(self.shape, self.reader, row_bytes, self.worthwhile, tile)

    def _tile(
        self,
        inputs: Mapping[str, Buffer],
        tables: Buffer,
        fields: Buffer,
        y: Buffer,
        pixels: Sequence[Pixel],
        index: Expr,
        together: int,
        tail: bool,
    ) -> None:
        (kh, kw), (sh, sw) = self.shape.kernel, self.shape.strides

        def at(pixel: Pixel, i: Expr) -> Expr:
            return ((pixel[0] * sh + i) * self.width + pixel[1] * sw) * self.steps

        # the steps of a kernel row's taps are neighbours
        window = Window(kh, kw * self.steps, pixels, at)
        sums = self.reader.accumulate(inputs["weight"], tables, window, index, together)
        for p, (h, w) in enumerate(pixels):
            pixel = let(h * self.shape.out_width + w)
            field = let(load(fields, pixel))
            for g in range(together):
                last = tail and g == together - 1
                self._finish(sums(p * together + g), field, inputs, y, pixel, index + g, last)

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
        size, out_channels = self.reader.lanes, self.shape.out_channels
        first = index * self.reader.block
        bias = 2 * self.reader.bias * self.steps * STEP_TABLES * self.shape.taps
        left = out_channels % self.reader.block if tail else self.reader.block
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
                store_few(cast(total, "float32", size), count, size, self.epilogue, inputs, y, pixel, channel)
