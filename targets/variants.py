"""Several targets for one bundle: kernels for processors that can more and for those that can less."""

from collections.abc import Sequence

from edgedm.errors import UnsupportedError
from edgedm.targets.level import Level
from edgedm.targets.target import LEVELS, Target, resolve

MOST = 32  # the runtime marks them by the bits of a word


def resolve_variants(names: str | Sequence[str]) -> list[Target]:
    """Return the targets that `names` (a sequence, or text with commas) means, the most demanding first.

    That is the one with the most features. Raises UnsupportedError, as `resolve` does, and for targets of different
    machines or ones that no machine can tell apart.
    """
    parts = [name for text in ([names] if isinstance(names, str) else names) for name in text.split(",")]
    targets = sorted((resolve(name.strip()) for name in parts), key=lambda each: -len(each.features))
    if not 1 <= len(targets) <= MOST:
        raise UnsupportedError(f"targets: expected 1..{MOST}, got {len(targets)}")
    first = targets[0]
    for number, target in enumerate(targets):
        if _machine(target) != _machine(first):
            raise UnsupportedError(
                f"targets {first.name} and {target.name} are different machines: one bundle holds variants of one"
            )
        for other in targets[:number]:
            if other.features == target.features:
                raise UnsupportedError(
                    f"targets {other.name} and {target.name} need the same of a processor ({_listed(target)}), which "
                    "could not choose between them: name one of the two"
                )
    return targets


def common_ground(targets: Sequence[Target]) -> Target:
    """The target of what all of these run: the least level of their machine, with no feature that it can do without."""
    levels = [each for each in LEVELS.values() if _machine_of(each) == _machine(targets[0])]
    least = min(levels, key=lambda level: len(level.features))
    return resolve("+".join([least.name, *sorted(least.required)]))


def _machine(target: Target) -> tuple[str, ...]:
    """What one library can serve."""
    return _machine_of(target.base)


def _machine_of(base: Level) -> tuple[str, ...]:
    return base.isa, base.triple, base.program_triple, base.library_triple


def _listed(target: Target) -> str:
    return ", ".join(sorted(target.features)) or "nothing"
