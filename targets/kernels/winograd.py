"""QuantConv 3x3 with stride 1 in fewer multiplications: Winograd's F(2x2, 3x3), in integers and exact.

Four outputs of a 3x3 window need 16 products instead of 36 (Lavin and Gray, arXiv 1509.09308, section 4.1). With d a
4x4 patch of codes less their zero point (0 in the padding), g the 3x3 weights less theirs, and

         1  0 -1  0           2  0  0
    B =  0  1  1  0      G =  1  1  1      A =  1  1  1  0
         0 -1  1  0           1 -1  1           0  1 -1 -1
         0  1  0 -1           0  0  2

the outputs are A ((G g G') * (B d B')) A' / 4, element by element and summed over channels in between. G is twice the
usual one, so that it is whole; the sum is then four times the result, and the division leaves nothing over. Codes of 4
bits and less make B d B' lie within 60 of 0, so that 64 more makes it an unsigned byte (and a signed one), and G g G'
is a signed byte unless a filter is nearly all at one end of its range: `fits` looks. What the 64 adds to the sums
depends on the weights alone and is taken off per output channel and place in the 2x2.

Loop order: codes into a bordered image of bytes; then strip after strip of the image: all patches of the strip into 16
matrices [patch][channel], and for each group of output channels (over threads) the 16 matrices [channel][output] from
the packed weights, 16 products of matrices on `tile`, sums back to outputs. Weights stay 4 bits wide in the file.

Limit: 16 dot products where `dot` needs 36, so 2.25 times its limit. Reached on one core, where `dot` does 231 GMAC/s:
425 (1.84 times) for 256 to 256 channels on 16x16 and 128 to 128 on 32x32, 325 on 8x8, where turning the weights is a
third of the work; on 4x4 that is more than it saves.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tvm import tirx

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
    loop,
    parallel,
    reinterpret,
    splat,
    store,
    view,
)
from edgedm.targets.kernels.dot_tiles import PARALLEL_MACS, WORD_CHANNELS, VnniDot
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import store_few
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec
from edgedm.targets.kernels.tiles import Pixel, Window, output_groups

MOST_BITS = 4  # of codes and of weights
PRODUCTS = 16 / 36
"""Products that the algorithm takes over those of the convolution."""

_POINTS, _OUT, _SIDE = 16, 2, 4  # products of a patch; rows of its outputs and of itself
_SHIFT = 64  # what makes a turned code unsigned
_INT8_MAX = 127
_STRIP_BYTES = 512 * 1024  # of turned codes: half of a core's second-level cache
_MOST_CHANNELS = 1024  # beyond, the turned weights of a group of outputs leave that cache; sums stay far below 2**31
_FEWEST_PATCHES = 9  # turning the weights costs as much as the products of four to six patches
_WORKERS = 8  # groups of output channels in the making at once, each with turned weights of its own
_WIDTHS = (64, 32, 16, 8)  # bytes of a vector

_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def fits(shape: Convolution, operands: Operands) -> bool:
    """Whether this kernel serves the convolution: its geometry, and whether bytes hold its turned weights."""
    if shape.kernel != (3, 3) or shape.strides != (1, 1) or max(operands.bits, operands.weight_bits) > MOST_BITS:
        return False
    if operands.zeros.max(initial=0) >= 1 << MOST_BITS:  # missing channels hold it, in four bits
        return False
    if shape.channels > _MOST_CHANNELS or _patches(shape.out_height) * _patches(shape.out_width) < _FEWEST_PATCHES:
        return False
    return bool(np.abs(_turn(operands.weight, operands.zeros)).max(initial=0) <= _INT8_MAX)


def draft(shape: Convolution, operands: Operands, tile: VnniDot) -> Draft:
    """Return the kernel for codes uint8[1, H, W, C]; `tile.lanes` and how many patches it takes at most matter."""
    kernel = _Kernel(shape, operands, tile)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        kernel.emit(inputs, outs[0], scratch)

    weight, zeros = kernel.pack_weight(operands.weight), kernel.pack_zeros(operands.zeros)
    return Draft(
        family=f"winograd-vnni {operands.bits}x{operands.weight_bits} {tile.lanes} {tile.pixels}x{tile.groups}",
        body=body,
        inputs={
            **operands.specs,
            "weight": TensorSpec(weight.shape, "uint8"),
            "weight_zero": TensorSpec(zeros.shape, "int32"),
        },
        outputs=[TensorSpec(operands.output, "float32")],
        scratch=kernel.scratch(),
        pack={"weight": kernel.pack_weight, "weight_zero": kernel.pack_zeros},
        macs=shape.macs,
    )


def patches(shape: Convolution) -> int:
    """How many 2x2 outputs cover the image."""
    return _patches(shape.out_height) * _patches(shape.out_width)


def _patches(extent: int) -> int:
    return -(-extent // _OUT)


def _turn(weight: Array, weight_zero: Array) -> Array:
    """Codes [O, 3, 3, C] and zero points [O] -> int32[O, 4, 4, C], G g G'."""
    g = weight.astype(np.int32) - weight_zero.astype(np.int32).reshape(-1, 1, 1, 1)
    turned: Array = np.einsum("pi,oijc,qj->opqc", _G, g, _G, optimize=True)
    return turned


