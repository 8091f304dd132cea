"""Several targets for one bundle: kernels for processors that can more and for those that can less."""

from collections.abc import Sequence

from edgedm.errors import UnsupportedError
from edgedm.targets.target import Target, resolve

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


def _machine(target: Target) -> tuple[str, ...]:
    """What one library can serve."""
    base = target.base
    return base.isa, base.triple, base.program_triple, base.library_triple


def _listed(target: Target) -> str:
    return ", ".join(sorted(target.features)) or "nothing"
