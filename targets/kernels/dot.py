"""Products of codes by integer dot products.

Loop order, sums and zero points: see `code_product`. The image are words of four channels, padded with the code za.
Codes that are signed, of binary weights, are the signed factor whatever their width.

Limit: one dot product (vpdpbusd: 64 MACs in 512 bits) a cycle and 512-bit port. Reached, of what
`edgedm.bench.limits` measures on one core, for 256 to 256 channels 3x3 on 16x16: 0.99 with AVX-512 VNNI (232 of 234
GMAC/s on one such port; 0.94 for a 1x1 kernel), 0.92 with AVX2 (163 of 177).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgedm.targets.kernels import code_product
from edgedm.targets.kernels.builder import Buffer, Expr, const, store
from edgedm.targets.kernels.dot_image import Image
from edgedm.targets.kernels.dot_tiles import PARALLEL_MACS, Dot
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec
from edgedm.targets.kernels.tiles import Window


def draft(shape: Convolution, operands: Operands, tile: Dot) -> Draft:
    """Return the kernel for codes uint8[..., C], or int8[..., C] of binary weights."""
    return code_product.draft(shape, operands, _Form(shape.channels, tile, Image(shape.channels, tile)))


@dataclass(frozen=True)
class _Form:
    """See `code_product.Form`."""

    channels: int
    tile: Dot
    words: Image
    bias = 0
    parallel_macs = PARALLEL_MACS

    @property
    def name(self) -> str:
        tile = self.tile
        return f"{tile.name} {tile.bits}x{tile.weight_bits} {tile.lanes} {tile.pixels}x{tile.groups}"

    @property
    def block(self) -> int:
        return self.tile.block

    @property
    def pixels(self) -> int:
        return self.tile.pixels

    @property
    def groups(self) -> int:
        return self.tile.groups

    @property
    def lanes(self) -> int:
        return self.tile.lanes

    @property
    def steps(self) -> int:
        return self.tile.steps(self.channels)

    @property
    def pitch(self) -> int:
        return self.words.words

    @property
    def offset(self) -> int:
        return self.tile.offset

    @property
    def image_offset(self) -> int:
        return self.tile.image_offset

    @property
    def needs_copy(self) -> bool:
        return self.words.needs_copy

    def image(self, height: int, width: int) -> TensorSpec:
        return TensorSpec((height, width, self.words.words), "int32")

    def view(self, codes: Buffer) -> Buffer:
        return self.words.as_words(codes)

    def stage(self, codes: Buffer, source: Expr, image: Buffer | None, sums: Buffer | None, pixel: Expr) -> None:
        if image is not None:
            self.words.copy(codes, source * self.channels, image, pixel)
        if sums is not None:
            total = self.words.sum(codes, source * self.channels) - self.image_offset * self.channels
            store(sums, total, pixel)

    def border(self, zero: Expr | None, image: Buffer, pixel: Expr) -> None:
        self.words.fill(const(0, "int32") if zero is None else zero, image, pixel)

    def pack(self, weight: Array) -> Array:
        return self.tile.pack(weight)

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Sequence[Expr]]:
        sums = self.tile.accumulate(weight, image, window, index, together)
        return lambda slot: [sums(slot)]
