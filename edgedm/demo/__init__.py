"""The whole way on built-in models, ending in one HTML page.

demo(output)       the verb: export, optimise, compile, verify, draw and time a built-in low-bit model
render(outcome)    its summary on the terminal
"""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from edgedm.callable_module import make_callable
from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome

make_callable(__name__)

__all__ = ["METHODS", "demo", "render"]

METHODS = {
    "bidm": "zoo:digits-bidm-w1a1",
    "binarydm": "zoo:digits-binarydm-w1a4",
    "efficientdm": "zoo:digits-efficientdm-w4a4",
    "dilatequant": "zoo:digits-dilatequant-w4a4",
}


def demo(output: str | os.PathLike[str] = "demo-out", methods: Sequence[str] = ("bidm",)) -> Outcome:
    """Take the built-in model of each of `methods` the whole way and write the report.

    `output` receives the graphs, the bundles, `images.png` (full precision, then per model PyTorch and the native
    program, with the same noise) and the self-contained page `index.html`. `ok` is False if parity does not hold for
    one of them. Raises `UnsupportedError` for an unknown method.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise UnsupportedError(f"method: expected some of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}")
    from edgedm.demo.run import run

    return run(Path(output), [METHODS[method] for method in methods])


def render(outcome: Outcome) -> None:
    """Print what the demo found and where its page is."""
    for table in outcome.details["tables"]:
        for name, what, value in table:
            click.echo(f"{name:<28} {what:<32} {value:>16}")
    for path in outcome.details["written"]:
        click.echo(f"wrote {path}")
