"""Products of two activations by integer dot products: QuantMatMul.

The right operand is laid out in scratch as `dot_tiles` wants weights, one byte a code: a copy of words where it is
transposed, four rows interleaved where not. With za, zb the zero points, b' and zb' the right side less the tile's
offset and K the reduction,

    sum of (a - za) (b - zb) = sum of a b' - zb' * (sum of a) - za * (sum of b - K zb)

of which the first sum in brackets is one number a row, the second bracket one number a column.

Threads share heads, or the rows, columns and tiles of the only one. Limit: as `dot`; the layout costs N * K / 4 moves
a head, or a quarter of that in vectors of ten operations.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    block,
    branch,
    cast,
    const,
    hold,
    let,
    load,
    local,
    loop,
    parallel,
    reinterpret,
    splat,
    store,
)
from edgedm.targets.kernels.dot_image import Image
from edgedm.targets.kernels.dot_tiles import PARALLEL_MACS, WORD_CHANNELS, Dot
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue, store_few
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import TensorSpec
from edgedm.targets.kernels.tiles import Pixel, Window, sweep

Inputs = Mapping[str, Buffer]


def draft(size: tuple[int, int, int, int], transposed: bool, specs: Mapping[str, TensorSpec], tile: Dot) -> Draft:
    """Return the kernel; `size` is (heads, M, N, K)."""
    kernel = _Kernel(size, transposed, tile)
    heads, m, n, k = size

    return Draft(
        family=f"{tile.name} {tile.bits}x{tile.weight_bits} {tile.lanes} {tile.pixels}x{tile.groups}",
        body=kernel.whole,
        inputs=specs,
        outputs=[TensorSpec((1, heads, m, n), "float32")],
        scratch=kernel.scratch(),
        macs=heads * m * n * k,
        apart=(kernel.layout, kernel.product),
    )


class _Kernel:
    def __init__(self, size: tuple[int, int, int, int], transposed: bool, tile: Dot) -> None:
        self.heads, self.m, self.n, self.k = size
        self.transposed, self.tile = transposed, tile
        self.image = Image(self.k, tile)
        self.steps = tile.steps(self.k)
        self.words = self.steps * tile.step_words
        self.columns = -(-self.n // tile.lanes) * tile.lanes
        self.worthwhile = self.heads * self.m * self.n * self.k >= PARALLEL_MACS
        self.rows_apart = self.worthwhile and self.heads == 1  # else threads take heads

    def scratch(self) -> list[TensorSpec]:
        """The right operand; what is taken off each column; sums of rows; the left operand where it is copied."""
        blocks = self.columns // self.tile.lanes
        specs = [
            TensorSpec((self.heads, blocks, self.words, self.tile.bytes), "uint8"),
            TensorSpec((self.heads, self.columns), "int32"),
            TensorSpec((self.heads, self.m), "int32"),
        ]
        if self.image.needs_copy:
            specs.append(TensorSpec((self.heads, self.m, self.image.words), "int32"))
        return specs

    def whole(self, inputs: Inputs, outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        """Emit all of it."""
        with self._heads() as h:
            self._lay_out(inputs, scratch, h)
            self._multiply(inputs, outs[0], scratch, h)

    def layout(self, inputs: Inputs, outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        """Emit what the right operand asks for."""
        del outs
        with self._heads() as h:
            self._lay_out(inputs, scratch, h)

    def product(self, inputs: Inputs, outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        """Emit the rest."""
        with self._heads() as h:
            self._multiply(inputs, outs[0], scratch, h)

    def _heads(self) -> AbstractContextManager[Expr]:
        return parallel(self.heads, self.worthwhile and not self.rows_apart)

    def _lay_out(self, inputs: Inputs, scratch: Sequence[Buffer], h: Expr) -> None:
        right, shifts = scratch[:2]
        zero_a = let(cast(load(inputs["a_zero"], h), "int32") - self.tile.image_offset)
        zero_b = let(cast(load(inputs["b_zero"], h), "int32"))
        arrange = self._transposed if self.transposed else self._straight
        arrange(inputs["b"], right, shifts, h, zero_a, zero_b)

    def _multiply(self, inputs: Inputs, y: Buffer, scratch: Sequence[Buffer], h: Expr) -> None:
        right, shifts, sums = scratch[:3]
        a = inputs["a"]
        rows = scratch[3] if self.image.needs_copy else self.image.as_words(a)
        zero_b = let(cast(load(inputs["b_zero"], h), "int32"))
        step = let(load(inputs["a_step"], h) * load(inputs["b_step"], h))
        with parallel(self.m, self.rows_apart) as row:
            source = (h * self.m + row) * self.k
            if self.image.needs_copy:
                self.image.copy(a, source, rows, h * self.m + row)
            store(sums, self.image.sum(a, source) - self.tile.image_offset * self.k, h * self.m + row)
        self._product(rows, right, shifts, sums, y, h, zero_b - self.tile.offset, step)

    def _transposed(self, b: Buffer, right: Buffer, shifts: Buffer, h: Expr, zero_a: Expr, zero_b: Expr) -> None:
        """Words of rows of K codes to lanes."""
        lanes = self.tile.lanes
        whole, rest = divmod(self.k, WORD_CHANNELS)
        with parallel(self.columns // lanes, self.rows_apart) as index, loop(lanes) as lane:
            column = let(index * lanes + lane)
            first = (h * self.n + column) * self.k
            at = (h * self.columns * self.words + index * lanes * self.words + lane) * WORD_CHANNELS

            def put(word: Expr, value: Expr, at: Expr = at) -> None:
                store(right, value, at + word * self.tile.bytes, WORD_CHANNELS)

            def fill(first: Expr = first, column: Expr = column, put: Callable[[Expr, Expr], None] = put) -> None:
                if whole:
                    with loop(whole) as word:
                        put(word, self._shifted(load(b, first + word * WORD_CHANNELS, WORD_CHANNELS), WORD_CHANNELS))
                if rest:
                    with block():
                        last = local(WORD_CHANNELS, "uint8")
                        store(last, const(self.tile.offset, "uint8", WORD_CHANNELS), 0, WORD_CHANNELS)
                        for c in range(rest):
                            store(last, load(b, first + whole * WORD_CHANNELS + c), c)
                        put(whole, self._shifted(load(last, 0, WORD_CHANNELS), WORD_CHANNELS))
                total = self.image.sum(b, first) - zero_b * self.k
                store(shifts, zero_a * total, h * self.columns + column)

            def clear(column: Expr = column, put: Callable[[Expr, Expr], None] = put) -> None:
                with loop(self.words) as word:
                    put(word, const(0, "uint8", WORD_CHANNELS))
                store(shifts, const(0, "int32"), h * self.columns + column)

            if self.columns == self.n:
                fill()
            else:
                branch(column < self.n, fill, clear)

    def _straight(self, b: Buffer, right: Buffer, shifts: Buffer, h: Expr, zero_a: Expr, zero_b: Expr) -> None:
        """Four rows of N codes, interleaved."""
        lanes, whole = self.tile.lanes, self.n // self.tile.lanes

        def column_block(index: Expr, count: int) -> None:
            with block():
                total = local(lanes, "int32")
                store(total, const(0, "int32", lanes), 0, lanes)
                row_of = local(lanes, "uint8")
                store(row_of, const(self.tile.offset, "uint8", lanes), 0, lanes)

                def row(word: Expr, c: int) -> Expr:
                    """Codes of row 4 word + c as int32 lanes."""
                    first = (h * self.k + word * WORD_CHANNELS + c) * self.n + index * lanes
                    if count == lanes:
                        return cast(load(b, first, lanes), "int32", lanes)
                    with loop(count) as lane:
                        store(row_of, load(b, first + lane), lane)
                    return hold(cast(load(row_of, 0, lanes), "int32", lanes), lanes)

                def interleave(word: Expr, rows: int) -> None:
                    packed = const(0, "int32", lanes)
                    for c in range(rows):
                        codes = hold(row(word, c), lanes)
                        store(total, load(total, 0, lanes) + codes, 0, lanes)
                        packed = packed | self._shifted(codes, lanes) << const(8 * c, "int32", lanes)
                    at = ((h * (self.columns // lanes) + index) * self.words + word) * self.tile.bytes
                    store(right, reinterpret(packed, f"uint8x{self.tile.bytes}"), at, self.tile.bytes)

                if self.k // WORD_CHANNELS:
                    with loop(self.k // WORD_CHANNELS) as word:
                        interleave(word, WORD_CHANNELS)
                if self.k % WORD_CHANNELS:
                    interleave(self.k // WORD_CHANNELS, self.k % WORD_CHANNELS)
                shift = (load(total, 0, lanes) - splat(zero_b * self.k, lanes)) * splat(zero_a, lanes)
                store(shifts, shift, h * self.columns + index * lanes, lanes)

        if whole:
            with parallel(whole, self.rows_apart) as index:
                column_block(index, lanes)
        if self.n % lanes:
            column_block(whole, self.n % lanes)

    def _shifted(self, codes: Expr, lanes: int) -> Expr:
        """Codes, uint8 or int32 lanes of a byte each, less the tile's offset, as bytes."""
        if not self.tile.offset:
            return codes
        dtype = str(codes.ty.dtype).partition("x")[0]
        return (codes - const(self.tile.offset, dtype, lanes)) & const(255, dtype, lanes)

    def _product(
        self,
        rows: Buffer,
        right: Buffer,
        shifts: Buffer,
        sums: Buffer,
        y: Buffer,
        h: Expr,
        zero_b: Expr,
        step: Expr,
    ) -> None:
        lanes, words = self.tile.lanes, self.image.words
        shape = Convolution(1, self.m, self.k, self.n)
        plain = Epilogue({}, (self.n,))

        def at(pixel: Pixel, i: Expr) -> Expr:
            del i  # the only one
            return (h * self.m + pixel[1]) * words

        def emit(pixels: Sequence[Pixel], index: Expr, together: int, tail: bool) -> None:
            window = Window(1, self.steps, pixels, at)
            acc = self.tile.accumulate(right, rows, window, h * (self.columns // lanes) + index, together)
            for p, (_, row) in enumerate(pixels):
                taken = let(load(sums, h * self.m + row) * zero_b)
                for g in range(together):
                    column = (index + g) * lanes
                    total = acc(p * together + g) - load(shifts, h * self.columns + column, lanes) - splat(taken, lanes)
                    value = cast(total, "float32", lanes) * splat(step, lanes)
                    if tail and g == together - 1:
                        store_few(value, self.n % lanes, lanes, plain, {}, y, h * self.m + row, column)
                    else:
                        store(y, value, (h * self.m + row) * self.n + column, lanes)

        sweep(shape, self.tile, self.m * words * 4, self.rows_apart, emit)
