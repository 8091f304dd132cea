"""`edgedm optimize`: the target-independent graph passes."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.cli.schedule import schedule_options
from edgedm.outcome import Outcome


@click.command(name="optimize", short_help="graph passes, target-independent")
@click.argument("graph", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The ONNX file to write.")
@click.option("--dump", type=click.Path(file_okay=False), help="Write the graph after every pass here.")
@click.option("--check", is_flag=True, help="Run the graph before and after every pass and compare.")
@schedule_options
@verb(show_figures)
def command(graph: str, output: str, dump: str | None, check: bool, steps: int, sampler: str) -> Outcome:
    """Rewrite GRAPH (from `edgedm export`) into the integer and fused ops that kernels exist for.

    Writes the step graph to OUTPUT and, beside it, NAME.prepare.onnx: what depends only on timestep and
    conditions, run once a schedule.
    """
    from edgedm.passes import optimize

    return optimize(graph, output, dump=dump, check=check, steps=steps, sampler=sampler)
