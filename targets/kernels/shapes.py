"""The geometry of a convolution, shared by all its kernels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgedm.errors import InvalidModelError


@dataclass(frozen=True)
class Convolution:
    """A 2-D convolution of one image, channels last; a matrix product is one with a 1x1 kernel and height 1."""

    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right

    @classmethod
    def of(
        cls,
        image: tuple[int, ...],
        channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        attrs: Mapping[str, Any],
    ) -> "Convolution":
        """Build from an image [1, H, W, ...] and an op's `strides` and `pads`."""
        if len(image) != 4 or image[0] != 1:
            raise InvalidModelError(f"convolution: expected one image [1, H, W, C], got {list(image)}")
        height, width = image[1:3]
        strides = tuple(attrs.get("strides", (1, 1)))
        pads = tuple(attrs.get("pads", (0, 0, 0, 0)))
        shape = cls(height, width, channels, out_channels, tuple(kernel), strides, pads)  # type: ignore[arg-type]
        if shape.out_height < 1 or shape.out_width < 1 or min(pads) < 0:
            raise InvalidModelError(f"convolution: {shape} has no output")
        return shape

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height + self.pads[0] + self.pads[2] - self.kernel[0]) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width + self.pads[1] + self.pads[3] - self.kernel[1]) // self.strides[1] + 1

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pointwise(self) -> bool:
        """Whether each output pixel's window is the one pixel at its place in the padded image."""
        return self.taps == 1 and self.strides == (1, 1)

    @property
    def padded(self) -> bool:
        """Whether any padding is asked for."""
        return any(self.pads)

    def in_rows_of(self, most: int) -> "Convolution":
        """The same pixels in rows of up to `most`, where each is computed from one and their number allows it.

        All rows of a product, or a wide image's, are more than caches hold; of short rows as many as fit make a unit.
        """
        pixels = self.height * self.width
        width = max(size for size in range(1, most + 1) if pixels % size == 0)
        if self.padded or not self.pointwise or 2 * width < most:
            return self
        return replace(self, height=pixels // width, width=width)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        return self.out_height * self.out_width * self.out_channels * self.taps * self.channels
