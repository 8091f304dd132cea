"""The full-precision model that training starts from."""

import os

from edgedm.models import Checkpoint, load
from edgedm.models.diffusers_dir import is_diffusers, load_diffusers


def load_base(path: str | os.PathLike[str]) -> Checkpoint:
    """Load `zoo:NAME`, a checkpoint folder, or a local folder of diffusers with a `UNet2DModel` without classes.

    Raises `InvalidModelError` for missing or broken files, `UnsupportedError` for another kind of model.
    """
    return load_diffusers(path) if is_diffusers(path) else load(path)
