"""Counter-based noise: Philox4x32-10 and normals by polynomials, equal in numpy and in C on every device.

Philox: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The counter is
(element / 4, draw, image, stream = 0), the key is the 64-bit seed; so every element of every draw of every
image has its own random number, whatever the number of images, threads or steps.

A 32-bit word becomes one normal: its lowest bit is the sign, the other 31 give p in (0, 1/2), and the inverse of
the normal distribution is a polynomial in p's float32 mantissa, one polynomial per exponent (`normal_table`).
Only float32 additions and multiplications in a fixed order, no libm: bit-identical wherever IEEE 754 holds
and no fused multiply-add is formed.
"""

import numpy as np
from numpy.typing import NDArray

from edgedm.diffusion.normal_table import ROWS

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_TABLE = np.array(ROWS, dtype=np.float32)
_HALF_EXPONENT = 126  # biased exponent of 0.5, the smallest magnitude that a word can give


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox on `counter` uint32[..., 4] under `key`; returns uint32[..., 4]."""
    words = [counter[..., i].astype(np.uint64) for i in range(4)]
    for round_index in range(_ROUNDS):
        round_key = [np.uint64((key[i] + round_index * _WEYL[i]) & 0xFFFFFFFF) for i in range(2)]
        product = [_MULTIPLIERS[0] * words[0], _MULTIPLIERS[1] * words[2]]
        words = [
            (product[1] >> _SHIFT) ^ words[1] ^ round_key[0],
            product[1] & _LOW,
            (product[0] >> _SHIFT) ^ words[3] ^ round_key[1],
            product[0] & _LOW,
        ]
    return np.stack(words, axis=-1).astype(np.uint32)


def normal_from_bits(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """One standard normal float32 per 32-bit word, same shape; magnitudes up to 6.28."""
    scaled = (bits >> np.uint32(1)).astype(np.float32) + np.float32(0.5)  # p * 2^32, 0.5 .. 2^31
    pattern = scaled.view(np.uint32)
    row = (pattern >> np.uint32(23)).astype(np.int64) - _HALF_EXPONENT
    mantissa = ((pattern & np.uint32(0x007FFFFF)) | np.uint32(0x3F800000)).view(np.float32)
    offset = mantissa - np.float32(1.5)
    value: NDArray[np.float32] = _TABLE[row, -1]
    for power in range(_TABLE.shape[1] - 2, -1, -1):
        value = value * offset + _TABLE[row, power]
    return np.where(bits & np.uint32(1), -value, value).astype(np.float32, copy=False)


def normals(seed: int, image: int, draw: int, count: int) -> NDArray[np.float32]:
    """`count` standard normals of one draw of one image.

    Draw 0 is a trajectory's first noise, draw i + 1 the noise that sampler step i adds. `seed` is taken modulo
    2^64, `image` and `draw` modulo 2^32.
    """
    counter = np.zeros(((count + 3) // 4, 4), dtype=np.uint32)
    counter[:, 0] = np.arange(counter.shape[0], dtype=np.uint32)
    counter[:, 1] = draw & 0xFFFFFFFF
    counter[:, 2] = image & 0xFFFFFFFF
    bits = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return normal_from_bits(bits.reshape(-1)[:count])
