"""GroupNorm and what may follow it: SiLU, packing, quantising. Channels last, vectors of `lanes` along the channels.

Two passes. The first (a strip of channels in registers, down the pixels) sums d = x - anchor and d^2 per channel, from
which the mean and variance of a group follow. An anchor is the mean of every 31st pixel of its channel, so d is small
where the mean is large, and (anchor - mean)^2 is at most 31 variances, whatever x holds: so little is lost in the
difference of the two sums. The second computes y = (x - mean) * (gamma / sqrt(variance + epsilon)) + beta and
what follows, one pixel at a time, so that a pixel's bits, mean magnitude or codes come from the y in registers: exactly
the y that is written.

Where threads pay, sums are made of FEWEST_UNITS parts of the pixels apart (of each pixel, where they are fewer) and
then added, whatever the number of threads: so they do not depend on it. The parts are those of the last pass and of
most layers before, up to a row, so a thread mostly sums what its core's cache holds. The last part goes first: of a
tensor larger than the cache its pixels were written last, and what is summed last is what the second pass begins with.
Smaller norms sum all at once.

SiLU is v / (1 + e^-v): about 20 operations and one division for `lanes` values, which is the limit of the last pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from edgedm.targets.kernels.builder import (
    FEWEST_UNITS,
    Buffer,
    Expr,
    block,
    const,
    hold,
    in_lanes,
    let,
    load,
    local,
    loop,
    parallel,
    splat,
    store,
    where,
)
from edgedm.targets.kernels.mathematics import silu
from edgedm.targets.kernels.pack import pack_row
from edgedm.targets.kernels.quantize import Signed, Uniform

F32 = "float32"
STRIP_VECTORS = 4  # of a pass down the pixels, with two sums and an anchor each: of 16 registers
ANCHORED = 31  # pixels for one that is read for the anchors; odd, so that no column of an image is preferred
PARALLEL_ELEMENTS = 1 << 14  # about 7 us of one core


@dataclass(frozen=True)
class Norm:
    """`rows` pixels of `channels` in `groups` groups."""

    rows: int
    channels: int
    groups: int
    epsilon: float
    silu: bool
    lanes: int
    fused: bool  # the target's

    @property
    def worthwhile(self) -> bool:
        """Whether threads pay."""
        return self.rows * self.channels >= PARALLEL_ELEMENTS

    @property
    def parts(self) -> int:
        """Parts of the rows whose sums are made apart."""
        return min(FEWEST_UNITS, self.rows) if self.worthwhile else 1

    def statistics(self, x: Buffer, gamma: Buffer, scratch: Sequence[Buffer], mean: Buffer, scale: Buffer) -> None:
        """Fill `mean` and `scale` = gamma / sqrt(variance + epsilon), f32[channels]; `scratch` as `scratch_rows`."""
        sums, squares, anchors = scratch
        self._anchor(x, anchors)
        with parallel(self.parts, self.worthwhile) as turn:
            part = let(self.parts - 1 - turn)
            self._in_strips(lambda first, vectors: self._sum(x, sums, squares, anchors, part, first, vectors))
        count = const(self.rows, F32)

        def of_channel(channel: Expr, lanes: int) -> None:
            """The mean of a channel, and n times its variance in place of the squares."""
            total, n = hold(self._add_parts(sums, channel, lanes), lanes), splat(count, lanes)
            offset = hold(total / n, lanes)
            store(mean, load(anchors, channel, lanes) + offset, channel, lanes)
            store(squares, self._add_parts(squares, channel, lanes) - total * offset, channel, lanes)

        in_lanes(self.channels, self.lanes, of_channel)
        size = self.channels // self.groups
        with loop(self.groups) as group, block():
            total, spread = local(1, F32), local(1, F32)
            for each in (total, spread):
                store(each, const(0.0, F32), 0)
            with loop(size, group * size) as channel:
                store(total, load(total, 0) + load(mean, channel), 0)
            average = hold(load(total, 0) / const(size, F32), 1)
            with loop(size, group * size) as channel:
                away = let(load(mean, channel) - average)
                store(spread, load(spread, 0) + (load(squares, channel) + away * away * count), 0)
            variance = let(load(spread, 0) / const(self.rows * size, F32))
            sound = where(variance < const(0.0, F32), const(0.0, F32), variance)  # below 0 by a rounding; NaN stays
            deviation = hold(tirx.sqrt(sound + const(self.epsilon, F32)), 1)
            with loop(size, group * size) as channel:
                store(mean, average, channel)
                store(scale, load(gamma, channel) / deviation, channel)

    @property
    def scratch_rows(self) -> tuple[int, int, int]:
        """Rows f32[channels] of the scratch of `statistics`: the sums and squares of each part, and the anchors."""
        return self.parts, self.parts, 1

    def value(self, inputs: Sequence[Buffer], row: Expr) -> Callable[[Expr, int], Expr]:
        """Return value(channel, lanes) of one pixel; `inputs` are x, mean, scale, beta."""
        x, mean, scale, beta = inputs

        def at(channel: Expr, lanes: int) -> Expr:
            centred = load(x, row * self.channels + channel, lanes) - load(mean, channel, lanes)
            v = centred * load(scale, channel, lanes) + load(beta, channel, lanes)
            return hold(silu(v, lanes, self.fused), lanes) if self.silu else v

        return at

    def write(self, inputs: Sequence[Buffer], y: Buffer) -> None:
        """The last pass of GroupNorm and GroupNormSilu."""
        with parallel(self.rows, self.worthwhile) as row:
            value = self.value(inputs, row)

            def emit(channel: Expr, lanes: int) -> None:
                store(y, value(channel, lanes), row * self.channels + channel, lanes)

            in_lanes(self.channels, self.lanes, emit)

    def pack(self, inputs: Sequence[Buffer], threshold: Buffer, y: Buffer, bits: Buffer, mean_abs: Buffer) -> None:
        """The last pass of GroupNormSiluPack."""
        with parallel(self.rows, self.worthwhile) as row:
            value = self.value(inputs, row)

            def written(channel: Expr, lanes: int) -> Expr:
                v = value(channel, lanes)
                store(y, v, row * self.channels + channel, lanes)
                return v

            pack_row(written, threshold, bits, mean_abs, row, self.channels, self.lanes)

    def quantize(self, inputs: Sequence[Buffer], grid: Signed, out: Buffer) -> None:
        """The last pass of GroupNormSiluQuantize."""
        with parallel(self.rows, self.worthwhile) as row:
            value, code = self.value(inputs, row), grid.codes()

            def emit(channel: Expr, lanes: int) -> None:
                store(out, code(value(channel, lanes), channel, lanes), row * self.channels + channel, lanes)

            in_lanes(self.channels, self.lanes, emit)

    def quantize_uniform(self, inputs: Sequence[Buffer], grid: Uniform, out: Buffer) -> None:
        """The last pass of GroupNormSiluQuantizeUniform."""
        with parallel(self.rows, self.worthwhile) as row:
            value, code = self.value(inputs, row), grid.codes(0)

            def emit(channel: Expr, lanes: int) -> None:
                store(out, code(value(channel, lanes), channel, lanes), row * self.channels + channel, lanes)

            in_lanes(self.channels, self.lanes, emit)

    def _in_strips(self, emit: Callable[[Expr, Sequence[tuple[int, int]]], None]) -> None:
        """Emit `emit(first channel, vectors)` over all channels; a vector is (channels after the first, lanes)."""
        strip = STRIP_VECTORS * self.lanes
        whole, rest = divmod(self.channels, strip)
        if whole:
            with loop(whole) as index:
                emit(index * strip, [(v * self.lanes, self.lanes) for v in range(STRIP_VECTORS)])
        if rest >= self.lanes:
            emit(whole * strip, [(v * self.lanes, self.lanes) for v in range(rest // self.lanes)])
        if rest % self.lanes:
            with loop(rest % self.lanes, self.channels - rest % self.lanes) as channel:
                emit(channel, [(0, 1)])

    def _anchor(self, x: Buffer, anchors: Buffer) -> None:
        count = -(-self.rows // ANCHORED)

        def add(first: Expr, vectors: Sequence[tuple[int, int]]) -> None:
            with block():
                acc = local(sum(lanes for _, lanes in vectors), F32)
                for at, lanes in vectors:
                    store(acc, const(0.0, F32, lanes), at, lanes)
                with loop(count) as index:
                    for at, lanes in vectors:
                        v = load(x, index * (ANCHORED * self.channels) + first + at, lanes)
                        store(acc, load(acc, at, lanes) + v, at, lanes)
                for at, lanes in vectors:
                    store(anchors, load(acc, at, lanes) * const(1.0 / count, F32, lanes), first + at, lanes)

        self._in_strips(add)

    def _sum(
        self,
        x: Buffer,
        sums: Buffer,
        squares: Buffer,
        anchors: Buffer,
        part: Expr,
        first: Expr,
        vectors: Sequence[tuple[int, int]],
    ) -> None:
        """Fill row `part` of `sums` and `squares` at the channels of `vectors`."""
        start, end = (let((part + more) * self.rows // self.parts) for more in (0, 1))
        with block():
            width = sum(lanes for _, lanes in vectors)
            of_d, of_squares = local(width, F32), local(width, F32)
            for acc in (of_d, of_squares):
                for at, lanes in vectors:
                    store(acc, const(0.0, F32, lanes), at, lanes)
            with loop(end - start, start) as row:
                for at, lanes in vectors:
                    v = load(x, row * self.channels + first + at, lanes)
                    d = hold(v - load(anchors, first + at, lanes), lanes)
                    store(of_d, load(of_d, at, lanes) + d, at, lanes)
                    store(of_squares, load(of_squares, at, lanes) + d * d, at, lanes)
            for acc, out in ((of_d, sums), (of_squares, squares)):
                for at, lanes in vectors:
                    store(out, load(acc, at, lanes), part * self.channels + first + at, lanes)

    def _add_parts(self, sums: Buffer, channel: Expr, lanes: int) -> Expr:
        total = load(sums, channel, lanes)
        for part in range(1, self.parts):
            total = total + load(sums, part * self.channels + channel, lanes)
        return total
