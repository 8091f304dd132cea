"""Parity: hold a bundle or a graph against the torch checkpoint that it was made from.

verify(artefact, against)  the verb: levels op, pass, layer, step and trajectory; of a graph weights for op and pass
render(outcome)            its table on the terminal
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgedm.callable_module import make_callable
from edgedm.outcome import Outcome

if TYPE_CHECKING:
    from edgedm.models import Checkpoint

make_callable(__name__)

__all__ = ["GRAPH_LEVELS", "LEVELS", "render", "verify"]

LEVELS = ("op", "pass", "layer", "step", "trajectory")
GRAPH_LEVELS = ("weights", "layer", "step", "trajectory")


def verify(
    artefact: str | os.PathLike[str],
    against: "Checkpoint | str | os.PathLike[str]",
    *,
    levels: Sequence[str] | None = None,
    steps: int = 50,
    sampler: str = "ddim",
    images: int = 10,
    timesteps: int = 4,
    sample: int | None = None,
) -> Outcome:
    """Hold a bundle, or a graph (a file that ends in .onnx, exported or optimised, under ONNX Runtime), against the
    checkpoint `against` (a folder, `zoo:NAME`, or one in memory).

    | level | what is held against what |
    |---|---|
    | op | every kernel against its op's ONNX function, on inputs that try it |
    | pass | the graph before against after, for every pass, on a fresh export of `against` |
    | layer | every kernel call on the reference's own inputs: decisions, accumulators, rounding |
    | step | single steps: our error against torch float64 beside torch float32's |
    | trajectory | the same for `images` whole trajectories of `steps` steps from the same noise |

    Of a graph:

    | level | what is held against what |
    |---|---|
    | weights | integers, zero points, steps and tables of every low-bit layer against the checkpoint's, bit for bit |
    | layer | every low-bit layer alone, on torch's inputs: codes and products against torch float64 |
    | step | every step of the schedule, as above |
    | trajectory | as above |

    Level layer takes `timesteps` of the schedule's steps, spread evenly; `steps` of them are all. For a big model
    `sample` takes that many kernels at level op, and that many layers (of a bundle: calls of each graph) at each
    timestep of level layer, other ones at each, in place of all; the figures `left_out` say how many it never took.

    `levels` are some of `LEVELS` or, of a graph, of `GRAPH_LEVELS`; all by default. `ok` is False if any level is
    off; `details["first_failure"]` then says where first, what was expected and what came. Figures are
    `<level>.<name>`; `details["levels"]` holds a row for everything that was compared. Raises `InvalidModelError`
    for a file or checkpoint that is broken or of another model, `UnsupportedError` for an unknown level, a
    schedule outside the trained timesteps, fewer than the ten images that a fault takes to show, or a sample of none.
    """
    if os.fspath(artefact).endswith(".onnx"):
        from edgedm.verify.graph_main import run as run_graph

        return run_graph(artefact, against, levels or GRAPH_LEVELS, steps, sampler, images, timesteps, sample)
    from edgedm.verify.main import run

    return run(artefact, against, levels or LEVELS, steps, sampler, images, timesteps, sample)


def render(outcome: Outcome, every_row: bool = False) -> None:
    """Print the outcome: a line a level, the rows that are off (or every row), the verdict."""
    from edgedm.verify.report import render as show

    show(outcome, every_row)
