"""float32 convolutions, channels last: FloatConv.

Three ways, by which axis fills the vectors:

- `channels out`: a tile of `pixels` x `vectors` of output channels; each input value is broadcast against the
  weights [O / lanes][tap][C][lanes], over taps and input channels. 24 accumulators in 32 registers: 10 loads for 24
  multiply-adds, within the limit of 8 MAC/cycle for each 256-bit multiplier. Reached of what `edgedm.bench.limits`
  measures: 0.98 with AVX-512 (57 of 58 GMAC/s on two such multipliers), 0.9 with AVX2. Where L1 does not hold a
  tile's weights, all pixels of a unit pass a part of them before the next: up to 1.9 times as fast for many channels.
- `channels in`, for few output channels of many input channels (the last convolution): vectors along the input
  channels, weights [O][tap][C], one accumulator a pixel, its lanes added up at the end.
- `pixels`, for one channel to one (the filter over mean magnitudes): vectors along a row.

The input lies zero-bordered in scratch where the convolution is padded.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgedm.targets.kernels.builder import (
    FEWEST_UNITS,
    Buffer,
    Expr,
    Registers,
    block,
    const,
    in_lanes,
    let,
    load,
    local,
    loop,
    parallel,
    share,
    splat,
    store,
    sum_lanes,
)
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue, store_few
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, Operand, TensorSpec
from edgedm.targets.kernels.tiles import Border, Pixel, Region, grid, output_groups

F32 = "float32"
PARALLEL_MACS = 1 << 19  # about 9 us of one core

_WEIGHT_BYTES = 28 << 10  # of the weights that stay in L1, which has 32 KiB or more
_FEWEST_STEPS = 32  # of a part: loading and storing the sums takes as long as four
_PIXELS = 128  # that pass the weights of a part, where there are so many


@dataclass(frozen=True)
class Tile:
    """Registers of the `channels out` way: `pixels` x `groups` vectors of `lanes` output channels."""

    lanes: int
    pixels: int
    groups: int


def draft(shape: Convolution, x: TensorSpec, weight: Operand, bias: Operand, tile: Tile) -> Draft:
    """Return the kernel for x f32[1, H, W, C] and weight f32[O, C, kh, kw]."""
    output = (1, shape.out_height, shape.out_width, shape.out_channels)
    epilogue = Epilogue.of({"addend": bias}, output)
    few = 2 * shape.out_channels <= tile.lanes
    if shape.channels == shape.out_channels == 1:
        kernel: _Kernel = _Pixels(shape, epilogue, tile)
    elif few and shape.channels >= tile.lanes:
        kernel = _ChannelsIn(shape, epilogue, tile)
    else:
        kernel = _ChannelsOut(shape, epilogue, tile)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        image = inputs["x"]
        if shape.padded:
            zero = functools.partial(const, 0.0, F32)
            kernel.border.copy(image, scratch[0], shape.channels, zero, kernel.worthwhile)
            image = scratch[0]
        terms = {"addend": inputs["bias"]} if "bias" in inputs else {}
        kernel.emit(image, inputs["weight"], terms, outs[0])

    inputs = {"x": x, "weight": TensorSpec(kernel.pack(np.zeros(weight.shape, F32)).shape, F32)}
    if epilogue.terms:
        inputs["bias"] = bias.spec
    border = TensorSpec((kernel.border.height, kernel.border.width, shape.channels), F32)
    return Draft(
        family=f"{kernel.name} {tile.lanes} {tile.pixels}x{tile.groups}",
        body=body,
        inputs=inputs,
        outputs=[TensorSpec(output, F32)],
        scratch=[border] if shape.padded else [],
        pack={"weight": kernel.pack},
        macs=shape.macs,
    )


class _Kernel:
    """What the three ways share. `emit` gets the image that windows read, zero-bordered where padded."""

    name = ""

    def __init__(self, shape: Convolution, epilogue: Epilogue, tile: Tile) -> None:
        self.shape, self.epilogue, self.tile = shape, epilogue, tile
        self.border = Border(shape)
        self.width = self.border.width if shape.padded else shape.width
        self.grid = grid(shape.out_height, shape.out_width, tile.pixels)
        self.worthwhile = shape.macs >= PARALLEL_MACS

    def pack(self, weight: Array) -> Array:
        """f32[O, C, kh, kw] -> this way's layout."""
        raise NotImplementedError

    def emit(self, image: Buffer, weight: Buffer, terms: Mapping[str, Buffer], y: Buffer) -> None:
        raise NotImplementedError

    def at(self, oh: Expr, ow: Expr, i: Expr) -> Expr:
        """Offset of the first value of kernel row i in the window of an output pixel."""
        sh, sw = self.shape.strides
        return ((oh * sh + i) * self.width + ow * sw) * self.shape.channels

    def row(self, oh: Expr, ow: Expr) -> Expr:
        """Flat number of an output pixel."""
        return oh * self.shape.out_width + ow


