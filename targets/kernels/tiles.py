"""How an output image is cut into register tiles, and what its zero border means."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from edgedm.targets.kernels.builder import (
    FEWEST_UNITS,
    Buffer,
    Expr,
    block,
    branch,
    const,
    in_lanes,
    let,
    load,
    loop,
    parallel,
    share,
    store,
)
from edgedm.targets.kernels.shapes import Convolution

COPY_LANES = 8
L1_BYTES = 16 * 1024  # of the image that is reused for one group of weights
_FIELD_LANES = 8

Pixel = tuple[Expr, Expr]  # of the output: row, column


@dataclass(frozen=True)
class Region:
    """A rectangle of `row_blocks` x `column_blocks` tiles, each of `rows` x `columns` pixels."""

    first_row: int
    row_blocks: int
    rows: int
    first_column: int
    column_blocks: int
    columns: int


@dataclass(frozen=True)
class Grid:
    """Regions that cover an image once; `rows` of the largest tile."""

    rows: int
    regions: tuple[Region, ...]


def grid(height: int, width: int, pixels: int) -> Grid:
    """Cut height x width into tiles of at most `pixels` pixels: whole rows first, no tile half empty."""
    columns = _columns(width, pixels)
    rows = min(height, max(1, pixels // columns))
    regions = []
    for first_row, row_blocks, tile_rows in _strips(height, rows):
        for first_column, column_blocks, tile_columns in _strips(width, columns):
            regions.append(Region(first_row, row_blocks, tile_rows, first_column, column_blocks, tile_columns))
    return Grid(rows, tuple(regions))


def output_groups(full: int, groups: int, blocks: int) -> list[tuple[int, int, int]]:
    """Split blocks of output channels, `full` of them whole: (first block, how many groups, blocks in each)."""
    groups = max(1, min(groups, full))
    whole = full // groups
    parts = [(0, whole, groups), (whole * groups, full - whole * groups, 1), (full, blocks - full, 1)]
    return [part for part in parts if part[1]]


@dataclass(frozen=True)
class Window:
    """Where a tile's operands stand in the image: `at(pixel, kernel row)` is the offset of the first step's."""

    rows: int  # of the kernel
    row_steps: int  # consecutive steps of a kernel row
    pixels: Sequence[Pixel]
    at: Callable[[Pixel, Expr], Expr]


class RegisterTile(Protocol):
    """`pixels` pixels against `groups` vectors of `block` output channels."""

    @property
    def block(self) -> int:
        """Output channels of a vector."""

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""

    @property
    def groups(self) -> int:
        """Vectors of output channels of a tile."""


def sweep(
    shape: Convolution,
    tile: RegisterTile,
    row_bytes: int,
    worthwhile: bool,
    emit: Callable[[Sequence[Pixel], Expr, int, bool], None],
) -> None:
    """Emit `emit(pixels, first block of output channels, how many, whether the last of them is part)` for all tiles.

    Loop order: unit (rows x output channel groups, over threads), row block, column block. A unit's rows, `row_bytes`
    each, stay in L1 while the groups' weights pass.
    """
    blocks, full = -(-shape.out_channels // tile.block), shape.out_channels // tile.block
    cut = grid(shape.out_height, shape.out_width, tile.pixels)
    for region in cut.regions:
        for first, count, together in output_groups(full, tile.groups, blocks):
            chunk = unit_rows(region.row_blocks, row_bytes * shape.strides[0] * cut.rows, count)
            chunks = -(-region.row_blocks // chunk)
            tail = (first + count * together) * tile.block > shape.out_channels
            with parallel(chunks * count, worthwhile) as unit:
                index = let(first + (unit % count) * together)
                start = let((unit // count) * chunk)
                with (
                    loop(tirx.min(chunk, region.row_blocks - start), start) as row,
                    loop(region.column_blocks) as column,
                    block(),
                ):
                    oh = region.first_row + row * region.rows
                    ow = region.first_column + column * region.columns
                    pixels = [(oh + i, ow + j) for i in range(region.rows) for j in range(region.columns)]
                    emit(pixels, index, together, tail)


def unit_rows(row_blocks: int, block_bytes: int, groups: int) -> int:
    """How many of `row_blocks` make a unit with one of `groups` groups of output channels.

    Their image, `block_bytes` each, stays in L1. Units are enough for threads and, where twice as many at most divide
    the rows, of one size: parts of 30 and 2 rows would leave a second thread idle; 16 and 16 keep it busy.
    """
    most = max(1, min(row_blocks, L1_BYTES // block_bytes, row_blocks * groups // FEWEST_UNITS))
    fewest = -(-row_blocks // most)
    parts = next((parts for parts in range(fewest, 2 * fewest + 1) if row_blocks % parts == 0), fewest)
    return -(-row_blocks // parts)


def sum_fields(shape: Convolution, width: int, sums: Buffer, fields: Buffer) -> None:
    """Fill `fields`, int32 an output pixel, with the sum over its window of `sums`, int32 an image of `width`."""
    (kh, kw), (sh, sw) = shape.kernel, shape.strides

    def add(oh: Expr, ow: Expr, lanes: int) -> None:
        total = const(0, "int32", lanes)
        for i in range(kh):
            for j in range(kw):
                total = total + load(sums, (oh * sh + i) * width + ow * sw + j, lanes)
        store(fields, total, oh * shape.out_width + ow, lanes)

    with loop(shape.out_height) as oh:
        in_lanes(shape.out_width, _FIELD_LANES if sw == 1 else 1, lambda ow, lanes: add(oh, ow, lanes))


def _columns(width: int, pixels: int) -> int:
    """The largest divisor of the width up to `pixels`, if it is at least half of that; else `pixels` itself."""
    if width <= pixels:
        return width
    divisor = max(size for size in range(1, pixels + 1) if width % size == 0)
    return divisor if 2 * divisor >= pixels else pixels


def _strips(extent: int, size: int) -> list[tuple[int, int, int]]:
    whole = extent // size
    parts = [(0, whole, size), (whole * size, 1, extent - whole * size)]
    return [part for part in parts if part[1] and part[2]]


class Border:
    """The zero border of a convolution's image and the taps that fall on it.

    Pixels whose windows reach equally far over each side share a *class*; class numbers are dense over how far.
    """

    def __init__(self, shape: Convolution) -> None:
        self.shape = shape
        (kh, kw), (sh, sw) = shape.kernel, shape.strides
        top, left = shape.pads[:2]
        self.height = (shape.out_height - 1) * sh + kh
        self.width = (shape.out_width - 1) * sw + kw
        self._rows = _Axis(shape.height, top, kh, sh, shape.out_height)
        self._columns = _Axis(shape.width, left, kw, sw, shape.out_width)

    @property
    def classes(self) -> int:
        """Number of classes, those that do not occur included."""
        return self._rows.classes * self._columns.classes

    def class_of(self, oh: Expr, ow: Expr) -> Expr:
        """Return the class of an output pixel."""
        return self._rows.class_of(oh) * self._columns.classes + self._columns.class_of(ow)

    def missing_taps(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each class that occurs with its taps that lie on the border."""
        kh, kw = self.shape.kernel
        for row_class, rows in self._rows.occurring().items():
            for column_class, columns in self._columns.occurring().items():
                taps = [i * kw + j for i in range(kh) for j in range(kw) if i in rows or j in columns]
                yield row_class * self._columns.classes + column_class, taps

    def copy(
        self,
        source: Buffer,
        target: Buffer,
        size: int,
        zero: Callable[[int], Expr],
        worthwhile: bool,
        beside: Callable[[Expr, int], None] | None = None,
    ) -> None:
        """Copy the image, `size` elements a pixel, into the middle of `target` and clear what surrounds it.

        Where threads pay, each copies the rows whose products it makes next. `beside(part, parts)` emits what else is
        shared out in as many parts.
        """
        top, left = self.shape.pads[:2]
        rows, columns = min(self.shape.height, self.height - top), min(self.shape.width, self.width - left)
        pitch = self.width * size
        parts = self.height if worthwhile else 1

        def copy_row(row: Expr) -> None:
            start = let(row * pitch)
            source_at = (row - top) * self.shape.width * size
            _fill(target, zero, start, left * size)
            _copy(source, source_at, target, start + left * size, columns * size)
            _fill(target, zero, start + (left + columns) * size, (self.width - left - columns) * size)

        with parallel(parts, worthwhile) as part:
            with share(part, parts, self.height) as row:
                inside = tirx.all(row >= top, row < top + rows)
                branch(inside, lambda: copy_row(row), lambda: _fill(target, zero, row * pitch, pitch))
            if beside is not None:
                beside(part, parts)


