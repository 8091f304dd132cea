"""Architectures, layer roles, checkpoints and the zoo."""

from edgedm.models.checkpoint import Checkpoint, build, load, locate, save, zoo
from edgedm.models.config import CheckpointConfig

__all__ = ["Checkpoint", "CheckpointConfig", "build", "load", "locate", "save", "zoo"]
