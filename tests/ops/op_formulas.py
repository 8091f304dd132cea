"""Inputs and formulas in numpy that the tests of several ops share."""

import numpy as np

CHANNELS = [1, 3, 65, 130]
GEOMETRIES = [
    (3, [1, 1], [1, 1, 1, 1]),
    (3, [2, 2], [1, 1, 1, 1]),
    (3, [2, 2], [0, 0, 1, 1]),
    (2, [1, 2], [1, 0, 0, 2]),
    (1, [1, 1], [0, 0, 0, 0]),
]
"""Kernel, strides and pads."""

NAN, INF = float("nan"), float("inf")
# float32 epilogues of at most four operations on exact integers
EPILOGUE = 4 * 2.0**-24


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(seed: int, *shape: int) -> np.ndarray:
    return rng_of(seed).standard_normal(shape).astype(np.float32)


def convolve(x: np.ndarray, weight: np.ndarray, strides: list[int], pads: list[int]) -> np.ndarray:
    """Exact int64 convolution of [1, H, W, C] by [O, kh, kw, C]; zeros outside."""
    x = np.pad(x.astype(np.int64), [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)])
    kh, kw = weight.shape[1:3]
    rows, columns = (x.shape[1] - kh) // strides[0] + 1, (x.shape[2] - kw) // strides[1] + 1
    y = np.zeros((1, rows, columns, weight.shape[0]), np.int64)
    for i in range(kh):
        for j in range(kw):
            window = x[:, i : i + rows * strides[0] : strides[0], j : j + columns * strides[1] : strides[1]]
            y += np.einsum("nhwc,oc->nhwo", window, weight[:, i, j].astype(np.int64))
    return y


def close(got: np.ndarray, expected: np.ndarray, relative: float) -> bool:
    return bool(np.abs(got - expected).max() <= relative * np.abs(expected).max())
