"""Kernels: what `select` gives for an op, its shapes and constants, and a target."""

from edgedm.targets.kernels.select import select
from edgedm.targets.kernels.spec import Kernel, TensorSpec

__all__ = ["Kernel", "TensorSpec", "select"]
