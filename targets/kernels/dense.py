"""MatMul (batched, float32), Softmax over the last axis, UpsampleNearest and AveragePool2d."""

from tvm import tirx

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    block,
    const,
    hold,
    in_lanes,
    let,
    load,
    local,
    loop,
    max_lanes,
    parallel,
    splat,
    store,
    sum_lanes,
)
from edgedm.targets.kernels.mathematics import inverse_exp

F32 = "float32"
PARALLEL_MACS = 1 << 19  # about 9 us of one core
PARALLEL_ELEMENTS = 1 << 18
VECTORS = 2  # of a product's register tile
MAXIMA = 4  # vectors: a maximum waits for the one before it, and there are as many of them as cycles to wait


def matmul(
    a: Buffer,
    b: Buffer,
    y: Buffer,
    size: tuple[int, int, int, int],
    batched: tuple[bool, bool],
    lanes: int,
    most_rows: int,
) -> None:
    """f32[batch, m, k] times f32[batch, k, n]; `size` is (batch, m, n, k).

    `batched` says which operands have a matrix for each index of the batch, not one for all. A tile of `most_rows` x
    2 vectors of columns stands in registers over k; columns that fill no vector go to narrower ones.
    """
    batch, m, n, k = size

    def tile(index: Expr, row: Expr, rows: int, column: Expr, vectors: int, width: int) -> None:
        with block():
            acc = Registers(rows * vectors, width, F32)
            slots = [(r, v) for r in range(rows) for v in range(vectors)]
            with loop(k) as t:
                at = let(((index if batched[1] else 0) * k + t) * n + column)
                right = [let(load(b, at + v * width, width)) for v in range(vectors)]
                for r in range(rows):
                    left = let(splat(load(a, ((index if batched[0] else 0) * m + row + r) * k + t), width))
                    for v in range(vectors):
                        acc[r * vectors + v] = acc[r * vectors + v] + left * right[v]
            for r, v in slots:
                at = (index * m + row + r) * n + column + v * width
                store(y, acc[r * vectors + v], at, width)

    def columns(index: Expr, row: Expr, rows: int) -> None:
        first, width, vectors = 0, lanes, VECTORS
        while first < n:
            count = (n - first) // (vectors * width)
            if count:
                start = first
                with loop(count) as c:
                    tile(index, row, rows, start + c * vectors * width, vectors, width)
                first += count * vectors * width
            elif vectors > 1:
                vectors = 1
            else:
                width //= 2

    whole = m // most_rows
    if whole:
        with parallel(batch * whole, batch * m * n * k >= PARALLEL_MACS) as unit:
            columns(let(unit // whole), let((unit % whole) * most_rows), most_rows)
    if m % most_rows:
        with loop(batch) as index:
            columns(index, whole * most_rows, m % most_rows)


def softmax(x: Buffer, y: Buffer, rows: int, size: int, lanes: int, fused: bool) -> None:
    """Per row: the maximum, exponentials and their sum, and their product with its reciprocal.

    Divisions would be half of the work. The sum is 1 at least, so its reciprocal neither overflows nor vanishes.
    """
    wide = MAXIMA * lanes
    with parallel(rows, rows * size >= PARALLEL_ELEMENTS // 4) as row, block():
        most, total = local(wide, F32), local(lanes, F32)

        def at(index: Expr) -> Expr:
            return row * size + index

        store(most, splat(load(x, at(0)), wide), 0, wide)
        store(total, const(0.0, F32, lanes), 0, lanes)

        def find(index: Expr, count: int) -> None:
            store(most, tirx.max(load(most, 0, count), load(x, at(index), count)), 0, count)

        def power(index: Expr, count: int) -> None:
            below = splat(largest, count) - load(x, at(index), count)
            value = hold(inverse_exp(below, count, fused, positive=True), count)
            store(y, value, at(index), count)
            store(total, load(total, 0, count) + value, 0, count)

        def scale(index: Expr, count: int) -> None:
            store(y, load(y, at(index), count) * splat(share, count), at(index), count)

        in_lanes(size // wide * wide, wide, find)
        in_lanes(size % wide, lanes, lambda index, count: find(size // wide * wide + index, count))
        largest = max_lanes(load(most, 0, wide), wide)
        in_lanes(size, lanes, power)
        share = hold(const(1.0, F32) / sum_lanes(load(total, 0, lanes), lanes), 1)
        in_lanes(size, lanes, scale)


def upsample(x: Buffer, y: Buffer, image: tuple[int, int, int], factor: int, lanes: int) -> None:
    """Every pixel of [height, width, channels] repeated `factor` times along both axes; any dtype."""
    height, width, channels = image
    with parallel(height, height * width * channels >= PARALLEL_ELEMENTS // 4) as i, loop(width) as j:

        def emit(c: Expr, count: int) -> None:
            value = let(load(x, (i * width + j) * channels + c, count))
            for di in range(factor):
                for dj in range(factor):
                    pixel = (i * factor + di) * (width * factor) + j * factor + dj
                    store(y, value, pixel * channels + c, count)

        in_lanes(channels, lanes, emit)


def average_pool(x: Buffer, y: Buffer, image: tuple[int, int, int], kernel: tuple[int, int], lanes: int) -> None:
    """Means over kernel-sized windows, stride = kernel."""
    (height, width, channels), (kh, kw) = image, kernel
    with parallel(height // kh, height * width * channels >= PARALLEL_ELEMENTS) as i, loop(width // kw) as j:

        def emit(c: Expr, count: int) -> None:
            total = const(0.0, F32, count)
            for di in range(kh):
                for dj in range(kw):
                    total = total + load(x, ((i * kh + di) * width + j * kw + dj) * channels + c, count)
            store(y, total / const(kh * kw, F32, count), (i * (width // kw) + j) * channels + c, count)

        in_lanes(channels, lanes, emit)
