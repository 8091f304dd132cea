"""Training: data, losses, loops, quality figures; `quantize` is the public verb."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedm.training.api import quantize

__all__ = ["quantize"]


def __getattr__(name: str) -> Any:
    if name != "quantize":
        raise AttributeError(f"module 'edgedm.training' has no attribute {name!r}")
    from edgedm.training.api import quantize

    return quantize
