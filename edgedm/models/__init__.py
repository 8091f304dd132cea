"""Architectures, layer roles, checkpoints and the zoo.

Members are imported when first used: `edgedm.quant` needs the roles, and the checkpoint format needs `edgedm.quant`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedm.models.checkpoint import Checkpoint, build, load, locate, save, zoo
    from edgedm.models.config import CheckpointConfig
    from edgedm.models.in_memory import from_module

__all__ = ["Checkpoint", "CheckpointConfig", "build", "from_module", "load", "locate", "save", "zoo"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgedm.models' has no attribute {name!r}")
    part = {"CheckpointConfig": "config", "from_module": "in_memory"}.get(name, "checkpoint")
    return getattr(importlib.import_module(f"edgedm.models.{part}"), name)
