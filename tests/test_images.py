"""The PNG and .npy writers."""

import io

import numpy as np
import pytest

from edgedm.errors import UnsupportedError
from edgedm.images import encode_png, grid, to_pixels, write_images


def test_pixels_clamp_and_round():
    values = np.array([-2, -1, 0, 1, 2, np.nan], dtype=np.float32)
    assert to_pixels(values).tolist() == [0, 0, 128, 255, 255, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_decodes_to_the_pixels_that_went_in(channels):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow comes with diffusers (extra train)")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    decoded = np.asarray(image_module.open(io.BytesIO(encode_png(pixels))))
    assert np.array_equal(decoded.reshape(pixels.shape), pixels)


def test_the_grid_holds_every_image_in_reading_order():
    images = np.stack([np.full((1, 2, 2), value, dtype=np.float32) for value in (-1, 0, 1)])
    canvas = grid(images, columns=2)[..., 0]
    assert canvas.shape == (10, 10)
    assert canvas[2, 2] == 0
    assert canvas[2, 6] == 128
    assert canvas[6, 2] == 255


def test_an_array_is_written_as_it_is(tmp_path):
    images = np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(np.float32)
    assert np.array_equal(np.load(write_images(tmp_path / "a.npy", images)), images)


def test_another_suffix_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UnsupportedError, match=r"\.png or \.npy"):
        write_images(tmp_path / "a.jpg", np.zeros((1, 1, 2, 2), dtype=np.float32))
    assert list(tmp_path.iterdir()) == []
