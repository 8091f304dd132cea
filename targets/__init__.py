"""What edgedm compiles for: instruction sets, their features and the kernels that each op gets on them."""

from edgedm.callable_module import make_callable
from edgedm.targets.target import Target, available, resolve, targets

__all__ = ["Target", "available", "resolve", "targets"]

make_callable(__name__)
