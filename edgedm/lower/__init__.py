"""From a deployed ONNX graph to kernels, a memory plan and a generated C runtime."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedm.lower.compiler import compile

__all__ = ["compile"]


def __getattr__(name: str) -> Any:
    if name != "compile":
        raise AttributeError(f"module 'edgedm.lower' has no attribute {name!r}")
    from edgedm.lower.compiler import compile as verb

    return verb
