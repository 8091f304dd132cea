"""Write generated images as a PNG grid or a .npy array with nothing but numpy and zlib.

A pixel is the float value v in [-1, 1] mapped to round((v + 1) * 127.5), half away from zero after clamping, in
float32; the C runtime's PNG writer does the same, so both give the same pixels.
"""

import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgedm.arrays import read_array
from edgedm.atomic import atomic_file
from edgedm.errors import UnsupportedError

_BORDER = 2  # pixels of background between images
_BACKGROUND = 64
_COLOUR_TYPE = {1: 0, 3: 2}  # channels -> PNG colour type: greyscale, RGB


def read_start(path: str | os.PathLike[str] | None, n: int, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Images f32[n, *shape] to start from, of a .npy file; None for None. Raises `InvalidModelError` for another."""
    return None if path is None else read_array(path, "start", (n, *shape))


def write_images(path: str | Path, images: NDArray[np.float32]) -> Path:
    """Write images f32[N, C, H, W] in [-1, 1] to `path`: `.npy` as they are, `.png` as a grid; return the path.

    Raises `UnsupportedError` for another suffix, or a PNG of other than 1 or 3 channels.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".png"):
        raise UnsupportedError(f"{path}: images are written as .png or .npy, got suffix {path.suffix!r}")
    data = encode_png(grid(images)) if path.suffix == ".png" else _encode_npy(images)
    with atomic_file(path) as scratch:
        scratch.write_bytes(data)
    return path


def _encode_npy(images: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()  # written to a file itself, numpy does not say why it could not be
    np.save(buffer, np.ascontiguousarray(images, dtype=np.float32))
    return buffer.getvalue()


def check_latent(model: str, decodes: bool, latent: bool, path: str | os.PathLike[str]) -> None:
    """Raise `UnsupportedError` where latents are asked for of a model without them, or in a file for images."""
    if latent and not decodes:
        raise UnsupportedError(f"latent: {model} draws images, it has no latents")
    if latent and Path(path).suffix != ".npy":
        raise UnsupportedError(f"{path}: latents are no images; expected a name that ends in .npy")


def grid(images: NDArray[np.float32], columns: int | None = None) -> NDArray[np.uint8]:
    """Lay images f32[N, C, H, W] out row by row: uint8[rows * (H + 2) + 2, columns * (W + 2) + 2, C]."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + _BORDER) + _BORDER, columns * (width + _BORDER) + _BORDER, channels)
    canvas = np.full(shape, _BACKGROUND, dtype=np.uint8)
    for index, image in enumerate(to_pixels(images)):
        top = _BORDER + index // columns * (height + _BORDER)
        left = _BORDER + index % columns * (width + _BORDER)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return canvas


def to_pixels(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map [-1, 1] to 0..255; NaN is 0."""
    clamped = np.clip(np.nan_to_num(images.astype(np.float32), nan=-1.0), np.float32(-1), np.float32(1))
    return ((clamped + np.float32(1)) * np.float32(127.5) + np.float32(0.5)).astype(np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8[H, W, C], C of 1 or 3, as a PNG file."""
    height, width, channels = pixels.shape
    if channels not in _COLOUR_TYPE:
        raise UnsupportedError(f"PNG: expected 1 or 3 channels, got {channels}; write a .npy instead")
    filtered = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each row starts with filter 0, "none"
    filtered[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
