"""`edgedm compile`: deployed graph -> kernels and a generated C runtime."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.cli.schedule import schedule_options
from edgedm.errors import readable
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    show_figures(outcome)
    for each in outcome.details["slow"]:
        click.echo(f"slow: {readable(each)}")


@click.command(name="compile", short_help="TVM -> kernels + generated C runtime")
@click.argument("graph", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="The bundle to write.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("host",),
    show_default=True,
    help="See `edgedm targets`; several, repeated or by commas, become variants of one bundle.",
)
@schedule_options
@click.option("--no-cache", is_flag=True, help="Compile even if the same files were compiled before.")
@verb(_show)
def command(graph: str, output: str, targets: tuple[str, ...], steps: int, sampler: str, no_cache: bool) -> Outcome:
    """Compile GRAPH (from `edgedm optimize`) into a bundle: objects, weights, C runtime, `bin/edgedm-sample`.

    `--steps` and `--sampler` set the bundle's default schedule; any other can be chosen when sampling. Bundles are kept
    for a second compile in `~/.cache/edgedm/bundles`, or in the folder that EDGEDM_BUNDLE_CACHE names.
    """
    from edgedm.lower import compile

    return compile(graph, output, target=targets, steps=steps, sampler=sampler, cache=not no_cache)
