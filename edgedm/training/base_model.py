"""The full-precision model that training starts from."""

import os

from edgedm.errors import UnsupportedError
from edgedm.models import Checkpoint, load
from edgedm.models.diffusers_dir import is_diffusers, load_diffusers


def load_base(path: str | os.PathLike[str], null_class: int | None = None) -> Checkpoint:
    """Load `zoo:NAME`, a checkpoint folder, or a local folder of diffusers.

    `null_class` is the label that means "none", asked for where a folder of diffusers has a model with classes: it does
    not say. Raises `InvalidModelError` for missing or broken files, `UnsupportedError` for another kind of model and
    for a null class where there is nothing to choose.
    """
    if is_diffusers(path):
        return load_diffusers(path, null_class)
    checkpoint = load(path)
    if null_class not in (None, checkpoint.config.null_class):
        raise UnsupportedError(f"null_class: {path} has {checkpoint.config.null_class}, got {null_class}")
    return checkpoint
