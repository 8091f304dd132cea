"""The frame of products of codes: QuantConv, QuantGemm, BinaryWeightConv, BinaryWeightGemm; BinaryConv by look-ups.

A `Form` (integer dot products, table look-ups, bit planes) lays an image of its operands out and adds up, over taps
and channels, P = sum of a v: the codes a, as they are stored, times unsigned codes v that stand for the weights. With
S = sum of a, one number an output pixel, the rest is

    of weights that are signs, w = 2 v - 1, and padding 0:     sum of a w = 2 P - S
    of uniform codes, with zero points za and zw, padding za:  sum of (a - za) (w - zw) = P - zv S - za T

where v = w - o and zv = zw - o are less the form's offset o, a and za likewise less one that the image may take off,
and T = sum of (w - zw) is one number an output channel, made with the weights. S is left out where every zv is 0. With
N terms of at most A in the codes and zero points of a, and W in those of w, every sum and product above, partial sums
included, lies within N A W of 0, also with an offset; TVM's int32 arithmetic may not overflow, and N A W fits (see
`quant_operands.require_exact`).

Loop order: the image into scratch (with its border; not at all where the codes lie as the form reads them) and the sums
of pixels' codes, sums over windows, then the tiles of `sweep`, in registers over taps and steps of channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from tvm import tirx

from edgedm.targets.kernels.builder import Buffer, Expr, branch, cast, const, let, load, loop, parallel, splat, store
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import store_few
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec
from edgedm.targets.kernels.tiles import Border, Pixel, Window, sum_fields, sweep


class Form(Protocol):
    """How P is computed. `steps` of channels make a tap; windows count `pitch` units of the image a pixel."""

    @property
    def name(self) -> str:
        """The family and its tile, which together name the kernel."""

    @property
    def block(self) -> int:
        """Output channels of a group."""

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""

    @property
    def groups(self) -> int:
        """Groups of output channels of a tile."""

    @property
    def lanes(self) -> int:
        """int32 lanes of the vectors that hold a group's sums."""

    @property
    def steps(self) -> int:
        """Steps of a tap."""

    @property
    def pitch(self) -> int:
        """Units of the image a pixel."""

    @property
    def offset(self) -> int:
        """What `pack` takes off the weights."""

    @property
    def image_offset(self) -> int:
        """What the image takes off the codes, and so off their zero point."""

    @property
    def bias(self) -> int:
        """What a window's sums hold beside P."""

    @property
    def needs_copy(self) -> bool:
        """Whether the codes themselves are no image."""

    @property
    def parallel_macs(self) -> int:
        """Work from which on it is worth waking threads."""

    def image(self, height: int, width: int) -> TensorSpec:
        """The image's memory."""

    def view(self, codes: Buffer) -> Buffer:
        """The codes, which need no copy, as an image."""

    def stage(self, codes: Buffer, source: Expr, image: Buffer | None, sums: Buffer | None, pixel: Expr) -> None:
        """Lay out `pixel` from the codes of pixel `source` of the input, and store the sum of what it holds."""

    def border(self, zero: Expr | None, image: Buffer, pixel: Expr) -> None:
        """Lay out a pixel whose codes are all `zero`, or 0."""

    def pack(self, weight: Array) -> Array:
        """Lay out the codes uint8[O, taps, C]."""

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Sequence[Expr]]:
        """Add up a tile; slot (pixel * together + group) -> int32 vectors, channels in order."""


def image_size(shape: Convolution) -> tuple[int, int]:
    """Height and width of the image that windows read: with its border, where there is one."""
    border = Border(shape)
    return (border.height, border.width) if shape.padded else (shape.height, shape.width)


def draft(shape: Convolution, operands: Operands, form: Form) -> Draft:
    """Return the kernel."""
    kernel = Kernel(shape.in_rows_of(form.pixels), operands, form)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], scratch: Sequence[Buffer]) -> None:
        kernel.emit(inputs, outs[0], scratch)

    packed = {"weight": TensorSpec(kernel.pack(operands.weight).shape, str(kernel.pack(operands.weight).dtype))}
    packing: dict[str, Callable[[Array], Array]] = {"weight": kernel.pack}
    if operands.weight_zero is not None:
        packed["weight_zero"] = TensorSpec(kernel.pack_zeros(operands.weight_zero).shape, "int32")
        packing["weight_zero"] = kernel.pack_zeros
    return Draft(
        family=form.name,
        body=body,
        inputs={**operands.specs, **packed},
        outputs=[TensorSpec(operands.output, "float32")],
        scratch=kernel.scratch(),
        pack=packing,
        macs=shape.macs,
    )


