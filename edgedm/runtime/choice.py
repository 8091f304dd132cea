"""Which variant of a bundle's kernels runs on this machine, natively or under an emulator."""

import os

from edgedm.bundle import Bundle
from edgedm.targets import command_for, resolve, runs_natively
from edgedm.targets.target import OVERRIDE


def choose(bundle: Bundle, variant: str | None = None) -> Bundle:
    """The bundle as `variant`, or as the one that EDGEDM_FEATURES names, or as the best that runs here.

    That is the most demanding that runs natively, or else the most demanding. Raises UnsupportedError for a variant
    that is not there.
    """
    if bundle.variant is not None and variant is None:
        return bundle
    wanted = variant or os.environ.get(OVERRIDE)
    if wanted:
        return bundle.of(wanted)
    names = bundle.manifest.variants()
    return bundle.of(next((name for name in names if runs_natively(resolve(name))), names[0]))


def is_local(bundle: Bundle) -> bool:
    """Whether the bundle's library can be loaded here; otherwise its programs run under an emulator, if at all."""
    target = resolve(choose(bundle).manifest.target.name)
    return target.base.system == "linux" and runs_natively(target)


def emulator_of(bundle: Bundle) -> tuple[str, ...]:
    """What to put before the bundle's programs to run them here: nothing, or an emulator; see `command_for`."""
    return command_for(resolve(choose(bundle).manifest.target.name))