class _Kernel:
    def __init__(self, shape: Convolution, operands: Operands, tile: VnniDot) -> None:
        self.shape, self.operands = shape, operands
        lanes = tile.lanes
        self.packer = VnniDot(lanes, tile.pixels, tile.groups, operands.bits, operands.weight_bits, nibbles=True)
        # unsigned codes on one side, signed weights on the other, whole bytes both
        self.tile = VnniDot(lanes, tile.pixels, tile.groups, bits=8, weight_bits=7, nibbles=False)
        self.steps = self.packer.steps(shape.channels)
        self.words = self.steps * self.packer.step_words
        self.bytes = self.words * WORD_CHANNELS  # of a pixel
        self.blocks = -(-shape.out_channels // lanes)
        self.channels = self.blocks * lanes
        self.rows, self.columns = _patches(shape.out_height), _patches(shape.out_width)
        self.strip = self._strip()
        self.patches = self.strip * self.columns
        self.parts = output_groups(shape.out_channels // lanes, tile.groups, self.blocks)
        self.worthwhile = shape.macs >= PARALLEL_MACS

    def _strip(self) -> int:
        """Rows of patches in a strip: a divisor of all of them."""
        most = max(1, _STRIP_BYTES // (_POINTS * self.bytes * self.columns))
        return max(rows for rows in range(1, self.rows + 1) if self.rows % rows == 0 and rows <= max(1, most))

    def pack_weight(self, weight: Array) -> Array:
        """Codes [O, 3, 3, C] as `Dot.pack` lays them out; missing channels have the zero point's code."""
        missing = self.steps * self.packer.step_channels - weight.shape[-1]
        zeros = self.operands.zeros.astype(np.uint8).reshape(-1, 1, 1, 1)
        filler = np.broadcast_to(zeros, (*weight.shape[:-1], missing))
        return self.packer.pack(np.concatenate([weight.astype(np.uint8), filler], axis=-1))

    def pack_zeros(self, weight_zero: Array) -> Array:
        """uint8[O] -> int32[5, blocks * lanes]: what `_SHIFT` adds to each of the 2x2 sums; zero points, 4 times."""
        sums = _turn(self.operands.weight, weight_zero).sum(axis=-1) * _SHIFT
        shifts = np.einsum("ip,opq,jq->ijo", _A, sums, _A, optimize=True).reshape(4, -1)
        zeros = np.repeat(weight_zero.astype(np.uint8), WORD_CHANNELS).view(np.int32)
        rows = np.concatenate([shifts, zeros[None]])
        return np.pad(rows, [(0, 0), (0, self.channels - rows.shape[1])]).astype(np.int32)

    @property
    def workers(self) -> int:
        """How many groups of output channels are made at once."""
        return max(min(count, _WORKERS) for _, count, _ in self.parts)

    def scratch(self) -> list[TensorSpec]:
        """The bordered image, bytes; a strip's turned codes; each worker's turned weights and sums."""
        height, width = _OUT * self.rows + _SIDE - _OUT, _OUT * self.columns + _SIDE - _OUT
        together = max(together for _, _, together in self.parts)
        return [
            TensorSpec((height, width, self.bytes), "uint8"),
            TensorSpec((_POINTS, self.patches, self.words), "int32"),
            TensorSpec((self.workers, _POINTS, together, self.words, self.tile.bytes), "uint8"),
            TensorSpec((self.workers, _POINTS, self.tile.pixels * together, self.tile.lanes), "int32"),
        ]

    def emit(self, inputs: Mapping[str, Buffer], y: Buffer, scratch: Sequence[Buffer]) -> None:
        image, turned, weights, sums = scratch
        self._border(inputs["codes"], inputs["zero"], image)
        with loop(self.rows // self.strip) as strip:
            first = strip * self.strip
            self._turn_codes(image, first, turned)
            for start, count, together in self.parts:
                workers = min(count, _WORKERS)
                with parallel(workers, self.worthwhile) as worker, loop((count - worker + workers - 1) // workers) as n:
                    index = let(start + (n * workers + worker) * together)
                    tail = (start + count * together) * self.tile.lanes > self.shape.out_channels
                    own = _Worker(worker, index, together, tail)
                    self._turn_weights(inputs, own, weights)
                    self._products(inputs, first, turned, weights, sums, own, y)

    def _border(self, codes: Buffer, zero: Buffer, image: Buffer) -> None:
        """Codes less their zero point into the middle of `image`; zeros around, and in the missing channels."""
        shape, (top, left) = self.shape, self.shape.pads[:2]
        height, width = _OUT * self.rows + _SIDE - _OUT, _OUT * self.columns + _SIDE - _OUT
        with parallel(height, self.worthwhile) as row, loop(width) as column:
            pixel = let((row * width + column) * self.bytes)
            source = ((row - top) * shape.width + column - left) * shape.channels

            def fill() -> None:
                def move(at: Expr, lanes: int) -> None:
                    store(image, load(codes, source + at, lanes) - splat(load(zero, 0), lanes), pixel + at, lanes)

                def clear(at: Expr, lanes: int) -> None:
                    store(image, const(0, "uint8", lanes), pixel + shape.channels + at, lanes)

                _in_widths(shape.channels, move)
                _in_widths(self.bytes - shape.channels, clear)

            def border() -> None:
                _in_widths(self.bytes, lambda at, lanes: store(image, const(0, "uint8", lanes), pixel + at, lanes))

            inside_row = tirx.all(row >= top, row < top + shape.height)
            branch(tirx.all(inside_row, column >= left, column < left + shape.width), fill, border)

    def _turn_codes(self, image: Buffer, first: Expr, turned: Buffer) -> None:
        """B d B' + 64 of every patch of the strip that begins at row of patches `first`."""
        width = _OUT * self.columns + _SIDE - _OUT
        out = view(turned, (_POINTS * self.patches * self.bytes,), "int8")
        with parallel(self.strip, self.worthwhile) as row, loop(self.columns) as column:
            corner = let(((first + row) * _OUT * width + column * _OUT) * self.bytes)
            patch = let(row * self.columns + column)

            def turn(at: Expr, lanes: int) -> None:
                with block():
                    d = [
                        [
                            reinterpret(load(image, corner + (i * width + j) * self.bytes + at, lanes), f"int8x{lanes}")
                            for j in range(_SIDE)
                        ]
                        for i in range(_SIDE)
                    ]
                    for p, q, value in _both(d, _turn_four, lanes):
                        shifted = value + const(_SHIFT, "int8", lanes)
                        store(out, shifted, ((p * _SIDE + q) * self.patches + patch) * self.bytes + at, lanes)

            _in_widths(self.bytes, turn)

    def _turn_weights(self, inputs: Mapping[str, Buffer], own: "_Worker", weights: Buffer) -> None:
        """G g G' of the worker's output channels, in the order that `Dot.accumulate` reads."""
        size, lanes = self.tile.bytes, self.tile.lanes
        with loop(own.together) as g, loop(self.steps) as k:
            channel = (own.index + g) * lanes
            zero = let(reinterpret(load(inputs["weight_zero"], 4 * self.channels + channel, lanes), f"int8x{size}"))
            taps = [
                self.packer.vectors(
                    let(load(inputs["weight"], (((own.index + g) * 9 + tap) * self.steps + k) * size, size))
                )
                for tap in range(9)
            ]
            for half in range(self.packer.step_words):
                with block():
                    d = [[hold(taps[3 * i + j][half] - zero, size) for j in range(3)] for i in range(3)]
                    for p, q, value in _both(d, _turn_three, size):
                        at = (own.weights(p * _SIDE + q) + g) * self.words + k * self.packer.step_words + half
                        store(weights, reinterpret(value, f"uint8x{size}"), at * size, size)

    def _products(
        self,
        inputs: Mapping[str, Buffer],
        first: Expr,
        turned: Buffer,
        weights: Buffer,
        sums: Buffer,
        own: "_Worker",
        y: Buffer,
    ) -> None:
        """All patches of a strip for the worker's output channels, `tile.pixels` at a time."""
        most = self.tile.pixels
        whole, rest = divmod(self.patches, most)
        for start, count, size in [(0, whole, most), (whole * most, 1, rest)]:
            if not (count and size):
                continue
            with loop(count) as n:
                patch = let(start + n * size)
                with loop(_POINTS) as point, block():
                    self._point(turned, weights, sums, own, point, patch, size)
                with loop(size) as p, block():
                    self._finish(inputs, first, sums, own, patch + p, p, size, y)

    def _point(
        self, turned: Buffer, weights: Buffer, sums: Buffer, own: "_Worker", point: Expr, patch: Expr, size: int
    ) -> None:
        """One of the 16 products of matrices: `size` patches against the worker's output channels."""

        def at(pixel: Pixel, _: Expr) -> Expr:
            return (point * self.patches + pixel[0]) * self.words

        window = Window(1, self.words, [(patch + p, 0) for p in range(size)], at)
        total = self.tile.accumulate(weights, turned, window, own.weights(point), own.together)
        for slot in range(size * own.together):
            store(sums, total(slot), (own.sums(point, self.tile.pixels) + slot) * self.tile.lanes, self.tile.lanes)

    def _finish(
        self,
        inputs: Mapping[str, Buffer],
        first: Expr,
        sums: Buffer,
        own: "_Worker",
        patch: Expr,
        place: Expr,
        size: int,
        y: Buffer,
    ) -> None:
        """A M A' / 4 of one patch, and its four outputs."""
        shape, lanes, epilogue = self.shape, self.tile.lanes, self.operands.epilogue
        top = let((first + patch // self.columns) * _OUT)
        left = let((patch % self.columns) * _OUT)
        for g in range(own.together):
            channel = let((own.index + g) * lanes)
            slot = place * own.together + g
            m = [
                [load(sums, (own.sums(i * _SIDE + j, self.tile.pixels) + slot) * lanes, lanes) for j in range(_SIDE)]
                for i in range(_SIDE)
            ]
            for i, j, total in _both(m, _back_four, lanes):
                shift = load(inputs["weight_zero"], (i * _OUT + j) * self.channels + channel, lanes)
                value = hold((total - shift) >> const(2, "int32", lanes), lanes)

                def put(i: int = i, j: int = j, g: int = g, value: Expr = value, channel: Expr = channel) -> None:
                    row = let((top + i) * shape.out_width + left + j)
                    number = cast(value, "float32", lanes)
                    if own.tail and g == own.together - 1:
                        count = shape.out_channels % lanes
                        store_few(number, count, lanes, epilogue, inputs, y, row, channel)
                    else:
                        done = epilogue.apply(number, inputs, row, channel, lanes)
                        store(y, done, row * shape.out_channels + channel, lanes)

                self._where_inside(top + i, left + j, put, i, j)

    def _where_inside(self, row: Expr, column: Expr, put: Callable[[], None], i: int, j: int) -> None:
        """Emit `put()`, under a condition where an odd side leaves a patch's second row or column outside."""
        tests = []
        if i and self.shape.out_height % _OUT:
            tests.append(row < self.shape.out_height)
        if j and self.shape.out_width % _OUT:
            tests.append(column < self.shape.out_width)
        if tests:
            branch(tests[0] if len(tests) == 1 else tirx.all(*tests), put)
        else:
            put()


class _Worker:
    """A worker's group of output channels: `together` vectors from block `index` on."""

    def __init__(self, number: Expr, index: Expr, together: int, tail: bool) -> None:
        self.number, self.index, self.together, self.tail = number, index, together, tail

    def weights(self, point: Expr) -> Expr:
        """The first of the worker's vectors of turned weights for a point, in units of all words of one."""
        return (self.number * _POINTS + point) * self.together

    def sums(self, point: Expr, pixels: int) -> Expr:
        """The first of the worker's vectors of sums for a point."""
        return (self.number * _POINTS + point) * pixels * self.together


Line = Callable[[Sequence[Expr], int], list[Expr]]


def _both(square: Sequence[Sequence[Expr]], line: Line, lanes: int) -> list[tuple[int, int, Expr]]:
    """Apply `line` to the columns of a square, then to its rows: (row, column, value) of each result."""
    columns = [line([row[j] for row in square], lanes) for j in range(len(square[0]))]
    done = []
    for i in range(len(columns[0])):
        for j, value in enumerate(line([column[i] for column in columns], lanes)):
            done.append((i, j, value))
    return done


def _turn_four(d: Sequence[Expr], lanes: int) -> list[Expr]:
    """B d."""
    return [hold(each, lanes) for each in (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])]


def _turn_three(g: Sequence[Expr], lanes: int) -> list[Expr]:
    """G g, with twice the usual G."""
    ends = hold(g[0] + g[2], lanes)
    return [hold(each, lanes) for each in (g[0] + g[0], ends + g[1], ends - g[1], g[2] + g[2])]


def _back_four(m: Sequence[Expr], lanes: int) -> list[Expr]:
    """A m."""
    return [hold(each, lanes) for each in (m[0] + m[1] + m[2], m[1] - m[2] - m[3])]


def _in_widths(count: int, emit: Callable[[Expr, int], None]) -> None:
    """Emit `emit(start, lanes)` over `count` bytes: the widest vectors first, single bytes last."""
    done = 0
    for width in (*_WIDTHS, 1):
        whole = (count - done) // width
        if whole:
            start = done
            with loop(whole) as n:
                emit(start + n * width, width)
            done += whole * width
