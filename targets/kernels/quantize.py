"""Uniform quantisers: QuantizeUniform, QuantizeHeads, and the grid that GroupNormSiluQuantizeUniform ends in.

    clamp(round_half_even((x / divisor) / step) + zero, 0, 2^bits - 1), NaN to 0

with a run-time step and zero point. Both divisions stay: a product with a reciprocal would move codes at ties. They
are the limit: about 10 cycles for 16 values each on a 512-bit divider of half width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgedm.targets.kernels.builder import Buffer, Expr, cast, hold, in_lanes, let, load, parallel, splat, store
from edgedm.targets.kernels.mathematics import uniform_codes
from edgedm.targets.kernels.pack import PARALLEL_CODES, chunked

F32 = "float32"

# code(value, channel, lanes)
Code = Callable[[Expr, Expr, int], Expr]


@dataclass(frozen=True)
class Uniform:
    """A grid of codes 0..top; `divisor` is absent, of one value, or of one a channel."""

    step: Buffer
    zero: Buffer
    divisor: Buffer | None
    divisors: int
    top: int

    def codes(self, index: Expr) -> Code:
        """Load step and zero point number `index`; return what quantises one row with them."""
        step = let(load(self.step, index))
        zero = let(cast(load(self.zero, index), F32))

        def code(value: Expr, channel: Expr, lanes: int) -> Expr:
            if self.divisor is not None and self.divisors == 1:
                value = hold(value / splat(load(self.divisor, 0), lanes), lanes)
            elif self.divisor is not None:
                value = hold(value / load(self.divisor, channel, lanes), lanes)
            return uniform_codes(value, splat(step, lanes), splat(zero, lanes), self.top, lanes)

        return code


def quantize(x: Buffer, grid: Uniform, out: Buffer, size: tuple[int, int, int], lanes: int) -> None:
    """Quantise x f32[heads, rows, channels]; each head has its own step and zero point, `size` is its shape."""
    heads, rows, channels = size
    if heads == 1 and grid.divisors == 1:
        one = grid.codes(0)
        chunked(math.prod(size), lanes, lambda at, count: store(out, one(load(x, at, count), 0, count), at, count))
        return
    with parallel(heads * rows, heads * rows * channels >= PARALLEL_CODES) as row:
        code = grid.codes(row // rows if heads > 1 else 0)

        def emit(channel: Expr, count: int) -> None:
            at = row * channels + channel
            store(out, code(load(x, at, count), channel, count), at, count)

        in_lanes(channels, lanes, emit)
