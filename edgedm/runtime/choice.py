"""Which variant of a bundle's kernels runs on this machine, natively or under an emulator."""

import contextlib
import os

from edgedm.bundle import Bundle
from edgedm.errors import UnsupportedError
from edgedm.targets import command_for, resolve, runs_natively
from edgedm.targets.target import OVERRIDE


def choose(bundle: Bundle, variant: str | None = None) -> Bundle:
    """The bundle as `variant`, or as the one that EDGEDM_FEATURES names, or as the best that runs here.

    That is the most demanding that runs natively, or else the most demanding. EDGEDM_FEATURES says nothing of a bundle
    for another kind of machine than its own. Raises UnsupportedError for a variant that is not there.
    """
    if variant is not None:
        return as_variant(bundle, variant)
    if bundle.variant is not None:
        return bundle
    wanted, names = os.environ.get(OVERRIDE), bundle.manifest.variants()
    if wanted and not _is_of_another_machine(wanted, names[0]):
        return as_variant(bundle, wanted)
    return bundle.of(next((name for name in names if runs_natively(resolve(name))), names[0]))


def as_variant(bundle: Bundle, name: str) -> Bundle:
    """The bundle as the variant that `name` means: features in any order, and without those that others bring along.

    Raises UnsupportedError for one that is not there.
    """
    names = bundle.manifest.variants()
    known = name if name in names else _canonical(name)
    return bundle.of(known if known in names else name)


def _canonical(name: str) -> str | None:
    with contextlib.suppress(UnsupportedError):
        return resolve(name).name
    return None


def _is_of_another_machine(name: str, variant: str) -> bool:
    if _canonical(name) is None:
        return False
    named, built = resolve(name).base, resolve(variant).base
    return (named.isa, named.system) != (built.isa, built.system)


def is_local(bundle: Bundle) -> bool:
    """Whether the bundle's library can be loaded here; otherwise its programs run under an emulator, if at all."""
    target = resolve(choose(bundle).manifest.target.name)
    return target.base.system == "linux" and runs_natively(target)


def emulator_of(bundle: Bundle) -> tuple[str, ...]:
    """What to put before the bundle's programs to run them here: nothing, or an emulator; see `command_for`."""
    return command_for(resolve(choose(bundle).manifest.target.name))
