"""The options that name a timestep schedule: `--steps` and `--sampler`."""

from collections.abc import Callable
from typing import Any

import click

MOST = 10**6  # steps, images or classes that the runtime's own program reads
SAMPLERS = ("ddim", "ddpm", "dpm-solver++")


def schedule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--steps` (50 by default) and `--sampler` (ddim by default)."""
    command = click.option(
        "--steps", type=click.IntRange(1, MOST), default=50, show_default=True, help="Sampler steps."
    )(command)
    return click.option("--sampler", type=click.Choice(SAMPLERS), default="ddim", show_default=True, help="Sampler.")(
        command
    )
