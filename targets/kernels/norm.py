"""GroupNorm and what may follow it: SiLU, packing, quantising. Channels last, vectors of `lanes` along the channels.

Three passes: per-channel sums (a strip of channels in registers, down the pixels), folded into the means of groups;
per-channel sums of squares about them; then y = (x - mean) * (gamma / sqrt(variance + epsilon)) + beta and what
follows, one pixel at a time, so that a pixel's bits, mean magnitude or codes come from the y in registers: exactly
the y that is written.

Where threads pay, sums are made of FEWEST_UNITS parts of the pixels apart (of each pixel, where they are fewer) and
then added, whatever the number of threads: so they do not depend on it. The parts are those of the last pass and of
most layers before, up to a row, so a thread mostly sums what its core's cache holds. Smaller norms sum all at once.

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
    store,
)
from edgedm.targets.kernels.mathematics import silu
from edgedm.targets.kernels.pack import pack_row
from edgedm.targets.kernels.quantize import Signed, Uniform

F32 = "float32"
STRIP_VECTORS = 8  # accumulators of a pass down the pixels
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

    @property
    def worthwhile(self) -> bool:
        """Whether threads pay."""
        return self.rows * self.channels >= PARALLEL_ELEMENTS

    @property
    def parts(self) -> int:
        """Parts of the rows whose sums are made apart."""
        return min(FEWEST_UNITS, self.rows) if self.worthwhile else 1

    def statistics(self, x: Buffer, gamma: Buffer, sums: Buffer, mean: Buffer, scale: Buffer) -> None:
        """Fill `mean` and `scale` = gamma / sqrt(variance + epsilon), f32[channels]; `sums` f32[parts, channels]."""
        size = self.channels // self.groups
        count = const(self.rows * size, F32)

        def fold(use: Callable[[Expr, Expr], None]) -> None:
            """Call use(group average, channel) for every channel."""
            with loop(self.groups) as group, block():
                total = local(1, F32)
                store(total, const(0.0, F32), 0)
                with loop(size) as offset:
                    store(total, load(total, 0) + load(sums, group * size + offset), 0)
                average = let(load(total, 0) / count)
                with loop(size) as offset:
                    use(average, group * size + offset)

        def set_scale(variance: Expr, channel: Expr) -> None:
            deviation = tirx.sqrt(variance + const(self.epsilon, F32))
            store(scale, load(gamma, channel) / deviation, channel)

        def squared(v: Expr, channel: Expr, lanes: int) -> Expr:
            centred = let(v - load(mean, channel, lanes))
            return centred * centred

        self._sum(x, sums, lambda v, channel, lanes: v)
        fold(lambda average, channel: store(mean, average, channel))
        self._sum(x, sums, squared)
        fold(set_scale)

    def value(self, inputs: Sequence[Buffer], row: Expr) -> Callable[[Expr, int], Expr]:
        """Return value(channel, lanes) of one pixel; `inputs` are x, mean, scale, beta."""
        x, mean, scale, beta = inputs

        def at(channel: Expr, lanes: int) -> Expr:
            centred = load(x, row * self.channels + channel, lanes) - load(mean, channel, lanes)
            v = centred * load(scale, channel, lanes) + load(beta, channel, lanes)
            return hold(silu(v, lanes), lanes) if self.silu else v

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

    def _sum(self, x: Buffer, sums: Buffer, term: Callable[[Expr, Expr, int], Expr]) -> None:
        """Fill `sums`[0] with the sum over pixels of term(x, channel, lanes), per channel."""
        strip = STRIP_VECTORS * self.lanes
        whole, rest = divmod(self.channels, strip)
        with parallel(self.parts, self.worthwhile) as part:

            def add(first: Expr, vectors: Sequence[tuple[int, int]]) -> None:
                self._strip(x, sums, term, part, first, vectors)

            if whole:
                with loop(whole) as index:
                    add(index * strip, [(v * self.lanes, self.lanes) for v in range(STRIP_VECTORS)])
            if rest >= self.lanes:
                add(whole * strip, [(v * self.lanes, self.lanes) for v in range(rest // self.lanes)])
            if rest % self.lanes:
                with loop(rest % self.lanes, self.channels - rest % self.lanes) as channel:
                    add(channel, [(0, 1)])
        if self.parts > 1:
            in_lanes(self.channels, self.lanes, lambda channel, lanes: self._add_parts(sums, channel, lanes))

    def _strip(
        self,
        x: Buffer,
        sums: Buffer,
        term: Callable[[Expr, Expr, int], Expr],
        part: Expr,
        first: Expr,
        vectors: Sequence[tuple[int, int]],
    ) -> None:
        start, end = (let((part + more) * self.rows // self.parts) for more in (0, 1))
        with block():
            acc = local(sum(lanes for _, lanes in vectors), F32)
            for at, lanes in vectors:
                store(acc, const(0.0, F32, lanes), at, lanes)
            with loop(end - start, start) as row:
                for at, lanes in vectors:
                    v = load(x, row * self.channels + first + at, lanes)
                    store(acc, load(acc, at, lanes) + term(v, first + at, lanes), at, lanes)
            for at, lanes in vectors:
                store(sums, load(acc, at, lanes), part * self.channels + first + at, lanes)

    def _add_parts(self, sums: Buffer, channel: Expr, lanes: int) -> None:
        total = load(sums, channel, lanes)
        for part in range(1, self.parts):
            total = total + load(sums, part * self.channels + channel, lanes)
        store(sums, total, channel, lanes)
