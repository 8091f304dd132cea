"""Names and channels that an output may have, which are those that the writer takes."""

import numpy as np
import pytest

from edgedm.errors import UnsupportedError
from edgedm.images import write_images
from edgedm.output import check_output


@pytest.mark.parametrize("name", ["a.npy", "a.png", "a.gif", "png", ""])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_the_check_allows_is_written_and_nothing_else(tmp_path, name, channels):
    path, images = tmp_path / name, np.zeros((2, channels, 3, 3), np.float32)
    if name == "a.npy" or (name == "a.png" and channels in (1, 3)):
        check_output(path, channels)
        assert write_images(path, images).exists()
        return
    with pytest.raises(UnsupportedError, match="channels, got" if name == "a.png" else r"\.png or \.npy"):
        check_output(path, channels)
    with pytest.raises(UnsupportedError):
        write_images(path, images)
