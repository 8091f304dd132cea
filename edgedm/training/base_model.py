"""The full-precision model that training starts from."""

import os

from edgedm.models import Checkpoint, load


def load_base(path: str | os.PathLike[str]) -> Checkpoint:
    """Load `zoo:NAME` or a checkpoint folder; `InvalidModelError` where that fails."""
    return load(path)
