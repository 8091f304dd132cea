"""What edgedm compiles for: instruction sets, their features and the kernels that each op gets on them."""

from edgedm.callable_module import make_callable
from edgedm.targets.running import available, command_for, runs_natively, targets
from edgedm.targets.target import Target, resolve
from edgedm.targets.variants import common_ground, resolve_variants

__all__ = [
    "Target",
    "available",
    "command_for",
    "common_ground",
    "resolve",
    "resolve_variants",
    "runs_natively",
    "targets",
]

make_callable(__name__)
