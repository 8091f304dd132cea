"""The text of a `preset:...`, without anything heavy: the command line composes it from its options."""

from collections.abc import Sequence

from edgedm.errors import UnsupportedError

PREFIX = "preset:"


def is_preset(text: str) -> bool:
    """Return whether `text` names a preset rather than a folder."""
    return text.startswith(PREFIX)


def with_method(checkpoint: str, method: str | None, policy: str | None = None, options: Sequence[str] = ()) -> str:
    """Return `checkpoint` with the method, policy and options (each NAME=VALUE) of a command line in its text.

    Raises `UnsupportedError` where they are given for something else than a preset.
    """
    given = [*([f"method={method}"] if method else []), *([f"policy={policy}"] if policy else []), *options]
    if given and not is_preset(checkpoint):
        raise UnsupportedError(
            f"{checkpoint}: --method, --policy and --option choose the form of a preset:NAME; a checkpoint has its own"
        )
    return ",".join([checkpoint, *given])
