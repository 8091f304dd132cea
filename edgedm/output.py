"""Whether images can be written under a name, asked before drawing them takes long."""

import os
from pathlib import Path

from edgedm.errors import UnsupportedError

_PNG_CHANNELS = (1, 3)  # greyscale, RGB


def check_output(path: str | os.PathLike[str], channels: int) -> None:
    """Raise `UnsupportedError` unless `edgedm.images.write_images` takes `path` for images of so many channels."""
    suffix = Path(path).suffix
    if suffix not in (".npy", ".png"):
        raise UnsupportedError(f"{path}: images are written as .png or .npy, got suffix {suffix!r}")
    if suffix == ".png" and channels not in _PNG_CHANNELS:
        raise UnsupportedError(f"{path}: PNG: expected 1 or 3 channels, got {channels}; write a .npy instead")
