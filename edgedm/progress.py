"""Progress on standard error for anything that takes longer than a second; off unless the command line turns it on."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import click

Item = TypeVar("Item")

enabled = False  # set by the command line; a library stays silent


def track(items: Iterable[Item], label: str, length: int | None = None) -> Iterator[Item]:
    """Yield `items` behind a progress bar with count and time left (nothing is drawn where stderr is no terminal)."""
    if not enabled:
        yield from items
        return
    with click.progressbar(items, label=label, length=length, show_pos=True, file=sys.stderr) as bar:
        yield from bar


def stage(text: str) -> None:
    """Say in one line what is being done now."""
    if enabled:
        click.echo(text, err=True)