@dataclass(frozen=True)
class _Axis:
    extent: int
    before: int  # padding
    kernel: int
    stride: int
    outputs: int

    def _over(self, out: int) -> tuple[int, int]:
        """Return how many taps of output `out` lie before and behind the image."""
        start = out * self.stride - self.before
        return min(max(0, -start), self.kernel), min(max(0, start + self.kernel - self.extent), self.kernel)

    @property
    def _most(self) -> tuple[int, int]:
        overs = [self._over(out) for out in range(self.outputs)]
        return max(over[0] for over in overs), max(over[1] for over in overs)

    @property
    def classes(self) -> int:
        first, last = self._most
        return (first + 1) * (last + 1)

    def class_of(self, out: Expr) -> Expr:
        start = out * self.stride - self.before
        first, last = self._most
        number = tirx.min(tirx.max(0, 0 - start), self.kernel) * (last + 1) if first else 0
        if last:
            number = number + tirx.min(tirx.max(0, start + self.kernel - self.extent), self.kernel)
        return number

    def occurring(self) -> dict[int, set[int]]:
        last = self._most[1]
        found = {}
        for out in range(self.outputs):
            first, behind = self._over(out)
            taps = {*range(first), *range(self.kernel - behind, self.kernel)}
            found[first * (last + 1) + behind] = taps
        return found


def _fill(target: Buffer, zero: Callable[[int], Expr], start: Expr, count: int) -> None:
    in_lanes(count, COPY_LANES, lambda at, lanes: store(target, zero(lanes), start + at, lanes))


def _copy(source: Buffer, source_at: Expr, target: Buffer, target_at: Expr, count: int) -> None:
    in_lanes(count, COPY_LANES, lambda at, n: store(target, load(source, source_at + at, n), target_at + at, n))
