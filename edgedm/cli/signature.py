"""The option `--require-signature` of every verb that loads a bundle."""

import functools
from collections.abc import Callable
from typing import Any

import click

from edgedm.outcome import Outcome


def signed_bundles(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Add `--require-signature KEY`: while the verb runs, a bundle that is not signed with KEY is refused."""

    @click.option(
        "--require-signature",
        metavar="KEY",
        type=click.Path(dir_okay=False),
        help="Refuse a bundle that is not signed with this public key (PEM); see `edgedm sign`.",
    )
    @functools.wraps(run)
    def body(*args: Any, require_signature: str | None, **kwargs: Any) -> Outcome:
        from edgedm.bundle.signature import require_signature as required

        with required(require_signature):
            return run(*args, **kwargs)

    return body