class Kernel:
    """Emits one kernel."""

    def __init__(self, shape: Convolution, operands: Operands, form: Form) -> None:
        self.shape, self.form, self.operands = shape, form, operands
        self.channels = -(-shape.out_channels // form.block) * form.block
        self.height, self.width = image_size(shape)
        self.staged = shape.padded or form.needs_copy
        zeros = operands.weight_zero
        self.signs = zeros is None
        self.summed = zeros is None or bool(np.any(zeros != form.offset))
        self.worthwhile = shape.macs >= form.parallel_macs

    def pack(self, weight: Array) -> Array:
        """The graph's weight in the form's layout."""
        return self.form.pack(self.operands.unpack(weight))

    def pack_zeros(self, weight_zero: Array) -> Array:
        """uint8[O] -> int32[1 or 2, blocks * lanes]: T, which needs the weight as well, and zv unless all are 0."""
        codes = self.operands.unpack(self.operands.weight)
        weight = codes.reshape(len(weight_zero), -1).astype(np.int32)
        zeros = weight_zero.astype(np.int32)
        rows = [(weight - zeros[:, None]).sum(axis=1, dtype=np.int32)]
        rows += [zeros - self.form.offset] if self.summed else []
        return np.stack([np.pad(row, (0, self.channels - len(row))) for row in rows]).astype(np.int32)

    def scratch(self) -> list[TensorSpec]:
        """The image; sums of codes of pixels; of windows of more than a pixel."""
        specs = []
        if self.staged:
            specs.append(self.form.image(self.height, self.width))
        if self.summed:
            specs.append(TensorSpec((self.height, self.width), "int32"))
            if not self.shape.pointwise:
                specs.append(TensorSpec((self.shape.out_height, self.shape.out_width), "int32"))
        return specs

    def emit(self, inputs: Mapping[str, Buffer], y: Buffer, scratch: Sequence[Buffer]) -> None:
        """Emit the function's body."""
        codes, rest = inputs[self.operands.image], list(scratch)
        staged = rest.pop(0) if self.staged else None
        sums = rest.pop(0) if self.summed else None
        fields = rest.pop(0) if rest else sums
        zero = None if self.signs else let(cast(load(inputs["zero"], 0), "int32") - self.form.image_offset)
        if staged is not None or sums is not None:
            self._stage(codes, zero, staged, sums)
        if fields is not sums:
            sum_fields(self.shape, self.width, sums, fields)
        image = staged if staged is not None else self.form.view(codes)
        self._product(inputs, image, zero, fields, y)

    def _stage(self, codes: Buffer, zero: Expr | None, image: Buffer | None, sums: Buffer | None) -> None:
        """Fill the image and the sums of pixels' codes, border included."""
        top, left = self.shape.pads[:2]
        with parallel(self.height, self.worthwhile) as row, loop(self.width) as column:
            pixel = let(row * self.width + column)
            source = (row - top) * self.shape.width + column - left

            def fill() -> None:
                self.form.stage(codes, source, image, sums, pixel)

            def border() -> None:
                assert image is not None
                self.form.border(zero, image, pixel)
                if sums is not None:
                    store(sums, const(0, "int32") if zero is None else zero * self.shape.channels, pixel)

            if self.shape.padded:
                inside_row = tirx.all(row >= top, row < top + self.shape.height)
                branch(tirx.all(inside_row, column >= left, column < left + self.shape.width), fill, border)
            else:
                fill()

    def _product(
        self, inputs: Mapping[str, Buffer], image: Buffer, zero: Expr | None, fields: Buffer | None, y: Buffer
    ) -> None:
        (kh, kw), (sh, sw) = self.shape.kernel, self.shape.strides
        form = self.form

        def at(pixel: Pixel, i: Expr) -> Expr:
            return ((pixel[0] * sh + i) * self.width + pixel[1] * sw) * form.pitch

        def emit(pixels: Sequence[Pixel], index: Expr, together: int, tail: bool) -> None:
            # the units of a kernel row's taps are neighbours
            window = Window(kh, kw * form.steps, pixels, at)
            sums = form.accumulate(inputs["weight"], image, window, index, together)
            parts = range(form.block // form.lanes)
            channels = [[(index + g) * form.block + q * form.lanes for q in parts] for g in range(together)]
            corrections = [[self._correction(inputs, zero, channel) for channel in each] for each in channels]
            for p, (h, w) in enumerate(pixels):
                row = let(h * self.shape.out_width + w)
                field: Expr = None if fields is None else let(load(fields, row))
                for g in range(together):
                    for q, vector in enumerate(sums(p * together + g)):
                        few = tail and g == together - 1
                        if not few or q * form.lanes < self.shape.out_channels % form.block:
                            total = corrections[g][q](vector, field)
                            self._finish(total, inputs, y, row, channels[g][q], q if few else None)

        row_bytes = self.form.image(1, self.width).nbytes
        sweep(self.shape, form, row_bytes, self.worthwhile, emit)

    def _correction(
        self, inputs: Mapping[str, Buffer], zero: Expr | None, channel: Expr
    ) -> Callable[[Expr, Expr], Expr]:
        """What turns a vector of P, and a pixel's S, into the sums of the codes that stand for numbers."""
        lanes = self.form.lanes
        if zero is None:
            twice = 2 * self.form.bias
            return lambda vector, field: let(vector * const(2, "int32", lanes) - splat(field + twice, lanes))
        terms = inputs["weight_zero"]
        shift = let(load(terms, channel, lanes) * splat(zero, lanes))
        if not self.summed:
            return lambda vector, _: vector - shift
        zeros = let(load(terms, self.channels + channel, lanes))
        return lambda vector, field: vector - shift - zeros * splat(field, lanes)

    def _finish(
        self, total: Expr, inputs: Mapping[str, Buffer], y: Buffer, row: Expr, channel: Expr, part: int | None
    ) -> None:
        """Apply the epilogue and store; `part` numbers the vector in a block that is not full."""
        lanes, out_channels, epilogue = self.form.lanes, self.shape.out_channels, self.operands.epilogue
        value = cast(total, "float32", lanes)
        left = lanes if part is None else out_channels % self.form.block - part * lanes
        if left < lanes:
            store_few(value, left, lanes, epilogue, inputs, y, row, channel)
        else:
            store(y, epilogue.apply(value, inputs, row, channel, lanes), row * out_channels + channel, lanes)
