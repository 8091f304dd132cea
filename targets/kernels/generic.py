"""Kernels of plain loops for every op: right on every target and shape, fast on none.

They are what `select` falls back to. All tensors are flat; a row is what lies along the last axis.
"""

import math
from collections.abc import Callable, Mapping

from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    block,
    cast,
    const,
    let,
    load,
    local,
    loop,
    store,
)
from edgedm.targets.kernels.epilogue import Epilogue
from edgedm.targets.kernels.mathematics import codes, exp, silu
from edgedm.targets.kernels.shapes import Convolution

WORD_BITS = 64
F32 = "float32"


def store_bits(channels: int, value: Callable[[Expr], Expr], threshold: Buffer, bits: Buffer, row: Expr) -> None:
    """Pack value(channel) + threshold >= 0 of one row into whole words.

    Compared as value >= -threshold: the same for every finite threshold, and no sum that could be contracted.
    """
    count = -(-channels // WORD_BITS)
    with block():
        word = local(1, "uint64")
        with loop(count) as index:
            store(word, const(0, "uint64"), 0)
            with loop(tirx.min(WORD_BITS, channels - index * WORD_BITS)) as bit:
                channel = index * WORD_BITS + bit
                positive = value(channel) >= const(0.0, F32) - load(threshold, channel)
                store(word, load(word, 0) | (cast(positive, "uint64") << cast(bit, "uint64")), 0)
            store(bits, load(word, 0), row * count + index)


def pack_bits(x: Buffer, threshold: Buffer, bits: Buffer, mean_abs: Buffer | None, rows: int, channels: int) -> None:
    """PackBits and, with `mean_abs`, PackBitsMeanAbs."""
    with loop(rows) as row:
        store_bits(channels, lambda channel: load(x, row * channels + channel), threshold, bits, row)
        if mean_abs is not None:
            _store_mean_abs(x, mean_abs, row, channels)


def _store_mean_abs(x: Buffer, mean_abs: Buffer, row: Expr, channels: int) -> None:
    with block():
        total = local(1, F32)
        store(total, const(0.0, F32), 0)
        with loop(channels) as channel:
            store(total, load(total, 0) + tirx.abs(load(x, row * channels + channel)), 0)
        store(mean_abs, load(total, 0) / const(channels, F32), row)


def quantize_codes(x: Buffer, step: Buffer, out: Buffer, low: int, high: int) -> None:
    """QuantizeCodes."""
    with loop(math.prod(x.shape)) as index:
        store(out, codes(load(x, index), load(step, 0), low, high, 1), index)


def group_norm(
    x: Buffer,
    gamma: Buffer,
    beta: Buffer,
    y: Buffer,
    rows: int,
    channels: int,
    groups: int,
    epsilon: float,
    act: bool,
) -> None:
    """GroupNorm, and SiLU behind it where `act`: mean, then variance about it, then y."""
    size = channels // groups
    with loop(groups) as group, block():
        total = local(2, F32)  # sum, sum of squares about the mean

        def gather(slot: int, value: Callable[[Expr], Expr]) -> Expr:
            store(total, const(0.0, F32), slot)
            with loop(rows) as row, loop(size) as channel:
                store(total, load(total, slot) + value(load(x, row * channels + group * size + channel)), slot)
            return let(load(total, slot) / const(rows * size, F32))

        mean = gather(0, lambda v: v)
        variance = gather(1, lambda v: (v - mean) * (v - mean))
        scale = let(const(1.0, F32) / tirx.sqrt(variance + const(epsilon, F32)))
        with loop(rows) as row, loop(size) as offset:
            channel = group * size + offset
            normal = (load(x, row * channels + channel) - mean) * scale
            value = let(normal * load(gamma, channel) + load(beta, channel))
            store(y, silu(value, 1) if act else value, row * channels + channel)


def product(
    shape: Convolution,
    term: Callable[[Expr, Expr, Expr, Expr], Expr],
    reduction: int,
    dtype: str,
    epilogue: Epilogue,
    terms: Mapping[str, Buffer],
    y: Buffer,
) -> None:
    """A convolution: the sum over valid taps and `reduction` of term(pixel, tap, r, out channel) in `dtype`."""
    (kh, kw), (sh, sw), (top, left) = shape.kernel, shape.strides, shape.pads[:2]
    with loop(shape.out_height) as oh, loop(shape.out_width) as ow, loop(shape.out_channels) as o, block():
        acc = local(1, dtype)
        store(acc, const(0, dtype), 0)
        first_h, first_w = let(tirx.max(0, top - oh * sh)), let(tirx.max(0, left - ow * sw))
        count_h = tirx.min(kh, shape.height + top - oh * sh) - first_h
        count_w = tirx.min(kw, shape.width + left - ow * sw) - first_w
        with loop(count_h, first_h) as i, loop(count_w, first_w) as j, loop(reduction) as r:
            pixel = (oh * sh + i - top) * shape.width + (ow * sw + j - left)
            store(acc, load(acc, 0) + term(pixel, i * kw + j, r, o), 0)
        row = oh * shape.out_width + ow
        value = epilogue.apply(cast(load(acc, 0), F32), terms, row, o, 1)
        store(y, value, row * shape.out_channels + o)


def sign_of(word: Expr, bit: Expr) -> Expr:
    """+1 or -1 as int32: bit `bit` of a packed word."""
    return cast((word >> cast(bit, "uint64")) & const(1, "uint64"), "int32") * 2 - 1


def matmul(
    a: Buffer,
    b: Buffer,
    y: Buffer,
    m: int,
    n: int,
    k: int,
    a_batch: Callable[[Expr], Expr],
    b_batch: Callable[[Expr], Expr],
    batch: int,
) -> None:
    """Batched float product; a_batch and b_batch map the output's batch index to the operands'."""
    with loop(batch) as index, loop(m) as i, loop(n) as j, block():
        acc = local(1, F32)
        store(acc, const(0.0, F32), 0)
        with loop(k) as r:
            left = load(a, (a_batch(index) * m + i) * k + r)
            store(acc, load(acc, 0) + left * load(b, (b_batch(index) * k + r) * n + j), 0)
        store(y, load(acc, 0), (index * m + i) * n + j)


def softmax(x: Buffer, y: Buffer, rows: int, size: int) -> None:
    """Softmax over the last axis: maximum, exponentials and their sum, division."""
    with loop(rows) as row, block():
        state = local(2, F32)
        store(state, load(x, row * size), 0)
        with loop(size) as i:
            store(state, tirx.max(load(state, 0), load(x, row * size + i)), 0)
        store(state, const(0.0, F32), 1)
        with loop(size) as i:
            power = let(exp(load(x, row * size + i) - load(state, 0), 1))
            store(y, power, row * size + i)
            store(state, load(state, 1) + power, 1)
        with loop(size) as i:
            store(y, load(y, row * size + i) / load(state, 1), row * size + i)


def upsample(x: Buffer, y: Buffer, height: int, width: int, channels: int, factor: int) -> None:
    """UpsampleNearest."""
    with loop(height * factor) as i, loop(width * factor) as j, loop(channels) as c:
        source = ((i // factor) * width + j // factor) * channels + c
        store(y, load(x, source), (i * width * factor + j) * channels + c)


def average_pool(x: Buffer, y: Buffer, height: int, width: int, channels: int, kernel: tuple[int, int]) -> None:
    """AveragePool2d, stride = kernel."""
    kh, kw = kernel
    with loop(height // kh) as i, loop(width // kw) as j, loop(channels) as c, block():
        total = local(1, F32)
        store(total, const(0.0, F32), 0)
        with loop(kh) as di, loop(kw) as dj:
            store(total, load(total, 0) + load(x, ((i * kh + di) * width + j * kw + dj) * channels + c), 0)
        store(y, load(total, 0) / const(kh * kw, F32), (i * (width // kw) + j) * channels + c)