class _ChannelsOut(_Kernel):
    name = "float-conv out"

    def pack(self, weight: Array) -> Array:
        """f32[O, C, kh, kw] -> f32[ceil(O / lanes), taps, C, lanes]; missing channels are zeros."""
        lanes = self.tile.lanes
        rows = weight.reshape(*weight.shape[:2], -1)
        rows = np.pad(rows, [(0, -rows.shape[0] % lanes), (0, 0), (0, 0)])
        return np.ascontiguousarray(rows.reshape(-1, lanes, *rows.shape[1:]).transpose(0, 3, 2, 1))

    def emit(self, image: Buffer, weight: Buffer, terms: Mapping[str, Buffer], y: Buffer) -> None:
        lanes, shape = self.tile.lanes, self.shape
        full, blocks = shape.out_channels // lanes, -(-shape.out_channels // lanes)
        for region in self.grid.regions:
            for first, count, together in output_groups(full, self.tile.groups, blocks):
                tail = (first + count * together) * lanes > shape.out_channels
                parts = [_WHOLE] if tail else self._parts(together)
                chunks = region.row_blocks if parts == [_WHOLE] else _chunks(region, count)
                with parallel(chunks * count, self.worthwhile) as unit:
                    index = let(first + (unit % count) * together)
                    for part in parts:
                        with (
                            loop(part.repeats) as turn,
                            share(unit // count, chunks, region.row_blocks) as row,
                            loop(region.column_blocks) as column,
                            block(),
                        ):
                            oh = let(region.first_row + row * region.rows)
                            ow = region.first_column + column * region.columns
                            pixels = [(oh + i, ow + j) for i in range(region.rows) for j in range(region.columns)]
                            acc = self._sums(image, weight, y, pixels, index, together, part, turn)
                            self._store(acc, terms, y, pixels, index, together, part, tail)

    def _parts(self, together: int) -> list["_Part"]:
        """Cut the sums so that the weights of a part stay in L1 while all pixels of a unit pass."""
        kh, kw = self.shape.kernel
        row_steps, bytes_a_step = kw * self.shape.channels, together * self.tile.lanes * 4
        if kh * row_steps * bytes_a_step <= _WEIGHT_BYTES:
            return [_WHOLE]
        fit = range(_FEWEST_STEPS, min(row_steps, _WEIGHT_BYTES // bytes_a_step) + 1)
        steps = max((each for each in fit if row_steps % each == 0), default=0)
        if not steps:
            return [_WHOLE]
        count = kh * row_steps // steps
        return [
            _Part(steps, 0, 1, begins=True, ends=False),
            *([_Part(steps, 1, count - 2, begins=False, ends=False)] if count > 2 else []),
            _Part(steps, count - 1, 1, begins=False, ends=True),
        ]

    def _sums(
        self,
        image: Buffer,
        weight: Buffer,
        y: Buffer,
        pixels: Sequence[Pixel],
        index: Expr,
        together: int,
        part: "_Part",
        turn: Expr,
    ) -> Registers:
        """A tile's sums after a part: what `y` holds of them goes before, so that the order is the same as in one."""
        lanes, (kh, kw) = self.tile.lanes, self.shape.kernel
        row_steps = kw * self.shape.channels  # neighbours in the image and in the weights
        acc = Registers(len(pixels) * together, lanes, F32, zero=part.begins)
        if not part.begins:
            for p, pixel in enumerate(pixels):
                for g in range(together):
                    acc[p * together + g] = load(y, self._place(pixel, index + g), lanes)
        number = let(part.first + turn)
        in_row = max(1, row_steps // part.steps) if part.steps else 1
        begin = let(number % in_row * part.steps)
        with (
            loop(1 if part.steps else kh, number // in_row) as i,
            loop(part.steps or row_steps, begin) as k,
        ):
            weights = [
                let(load(weight, (((index + g) * kh + i) * row_steps + k) * lanes, lanes)) for g in range(together)
            ]
            for p, (h, w) in enumerate(pixels):
                x = let(splat(load(image, self.at(h, w, i) + k), lanes))
                for g in range(together):
                    acc[p * together + g] = acc[p * together + g] + x * weights[g]
        return acc

    def _store(
        self,
        acc: Registers,
        terms: Mapping[str, Buffer],
        y: Buffer,
        pixels: Sequence[Pixel],
        index: Expr,
        together: int,
        part: "_Part",
        tail: bool,
    ) -> None:
        lanes, shape = self.tile.lanes, self.shape
        for p, (h, w) in enumerate(pixels):
            row = let(self.row(h, w))
            for g in range(together):
                value, channel = acc[p * together + g], (index + g) * lanes
                if tail and g == together - 1:
                    count = shape.out_channels % lanes
                    store_few(value, count, lanes, self.epilogue, terms, y, row, channel)
                else:
                    if part.ends:
                        value = self.epilogue.apply(value, terms, row, channel, lanes)
                    store(y, value, self._place((h, w), index + g), lanes)

    def _place(self, pixel: Pixel, group: Expr) -> Expr:
        """Where a vector of an output pixel stands."""
        return self.row(*pixel) * self.shape.out_channels + group * self.tile.lanes


@dataclass(frozen=True)
class _Part:
    """`repeats` times `steps` multiply-adds of every sum, from part number `first` on; 0 steps are all of them.

    A sum waits in the output between its parts: `begins` the first of them, `ends` the last.
    """

    steps: int
    first: int
    repeats: int
    begins: bool
    ends: bool


_WHOLE = _Part(0, 0, 1, begins=True, ends=True)


def _chunks(region: Region, groups: int) -> int:
    """Into how many shares the rows of a region go: of `_PIXELS` or more, but enough for 8 threads."""
    wanted = region.row_blocks * region.rows * region.column_blocks * region.columns // _PIXELS
    return min(region.row_blocks, max(1, wanted, -(-FEWEST_UNITS // groups)))


class _ChannelsIn(_Kernel):
    name = "float-conv in"

    def pack(self, weight: Array) -> Array:
        """f32[O, C, kh, kw] -> f32[O, taps, C]."""
        return np.ascontiguousarray(weight.reshape(*weight.shape[:2], -1).transpose(0, 2, 1))

    def emit(self, image: Buffer, weight: Buffer, terms: Mapping[str, Buffer], y: Buffer) -> None:
        for region in self.grid.regions:
            with (
                parallel(region.row_blocks, self.worthwhile) as row,
                loop(region.column_blocks) as column,
                loop(self.shape.out_channels) as o,
                block(),
            ):
                oh, ow = region.first_row + row * region.rows, region.first_column + column * region.columns
                pixels = [(oh + i, ow + j) for i in range(region.rows) for j in range(region.columns)]
                self._tile(image, weight, terms, y, pixels, o)

    def _tile(
        self,
        image: Buffer,
        weight: Buffer,
        terms: Mapping[str, Buffer],
        y: Buffer,
        pixels: Sequence[Pixel],
        o: Expr,
    ) -> None:
        lanes, channels = self.tile.lanes, self.shape.channels
        kh, kw = self.shape.kernel
        acc, rest = local(len(pixels) * lanes, F32), local(len(pixels), F32)
        for p in range(len(pixels)):
            store(acc, const(0.0, F32, lanes), p * lanes, lanes)
            store(rest, const(0.0, F32), p)
        with loop(kh) as i, loop(kw) as j:

            def add(c: Expr, size: int) -> None:
                w = let(load(weight, ((o * kh + i) * kw + j) * channels + c, size))
                for p, (h, v) in enumerate(pixels):
                    x = load(image, self.at(h, v, i) + j * channels + c, size)
                    target, at = (acc, p * lanes) if size == lanes else (rest, p)
                    store(target, load(target, at, size) + x * w, at, size)

            in_lanes(channels, lanes, add)
        for p, (h, v) in enumerate(pixels):
            total = sum_lanes(load(acc, p * lanes, lanes), lanes) + load(rest, p)
            pixel = let(self.row(h, v))
            value = self.epilogue.apply(total, terms, pixel, o, 1)
            store(y, value, pixel * self.shape.out_channels + o)


class _Pixels(_Kernel):
    name = "float-conv pixels"

    def pack(self, weight: Array) -> Array:
        """f32[1, 1, kh, kw] -> f32[taps]."""
        return np.ascontiguousarray(weight.reshape(-1))

    def emit(self, image: Buffer, weight: Buffer, terms: Mapping[str, Buffer], y: Buffer) -> None:
        kh, kw = self.shape.kernel
        lanes = self.tile.lanes if self.shape.strides[1] == 1 else 1
        while lanes > self.shape.out_width:
            lanes //= 2
        with parallel(self.shape.out_height, self.worthwhile) as oh:

            def emit(ow: Expr, size: int) -> None:
                total = const(0.0, F32, size)
                for i in range(kh):
                    for j in range(kw):
                        w = splat(load(weight, i * kw + j), size)
                        total = total + load(image, self.at(oh, ow, i) + j, size) * w
                row = self.row(oh, ow)
                if "addend" in terms:
                    total = total + splat(load(terms["addend"], 0), size)
                store(y, total, row, size)

            in_lanes(self.shape.out_width, lanes, emit)
