"""What edgedm compiles for: instruction sets, their features and the kernels that each op gets on them."""

from edgedm.targets.target import Target, available, resolve, targets

__all__ = ["Target", "available", "resolve", "targets"]
