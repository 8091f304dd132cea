"""`edgedm run-on`: a bundle's self-test and speed on another machine."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.cli.schedule import MOST
from edgedm.cli.signature import signed_bundles
from edgedm.errors import InvalidModelError
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    click.echo(f"{outcome.details['target']} on {outcome.details['host']} ({outcome.details['machine']})")
    show_figures(outcome)
    if "left_behind" in outcome.details:
        click.echo(f"could not be removed there: {outcome.details['left_behind']}", err=True)


@click.command(name="run-on", short_help="self-test and speed of a bundle on another machine")
@click.argument("protocol", type=click.Choice(["ssh", "adb"]))
@click.argument("host")
@click.argument("bundle", type=click.Path())
@click.option("--threads", default="1,2", show_default=True, help="Thread counts, separated by commas.")
@click.option("--steps", type=click.IntRange(1, MOST), help="Steps of the timed images; the bundle's own number.")
@click.option("--images", type=click.IntRange(1, MOST), default=5, show_default=True, help="Timed images.")
@click.option("--variant", help="Run these kernels of a bundle that has several; the best that run there, without.")
@verb(_show)
@signed_bundles
def command(
    protocol: str, host: str, bundle: str, threads: str, steps: int | None, images: int, variant: str | None
) -> Outcome:
    """Copy BUNDLE to HOST by PROTOCOL, run its self-test and time it there, and bring the figures back.

    HOST is what ssh takes, or a serial number of `adb devices`. Nothing is installed; what was copied is removed. The
    figures have the names that they have in `edgedm bench`. EDGEDM_FEATURES of this machine says nothing there.
    """
    from edgedm.runtime.remote import run_on

    try:
        counts = tuple(int(count) for count in threads.split(","))
    except ValueError:
        raise InvalidModelError(f"--threads: expected numbers like 1,2, got {threads!r}") from None
    return run_on(protocol, host, bundle, threads=counts, steps=steps, images=images, variant=variant)
