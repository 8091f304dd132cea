"""The small table from target and shape to a tile, measured on one core of an AVX-512 machine."""

from edgedm.targets.kernels import bitserial as _bitserial
from edgedm.targets.kernels import lookup as _lookup
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.target import Target

_WORD_BYTES = 8


def bitserial(target: Target, shape: Convolution) -> _bitserial.Tile:
    """Sixteen accumulators where there are 32 vector registers, fewer where a popcount takes several."""
    lanes = target.vector_bytes // _WORD_BYTES
    pixels = shape.out_height * shape.out_width
    if "vpopcntdq" not in target.features:
        return _bitserial.Tile(lanes, 2, 1) if pixels > 1 else _bitserial.Tile(lanes, 1, 2)
    if pixels >= 8:
        return _bitserial.Tile(lanes, 8, 1)
    return _bitserial.Tile(lanes, 4, 2) if pixels >= 4 else _bitserial.Tile(lanes, pixels, 4)


def lookup(target: Target, shape: Convolution) -> _lookup.Tile:
    """Three accumulators a pixel: eight pixels in 32 vector registers, four in 16."""
    lanes = target.vector_bytes
    while lanes > 16 and shape.out_channels <= lanes // 2:
        lanes //= 2
    most = 8 if target.vector_bytes == 64 else 4
    pixels = shape.out_height * shape.out_width
    if pixels >= most:
        return _lookup.Tile(lanes, most, 1)
    return _lookup.Tile(lanes, pixels, max(1, most // pixels // 2))
