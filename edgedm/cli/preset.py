"""The options that choose the form of a `preset:NAME`: `--method`, `--policy` and `--option`."""

from collections.abc import Callable
from typing import Any

import click


def preset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the three; `edgedm.models.preset_reference.with_method` writes them into the checkpoint's text."""
    options = [
        click.option("--method", metavar="NAME", help="Of a preset:NAME: the method that makes it low-bit."),
        click.option("--policy", metavar="NAME", help="Of a preset: which published choice of layers and bits."),
        click.option(
            "--option",
            "options",
            multiple=True,
            metavar="NAME=VALUE",
            help="Of a preset: the method's own, or narrow=N for an N-th of the channels (2, 4, 8 or 16).",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
