"""The canonical packing of signs into bytes, in numpy: what files store and what every packed tensor means.

The channel axis stands last; bit b of byte j is channel 8*j + b (least significant bit first); 1 means +1 and
0 means -1; the channels are padded with zero bits to a multiple of 64, so a row is whole 64-bit words and reads
the same as bytes or as little-endian words. Convolution weights are stored as (O, kh, kw, C).
"""

import numpy as np
import numpy.typing as npt

WORD_BITS = 64


def packed_bytes(channels: int) -> int:
    """Bytes of one packed row of `channels` signs: 8 * ceil(channels / 64)."""
    return -(-channels // WORD_BITS) * (WORD_BITS // 8)


def pack_rows(positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Pack bool[..., C] (True is +1) into uint8[..., Cb]."""
    packed = np.packbits(positive, axis=-1, bitorder="little")
    missing = packed_bytes(positive.shape[-1]) - packed.shape[-1]
    return np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, missing)])


def unpack_rows(bits: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.int8]:
    """Unpack uint8[..., Cb] into int8[..., channels] of +1 and -1."""
    positive = np.unpackbits(bits, axis=-1, count=channels, bitorder="little")
    return positive.astype(np.int8) * np.int8(2) - np.int8(1)


def pack_signs(weight: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Pack the signs of a weight, [O, C] or [O, C, kh, kw], canonically; sign(0) is +1."""
    rows = weight if weight.ndim == 2 else np.moveaxis(weight, 1, -1)
    return pack_rows(rows >= 0)
