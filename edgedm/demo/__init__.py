"""The whole way on built-in models, ending in one HTML page.

demo(output)       the verb: export, optimise, compile, verify, draw and time the zoo's low-bit models
render(outcome)    its summary on the terminal
"""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from edgedm.callable_module import make_callable
from edgedm.outcome import Outcome

make_callable(__name__)

__all__ = ["MODELS", "demo", "render"]

MODELS = ("zoo:digits-bidm-w1a1",)


def demo(output: str | os.PathLike[str] = "demo-out", models: Sequence[str] = MODELS) -> Outcome:
    """Take each of `models` (low-bit checkpoints of the digits model) the whole way and write the report.

    `output` receives the graphs, the bundles, `images.png` (full precision, then per model PyTorch and native, with
    the same noise) and the self-contained page `index.html`. `ok` is False if parity does not hold for one of them.
    """
    from edgedm.demo.run import run

    return run(Path(output), models)


def render(outcome: Outcome) -> None:
    """Print what the demo found and where its page is."""
    for table in outcome.details["tables"]:
        for name, what, value in table:
            click.echo(f"{name:<28} {what:<32} {value:>16}")
    for path in outcome.details["written"]:
        click.echo(f"wrote {path}")
