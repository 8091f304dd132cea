"""How an output image is cut into register tiles, and what its zero border means."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import tirx

from edgedm.targets.kernels.builder import Buffer, Expr, in_lanes, load, loop, store
from edgedm.targets.kernels.shapes import Convolution

COPY_LANES = 8


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

    def copy(self, source: Buffer, target: Buffer, size: int, zero: Callable[[int], Expr]) -> None:
        """Copy the image, `size` elements a pixel, into the middle of `target` and clear what surrounds it."""
        top, left = self.shape.pads[:2]
        rows, columns = min(self.shape.height, self.height - top), min(self.shape.width, self.width - left)
        pitch = self.width * size
        _fill(target, zero, 0, top * pitch)
        with loop(rows) as row:
            start = (top + row) * pitch
            _fill(target, zero, start, left * size)
            _copy(source, row * self.shape.width * size, target, start + left * size, columns * size)
            _fill(target, zero, start + (left + columns) * size, (self.width - left - columns) * size)
        _fill(target, zero, (top + rows) * pitch, (self.height - top - rows) * pitch)


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
