"""Parity: hold a bundle or a graph against the torch checkpoint that it was made from.

verify(artefact, against)  the verb: levels op, pass, layer, step, trajectory and distribution; of a graph weights for
                           op and pass
render(outcome)            its table on the terminal
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from edgedm.callable_module import make_callable
from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome

if TYPE_CHECKING:
    from edgedm.models import Checkpoint
    from edgedm.verify.gate import Gate

make_callable(__name__)

__all__ = ["GRAPH_LEVELS", "LEVELS", "render", "verify"]

LEVELS = ("op", "pass", "layer", "step", "trajectory", "distribution")
GRAPH_LEVELS = ("weights", "layer", "step", "trajectory", "distribution")

Place = str | os.PathLike[str]


def verify(
    artefact: Place,
    against: "Checkpoint | Place",
    *,
    levels: Sequence[str] | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    images: int | None = None,
    timesteps: int | None = None,
    sample: int | None = None,
    gate: "Gate | Place | None" = None,
    features: Place | None = None,
    chain: Place | None = None,
    bisect: bool = True,
    html: Place | None = None,
    markdown: Place | None = None,
    junit: Place | None = None,
    variant: str | None = None,
) -> Outcome:
    """Hold a bundle, or a graph (a file that ends in .onnx, exported or optimised, under ONNX Runtime), against the
    checkpoint `against` (a folder, `zoo:NAME`, or one in memory).

    | level | what is held against what |
    |---|---|
    | op | every kernel against its op's ONNX function, on inputs that try it |
    | pass | the graph before against after, for every pass, on a fresh export of `against` |
    | layer | every kernel call on the reference's own inputs: decisions, accumulators, rounding, constants |
    | step | single steps: our error against torch float64 beside torch float32's |
    | trajectory | the same for `images` whole trajectories of `steps` steps from the same noise; the sampler itself |
    | distribution | torch's samples against ours as sets: Frechet distance, precision and recall of their features |

    Of a graph:

    | level | what is held against what |
    |---|---|
    | weights | integers, zero points, steps and tables of every low-bit layer against the checkpoint's, bit for bit |
    | layer | every low-bit layer alone, on torch's inputs: codes and products against torch float64 |
    | step | every step of the schedule, as above |
    | trajectory | as above |
    | distribution | as above |

    Level layer visits every step of the schedule, with so many layers at each that all come up at about ten of them;
    or `timesteps` of the steps, spread evenly, with all layers. For a big model `sample` takes that many kernels at
    level op, and that many layers (of a bundle: calls of each graph) at each step of level layer, other ones at each,
    in place of all; the figures `left_out` say how many it never took. Level distribution takes minutes and runs where
    it is named, by `levels`, by a table of the gate file, or by `features`, a network (ONNX) that judges the images.

    `gate` is a gate file, which sets thresholds and may name any of the arguments above (`edgedm.verify.gate`);
    arguments go before what it says. `levels` are some of `LEVELS` or, of a graph, of `GRAPH_LEVELS`. `ok` is False if
    any level that the gate requires is off, or any threshold; `details["first_failure"]` then says where first, what
    was expected and what came, and what introduced it: the pass, by bisection over a pipeline that is run again on
    `against` (or over the graphs in the folder `chain`, from `edgedm optimize --dump`), or the kernel, or the runtime.
    `bisect` False leaves out what takes another run of the pipeline.
    Figures are `<level>.<name>`; `details["levels"]` holds a row for everything that was compared.

    Of a bundle with several variants of its kernels `variant` is examined; None: the one that runs here.

    `html`, `markdown` and `junit` are files to write: a page with images, plots and tables, the same as text, and what
    a CI shows. Raises `InvalidModelError` for a file or checkpoint that is broken or of another model,
    `UnsupportedError` for an unknown level or variant, a schedule outside the trained timesteps, fewer than the ten
    images that a fault takes to show, a sample of none, or images for which there are no features.
    """
    from edgedm.atomic import check_file_place
    from edgedm.verify.request import request_of

    places = [place for place in (html, markdown, junit) if place is not None]
    for place in places:
        check_file_place(place)
    if len({os.path.realpath(place) for place in places}) < len(places):
        named = ", ".join(os.fspath(place) for place in places)
        raise UnsupportedError(f"reports: expected a file each, got {named}; one would replace another")
    request = request_of(
        levels,
        steps,
        sampler,
        images,
        timesteps,
        sample,
        features,
        chain,
        bisect,
        gate,
        illustrated=html is not None or markdown is not None,
    )
    if request.chain is not None:
        from edgedm.verify.bisect import Dumped

        Dumped(request.chain)  # refused now, not when a failure asks for it
    if os.fspath(artefact).endswith(".onnx"):
        if variant is not None:
            raise UnsupportedError(f"variant: {os.fspath(artefact)} is a graph, which has none")
        from edgedm.verify.graph_main import run as run_graph

        finished = run_graph(artefact, against, request)
    else:
        from edgedm.verify.main import run

        finished = run(artefact, against, request, variant)
    outcome = finished.outcome
    written: dict[str, bytes] = {}
    if html is not None or markdown is not None:
        from edgedm.report import html_page, markdown_page

        if html is not None:
            written[os.fspath(html)] = html_page(outcome, finished.evidence).encode()
        if markdown is not None:
            written[os.fspath(markdown)] = markdown_page(outcome, finished.evidence).encode()
    if junit is not None:
        from edgedm.verify.junit import junit as as_junit

        written[os.fspath(junit)] = as_junit(outcome)
    write_reports(written)
    if written:
        outcome.details["written"] = list(written)
    return outcome


def write_reports(reports: Mapping[str, bytes]) -> None:
    """Write each file whole; all of them are on the disk before the first one appears."""
    from edgedm.atomic import atomic_file

    with ExitStack() as stack:
        for path, data in reports.items():
            stack.enter_context(atomic_file(path)).write_bytes(data)


def render(outcome: Outcome, every_row: bool = False) -> None:
    """Print the outcome: a line a level, the rows that are off (or every row), the verdict."""
    from edgedm.verify.report import render as show

    show(outcome, every_row)
