"""Convolutions and linear layers with their gradients, in float64 numpy."""

import numpy as np

Array = np.ndarray


def sign(v: Array) -> Array:
    return np.where(v >= 0, 1.0, -1.0)


def within(v: Array) -> Array:
    return (np.abs(v) <= 1).astype(float)


def hat(u: Array) -> Array:
    """Bi-Real Net's slope of the sign."""
    return np.select([(u >= -1) & (u < 0), (u >= 0) & (u < 1)], [2 + 2 * u, 2 - 2 * u], 0.0)


def along(values: Array, like: Array, axis: int) -> Array:
    shape = [1] * like.ndim
    shape[axis] = -1
    return values.reshape(shape)


def product(x: Array, weight: Array, stride: int = 1, padding: int = 0) -> Array:
    """[N, I, H, W] by [O, I, k, k], or [..., I] by [O, I]."""
    if weight.ndim == 2:
        return x @ weight.T
    columns, (rows, width) = _columns(x, weight.shape[2], stride, padding)
    y = np.einsum("nkp,ok->nop", columns, weight.reshape(len(weight), -1))
    return y.reshape(*y.shape[:2], rows, width)


def product_gradients(
    x: Array, weight: Array, upstream: Array, stride: int = 1, padding: int = 0
) -> tuple[Array, Array]:
    """Gradients to x and weight."""
    if weight.ndim == 2:
        flat_x, flat_up = x.reshape(-1, x.shape[-1]), upstream.reshape(-1, upstream.shape[-1])
        return upstream @ weight, flat_up.T @ flat_x
    k = weight.shape[2]
    columns, (rows, width) = _columns(x, k, stride, padding)
    g = upstream.reshape(*upstream.shape[:2], -1)
    to_weight = np.einsum("nop,nkp->ok", g, columns).reshape(weight.shape)
    to_columns = np.einsum("nop,ok->nkp", g, weight.reshape(len(weight), -1))
    to_columns = to_columns.reshape(len(x), x.shape[1], k, k, rows, width)
    n, c, height, wide = x.shape
    to_x = np.zeros((n, c, height + 2 * padding, wide + 2 * padding))
    for i in range(k):
        for j in range(k):
            to_x[:, :, i : i + rows * stride : stride, j : j + width * stride : stride] += to_columns[:, :, i, j]
    return to_x[:, :, padding : padding + height, padding : padding + wide], to_weight


def _columns(x: Array, k: int, stride: int, padding: int) -> tuple[Array, tuple[int, int]]:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows, width = (x.shape[2] - k) // stride + 1, (x.shape[3] - k) // stride + 1
    taps = [
        x[:, :, i : i + rows * stride : stride, j : j + width * stride : stride] for i in range(k) for j in range(k)
    ]
    return np.stack(taps, 2).reshape(len(x), -1, rows * width), (rows, width)
