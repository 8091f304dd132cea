"""Quantisers and the grids that norms end in. QuantizeCodes, GroupNormSiluQuantize:

    clip(round_half_even(x / step), low, high), NaN to low

QuantizeUniform, QuantizeHeads, GroupNormSiluQuantizeUniform, with a run-time step and zero point:

    clamp(round_half_even((x / divisor) / step) + zero, 0, 2^bits - 1), NaN to 0

A product with a reciprocal would move codes at ties, so x / step is rounded as a division is (`mathematics.rounder`).
A divisor a channel is a division, which is the limit where there is one: about 10 cycles for 16 values on a 512-bit
divider of half width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgedm.targets.kernels.builder import (
    FEWEST_UNITS,
    Buffer,
    Expr,
    cast,
    const,
    hold,
    in_lanes,
    let,
    load,
    loop,
    parallel,
    splat,
    store,
)
from edgedm.targets.kernels.mathematics import rounder

F32 = "float32"
PARALLEL_CODES = 1 << 16  # divided by a step: about 7 us of one core

# code(value, channel, lanes)
Code = Callable[[Expr, Expr, int], Expr]


@dataclass(frozen=True)
class Signed:
    """A grid of int8 codes low..high around 0; `fused` is the target's."""

    step: Buffer
    low: int
    high: int
    fused: bool

    def codes(self) -> Code:
        """Load the step; return what quantises with it."""
        whole = rounder(let(load(self.step, 0)), const(self.low, F32), const(self.high, F32), self.fused)
        return lambda value, _channel, lanes: cast(whole(value, lanes), "int8", lanes)


@dataclass(frozen=True)
class Uniform:
    """A grid of uint8 codes 0..top; `divisor` is absent, of one value, or of one a channel; `fused` is the target's."""

    step: Buffer
    zero: Buffer
    divisor: Buffer | None
    divisors: int
    top: int
    fused: bool

    def codes(self, index: Expr) -> Code:
        """Load step and zero point number `index`; return what quantises one row with them."""
        zero = let(cast(load(self.zero, index), "int32"))
        lowest = let(cast(const(0, "int32") - zero, F32))
        highest = let(cast(const(self.top, "int32") - zero, F32))
        whole = rounder(let(load(self.step, index)), lowest, highest, self.fused)

        def code(value: Expr, channel: Expr, lanes: int) -> Expr:
            if self.divisor is not None and self.divisors == 1:
                value = hold(value / splat(load(self.divisor, 0), lanes), lanes)
            elif self.divisor is not None:
                value = hold(value / load(self.divisor, channel, lanes), lanes)
            return cast(whole(value, lanes) + splat(zero, lanes), "uint8", lanes)

        return code


def quantize_codes(x: Buffer, grid: Signed, out: Buffer, lanes: int) -> None:
    """QuantizeCodes."""
    _units(x, out, (1, 1, int(math.prod(x.shape))), lanes, lambda head: grid.codes())


def quantize(x: Buffer, grid: Uniform, out: Buffer, size: tuple[int, int, int], lanes: int) -> None:
    """Quantise x f32[heads, rows, channels]; each head has its own step and zero point, `size` is its shape."""
    heads, rows, channels = size
    if grid.divisors == 1:
        rows, channels = 1, rows * channels
    _units(x, out, (heads, rows, channels), lanes, grid.codes)


def _units(x: Buffer, out: Buffer, size: tuple[int, int, int], lanes: int, begin: Callable[[Expr], Code]) -> None:
    """Quantise with what `begin(head)` returns, in equal units over threads where that is worthwhile.

    What a grid needs is computed once a unit: of all rows of a head or of some, of a single row or of some vectors.
    """
    heads, rows, channels = size
    worthwhile = math.prod(size) >= PARALLEL_CODES
    vectors = channels // lanes if rows == 1 and channels % lanes == 0 else 1
    parts = _parts(rows if rows > 1 else vectors, heads) if worthwhile else 1
    rows, channels = (rows // parts, channels) if rows > 1 else (1, channels // parts)
    with parallel(heads * parts, worthwhile) as unit:
        code = begin(unit // parts if heads > 1 else 0)
        with loop(rows) as row:
            first = let((unit * rows + row) * channels)

            def emit(channel: Expr, count: int) -> None:
                store(out, code(load(x, first + channel, count), channel, count), first + channel, count)

            in_lanes(channels, lanes, emit)


def _parts(extent: int, heads: int) -> int:
    """The fewest equal parts of `extent` that make units enough for threads; 1 where none do."""
    return next((parts for parts in range(1, extent + 1) if extent % parts == 0 and heads * parts >= FEWEST_UNITS), 1)
