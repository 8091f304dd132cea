"""Graph passes: from the exported graph to the deployed one, target-independent.

optimize(graph, output)     the verb: all passes on a file
PIPELINE, run_passes        the ordered list, and running it on a model in memory
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedm.passes.driver import optimize
    from edgedm.passes.pipeline import PIPELINE, Schedule, run_passes

_MEMBERS = {"optimize": "driver", "PIPELINE": "pipeline", "Schedule": "pipeline", "run_passes": "pipeline"}

__all__ = ["PIPELINE", "Schedule", "optimize", "run_passes"]


def __getattr__(name: str) -> Any:
    if name not in _MEMBERS:
        raise AttributeError(f"module 'edgedm.passes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgedm.passes.{_MEMBERS[name]}"), name)
