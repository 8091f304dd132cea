"""Products of uniform codes by integer dot products: QuantConv and QuantGemm.

With v the weights less the tile's offset, zv their zero points less the same, a the codes and za their zero point,

    sum of (a - za) (v - zv) = sum of a v - zv * S - za * T,    S = sum of a,    T = sum of (v - zv) = sum of (w - zw),

over all taps and channels; padding is the code za. S is one number an output pixel: the sums of pixels' codes, added
up over windows, and it is left out where every zv is 0. T is one number an output channel, made with the weights.
With N terms of at most A in the codes and zero points of a, and W in those of w, every sum and product above, partial
sums included, lies within N A W of 0, also with an offset; TVM's int32 arithmetic may not overflow, and N A W fits (see
`quant_operands.require_exact`).

Loop order: the image, as words of four channels, into scratch (bordered with za; not at all where it lies so already),
S, then the tiles of `sweep`: in registers `pixels` x `groups` vectors over taps and steps of channels.

Limit: one dot product (vpdpbusd: 64 MACs in 512 bits) a cycle and 512-bit port. Reached, of what
`edgedm.bench.limits` measures on one core, for 256 to 256 channels 3x3 on 16x16: 0.99 with AVX-512 VNNI (232 of 234
GMAC/s on one such port; 0.94 for a 1x1 kernel), 0.92 with AVX2 (163 of 177).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from tvm import tirx

from edgedm.targets.kernels.builder import Buffer, Expr, branch, cast, const, let, load, loop, parallel, splat, store
from edgedm.targets.kernels.dot_image import Image
from edgedm.targets.kernels.dot_tiles import PARALLEL_MACS, Dot
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import store_few
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec
from edgedm.targets.kernels.tiles import Border, Pixel, Window, sum_fields, sweep


def draft(shape: Convolution, operands: Operands, tile: Dot) -> Draft:
    """Return the kernel for codes uint8[..., C]."""
    kernel = _Kernel(shape, operands, tile)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        kernel.emit(inputs, outs[0], scratch)

    weight, zeros = tile.pack(operands.weight), kernel.pack_zeros(operands.weight_zero)
    return Draft(
        family=f"{tile.name} {operands.bits}x{operands.weight_bits} {tile.lanes} {tile.pixels}x{tile.groups}",
        body=body,
        inputs={
            **operands.specs,
            "weight": TensorSpec(weight.shape, "uint8"),
            "weight_zero": TensorSpec(zeros.shape, "int32"),
        },
        outputs=[TensorSpec(operands.output, "float32")],
        scratch=kernel.scratch(),
        pack={"weight": tile.pack, "weight_zero": kernel.pack_zeros},
        macs=shape.macs,
    )


class _Kernel:
    def __init__(self, shape: Convolution, operands: Operands, tile: Dot) -> None:
        self.shape, self.tile, self.operands = shape, tile, operands
        self.channels = -(-shape.out_channels // tile.lanes) * tile.lanes
        self.border = Border(shape)
        size = (self.border.height, self.border.width) if shape.padded else (shape.height, shape.width)
        self.height, self.width = size
        self.image = Image(shape.channels, tile)
        self.staged = shape.padded or self.image.needs_copy
        self.summed = bool(np.any(operands.weight_zero != tile.offset))
        self.worthwhile = shape.macs >= PARALLEL_MACS

    def pack_zeros(self, weight_zero: Array) -> Array:
        """uint8[O] -> int32[1 or 2, blocks * lanes]: T, which needs the weight as well, and zv unless all are 0."""
        weight = self.operands.weight.reshape(len(weight_zero), -1).astype(np.int32)
        zeros = weight_zero.astype(np.int32)
        rows = [(weight - zeros[:, None]).sum(axis=1, dtype=np.int32)]
        rows += [zeros - self.tile.offset] if self.summed else []
        return np.stack([np.pad(row, (0, self.channels - len(row))) for row in rows]).astype(np.int32)

    def scratch(self) -> list[TensorSpec]:
        """The image as words; sums of codes of pixels; of windows of more than a pixel."""
        specs = []
        if self.staged:
            specs.append(TensorSpec((self.height, self.width, self.image.words), "int32"))
        if self.summed:
            specs.append(TensorSpec((self.height, self.width), "int32"))
            if not self.shape.pointwise:
                specs.append(TensorSpec((self.shape.out_height, self.shape.out_width), "int32"))
        return specs

    def emit(self, inputs: Mapping[str, Buffer], y: Buffer, scratch: Sequence[Buffer]) -> None:
        codes, rest = inputs["codes"], list(scratch)
        staged = rest.pop(0) if self.staged else None
        sums = rest.pop(0) if self.summed else None
        fields = rest.pop(0) if rest else sums
        zero = let(cast(load(inputs["zero"], 0), "int32") - self.tile.image_offset)
        if staged is not None or sums is not None:
            self._stage(codes, zero, staged, sums)
        if fields is not sums:
            sum_fields(self.shape, self.width, sums, fields)
        image = staged if staged is not None else self.image.as_words(codes)
        self._product(inputs, image, zero, fields, y)

    def _stage(self, codes: Buffer, zero: Expr, image: Buffer | None, sums: Buffer | None) -> None:
        """Fill the image's words and the sums of pixels' codes, border included."""
        top, left = self.shape.pads[:2]
        with parallel(self.height, self.worthwhile) as row, loop(self.width) as column:
            pixel = let(row * self.width + column)
            source = ((row - top) * self.shape.width + column - left) * self.shape.channels

            def fill() -> None:
                if image is not None:
                    self.image.copy(codes, source, image, pixel)
                if sums is not None:
                    offsets = self.tile.image_offset * self.shape.channels
                    store(sums, self.image.sum(codes, source) - offsets, pixel)

            def border() -> None:
                if image is not None:
                    self.image.fill(zero, image, pixel)
                if sums is not None:
                    store(sums, zero * self.shape.channels, pixel)

            if self.shape.padded:
                inside_row = tirx.all(row >= top, row < top + self.shape.height)
                branch(tirx.all(inside_row, column >= left, column < left + self.shape.width), fill, border)
            else:
                fill()

    def _product(
        self, inputs: Mapping[str, Buffer], image: Buffer, zero: Expr, fields: Buffer | None, y: Buffer
    ) -> None:
        (kh, kw), (sh, sw) = self.shape.kernel, self.shape.strides
        lanes, epilogue, words = self.tile.lanes, self.operands.epilogue, self.image.words

        def at(pixel: Pixel, i: Expr) -> Expr:
            return ((pixel[0] * sh + i) * self.width + pixel[1] * sw) * words

        def emit(pixels: Sequence[Pixel], index: Expr, together: int, tail: bool) -> None:
            # the words of a kernel row's taps are neighbours
            window = Window(kh, kw * self.tile.steps(self.shape.channels), pixels, at)
            sums = self.tile.accumulate(inputs["weight"], image, window, index, together)
            channels = [(index + g) * lanes for g in range(together)]
            terms = inputs["weight_zero"]
            shifts = [let(load(terms, channel, lanes) * splat(zero, lanes)) for channel in channels]
            zeros = [let(load(terms, self.channels + channel, lanes)) for channel in channels if fields is not None]
            for p, (h, w) in enumerate(pixels):
                row = let(h * self.shape.out_width + w)
                field = let(load(fields, row)) if fields is not None else const(0, "int32")
                for g, channel in enumerate(channels):
                    total = sums(p * together + g) - shifts[g]
                    if fields is not None:
                        total = total - zeros[g] * splat(field, lanes)
                    value = cast(total, "float32", lanes)
                    if tail and g == together - 1:
                        count = self.shape.out_channels % lanes
                        store_few(value, count, lanes, epilogue, inputs, y, row, channel)
                    else:
                        value = epilogue.apply(value, inputs, row, channel, lanes)
                        store(y, value, row * self.shape.out_channels + channel, lanes)

        sweep(self.shape, self.tile, self.width * words * 4, self.worthwhile, emit)
