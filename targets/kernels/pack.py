"""PackBits, PackBitsMeanAbs: activations to signs, vectors of `lanes` along the channels.

A comparison leaves one bit a lane, which is a part of the packed word. It is taken as x >= -threshold: for every
finite threshold the same as x + threshold >= 0 (a sum of floats is 0 only where it is exactly 0), false for NaN,
and no sum that could be contracted with a product before it.

One load and one comparison for `lanes` channels: these kernels stand at the cache's bandwidth.
"""

from collections.abc import Callable

from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    block,
    cast,
    const,
    in_lanes,
    let,
    load,
    local,
    loop,
    mask_bits,
    parallel,
    store,
    sum_lanes,
)

WORD_BITS = 64
F32 = "float32"
PARALLEL_ELEMENTS = 1 << 18  # packed: about 9 us of one core

# value(channel, lanes) is called once for every channel of a row, in order
Value = Callable[[Expr, int], Expr]


def pack_bits(
    x: Buffer, threshold: Buffer, bits: Buffer, mean_abs: Buffer | None, rows: int, channels: int, lanes: int
) -> None:
    """PackBits and, with `mean_abs`, PackBitsMeanAbs."""
    with parallel(rows, rows * channels >= PARALLEL_ELEMENTS) as row:

        def value(channel: Expr, lanes: int) -> Expr:
            return let(load(x, row * channels + channel, lanes))

        pack_row(value, threshold, bits, mean_abs, row, channels, lanes)


def pack_row(
    value: Value, threshold: Buffer, bits: Buffer, mean_abs: Buffer | None, row: Expr, channels: int, lanes: int
) -> None:
    """Pack one row of values; sum their magnitudes in `lanes` sums, halves onto halves, divided by `channels`."""
    words = -(-channels // WORD_BITS)
    whole = channels // WORD_BITS
    with block():
        total = local(lanes, F32)
        store(total, const(0.0, F32, lanes), 0, lanes)

        def decide(channel: Expr, count: int) -> Expr:
            """The bits of `count` channels as a uint64."""
            v = value(channel, count)
            if mean_abs is not None and count == lanes:
                store(total, load(total, 0, lanes) + tirx.abs(v), 0, lanes)
            elif mean_abs is not None:
                store(total, load(total, 0) + tirx.abs(v), 0)
            positive = v >= const(0.0, F32, count) - load(threshold, channel, count)
            return cast(mask_bits(positive, count) if count > 1 else positive, "uint64")

        if whole:
            with loop(whole) as index:
                word = const(0, "uint64")
                for part in range(WORD_BITS // lanes):
                    piece = decide(index * WORD_BITS + part * lanes, lanes)
                    word = word | (piece << const(part * lanes, "uint64"))
                store(bits, word, row * words + index)
        if channels % WORD_BITS:
            last = local(1, "uint64")
            store(last, const(0, "uint64"), 0)

            def add(offset: Expr, count: int) -> None:
                piece = decide(whole * WORD_BITS + offset, count)
                store(last, load(last, 0) | (piece << cast(offset, "uint64")), 0)

            in_lanes(channels % WORD_BITS, lanes, add)
            store(bits, load(last, 0), row * words + whole)
        if mean_abs is not None:
            store(mean_abs, sum_lanes(load(total, 0, lanes), lanes) / const(channels, F32), row)
