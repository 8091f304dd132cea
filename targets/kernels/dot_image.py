"""The image side of integer dot products: rows of codes as words of four channels, and their sums."""

from dataclasses import dataclass

from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    block,
    cast,
    const,
    in_lanes,
    load,
    local,
    loop,
    reinterpret,
    splat,
    store,
    sum_lanes,
    view,
)
from edgedm.targets.kernels.dot_tiles import WORD_CHANNELS, Dot

_EVEN_BYTES = 0x00FF00FF
_BYTE = 0xFF
_SIGN = -128  # as an int8: added to signed codes, it makes them unsigned ones that are 128 more
_PAIRED = 0x00010001
_SUM_LANE = 8  # bytes that `sum_bytes` adds up into one lane


@dataclass(frozen=True)
class Image:
    """Pixels of `channels` codes, as `tile` reads them: int32 words, int16 pairs where it takes two for four codes."""

    channels: int
    tile: Dot

    @property
    def words(self) -> int:
        """int32 words of a pixel, the last step filled up."""
        return self.tile.steps(self.channels) * self.tile.step_words * self.tile.image_words

    @property
    def needs_copy(self) -> bool:
        """Whether the codes themselves are not such words."""
        tile = self.tile
        return tile.image_words > 1 or tile.image_offset > 0 or self.channels % tile.step_channels > 0

    def as_words(self, codes: Buffer) -> Buffer:
        """The codes, which need no copy, as words."""
        return view(codes, (codes.shape[0] // WORD_CHANNELS,), "int32")

    def copy(self, codes: Buffer, source: Expr, image: Buffer, pixel: Expr) -> None:
        """Copy the codes from `source` into the words of `pixel`; missing channels become zeros."""
        whole, rest = divmod(self.channels, WORD_CHANNELS)

        def move(word: Expr, lanes: int) -> None:
            size = WORD_CHANNELS * lanes
            both = load(codes, source + word * WORD_CHANNELS, size)
            both = both - const(self.tile.image_offset, "uint8", size) if self.tile.image_offset else both
            self._put(reinterpret(both, "int32" if lanes == 1 else f"int32x{lanes}"), image, pixel, word, lanes)

        if self.tile.image_words == 1:
            in_lanes(whole, self.tile.lanes, move)
        elif whole:
            with loop(whole) as word:
                move(word, 1)
        if rest:
            last = const(0, "int32")
            for c in range(rest):
                code = cast(load(codes, source + whole * WORD_CHANNELS + c), "int32")
                code = (code - self.tile.image_offset) & const(_BYTE, "int32")
                last = last | code << const(8 * c, "int32")
            self._put(last, image, pixel, whole, 1)
        for word in range(-(-self.channels // WORD_CHANNELS), self.words // self.tile.image_words):
            self._put(const(0, "int32"), image, pixel, word, 1)

    def fill(self, zero: Expr, image: Buffer, pixel: Expr) -> None:
        """Fill the words of `pixel` with one code, its offset taken off."""
        if self.tile.image_words == 1:
            word = reinterpret(splat(cast(zero, "uint8"), WORD_CHANNELS), "int32")
        else:
            word = zero * const(_PAIRED, "int32")

        def put(at: Expr, lanes: int) -> None:
            store(image, splat(word, lanes), pixel * self.words + at, lanes)

        in_lanes(self.words, self.tile.lanes, put)

    def sum(self, codes: Buffer, source: Expr) -> Expr:
        """The sum of a pixel's codes as they are, no offset taken off."""
        size = self.tile.bytes
        lanes = size // _SUM_LANE
        total, rest = local(lanes, "int64"), local(1, "int32")
        store(total, const(0, "int64", lanes), 0, lanes)
        store(rest, const(0, "int32"), 0)

        def add(at: Expr, count: int) -> None:
            if count == 1:
                store(rest, load(rest, 0) + cast(load(codes, source + at), "int32"), 0)
            else:
                vector = reinterpret(load(codes, source + at, size), f"int8x{size}")
                unsigned = vector ^ const(_SIGN, "int8", size) if self.tile.signed else vector
                eights = self.tile.sum_bytes(unsigned, size)
                store(total, load(total, 0, lanes) + eights, 0, lanes)

        in_lanes(self.channels, size, add)
        more = -_SIGN * (self.channels // size * size) if self.tile.signed else 0
        return cast(sum_lanes(load(total, 0, lanes), lanes), "int32") + load(rest, 0) - more

    def _put(self, words: Expr, image: Buffer, pixel: Expr, word: Expr, lanes: int) -> None:
        """Store `lanes` natural words from `word` on: as they are, or each as its even and its odd bytes."""
        at = pixel * self.words + word * self.tile.image_words
        if self.tile.image_words == 1:
            store(image, words, at, lanes)
            return
        with block():
            held = local(1, "int32")
            store(held, words, 0)
            mask = const(_EVEN_BYTES, "int32")
            store(image, load(held, 0) & mask, at)
            store(image, load(held, 0) >> const(8, "int32") & mask, at + 1)
