"""The small table from target and shape to a tile, measured on one core of an AVX-512 machine."""

from edgedm.targets.kernels.bitserial import Tile
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.target import Target

_WORD_BYTES = 8


def bitserial(target: Target, shape: Convolution) -> Tile:
    """Sixteen accumulators where there are 32 vector registers, fewer where a popcount takes several."""
    lanes = target.vector_bytes // _WORD_BYTES
    pixels = shape.out_height * shape.out_width
    if "vpopcntdq" not in target.features:
        return Tile(lanes, 2, 1) if pixels > 1 else Tile(lanes, 1, 2)
    if pixels >= 8:
        return Tile(lanes, 8, 1)
    return Tile(lanes, 4, 2) if pixels >= 4 else Tile(lanes, pixels, 4)
