"""Transpose of the last two axes: float32[..., rows, columns] -> [..., columns, rows].

Squares of `lanes` x `lanes` stand in registers, a vector a row, and are turned by exchanging halves: for each distance
d = lanes / 2, ..., 1 the rows i and i + d exchange their lanes, log2(lanes) shuffles a vector. So every load and store
is a whole vector, and the cache line of a column is touched once, not `lanes` times. What fills no square is moved one
by one.
"""

from tvm import tirx

from edgedm.targets.kernels.builder import Buffer, Expr, Registers, block, let, load, loop, parallel, store

PARALLEL_ELEMENTS = 1 << 16  # about 7 us of one core


def transpose(x: Buffer, y: Buffer, size: tuple[int, int, int], lanes: int) -> None:
    """Turn `size` = (batch, rows, columns)."""
    batch, rows, columns = size
    high, wide = rows // lanes, columns // lanes
    if high and wide:
        with parallel(batch * high, batch * rows * columns >= PARALLEL_ELEMENTS) as unit, loop(wide) as square:
            first = let(unit // high * rows * columns)
            row, column = let(unit % high * lanes), let(square * lanes)
            with block():
                _square(x, y, first + row * columns + column, first + column * rows + row, (columns, rows), lanes)
    with loop(batch) as index:
        first = index * rows * columns
        if columns % lanes:
            _singly(x, y, first, (rows, columns), (0, rows), (wide * lanes, columns % lanes))
        if rows % lanes and wide:
            _singly(x, y, first, (rows, columns), (high * lanes, rows % lanes), (0, wide * lanes))


def _square(x: Buffer, y: Buffer, source: Expr, target: Expr, strides: tuple[int, int], lanes: int) -> None:
    """One square; `strides` are the distances of rows in x and in y."""
    vectors = Registers(lanes, lanes, "float32", zero=False)
    for row in range(lanes):
        vectors[row] = load(x, source + row * strides[0], lanes)
    distance = lanes // 2
    while distance:
        turned = Registers(lanes, lanes, "float32", zero=False)
        for row in range(lanes):
            pair = [vectors[row & ~distance], vectors[row | distance]]
            keep, take = (0, lanes) if not row & distance else (distance, lanes)
            picks = [(lane - distance + take if lane & distance else lane) + keep for lane in range(lanes)]
            turned[row] = tirx.Shuffle(pair, picks)
        vectors, distance = turned, distance // 2
    for row in range(lanes):
        store(y, vectors[row], target + row * strides[1], lanes)


def _singly(
    x: Buffer, y: Buffer, first: Expr, size: tuple[int, int], down: tuple[int, int], across: tuple[int, int]
) -> None:
    """A rectangle, element by element; `down` and `across` are (start, extent)."""
    rows, columns = size
    with loop(across[1], across[0]) as column, loop(down[1], down[0]) as row:
        store(y, load(x, first + row * columns + column), first + column * rows + row)
