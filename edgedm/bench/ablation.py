"""What each graph pass gives: a model compiled with the pipeline, and with the pipeline minus one pass, side by side.

All variants of a model are compiled first and then timed in turns in one run, at one thread. A pass that other passes
build on takes their effect with it: its row says what is lost without it, not what it does alone.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from edgedm import progress
from edgedm.bench.bound import step_needs
from edgedm.bench.step import middle_step
from edgedm.bench.timing import each_call
from edgedm.errors import EdgedmError
from edgedm.export.graph_io import load_graph, noise_schedule, save_graph
from edgedm.lower import compile as compile_graph
from edgedm.passes.base import Report
from edgedm.passes.pipeline import PIPELINE, Schedule
from edgedm.passes.split_prepare import PREPARE, SplitPrepare
from edgedm.runtime.local import LocalRunner

_STEPS = 50  # of the schedule that tables are checked against

_REASON = 160  # characters of an error that a table has room for

Run = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """The pipeline without `left_out` ("" for the whole): what came of it, or the reason why it cannot be compiled.

    `nodes` are those of the deployed step graph, `calls` its kernel calls, `moved` the bytes of all their operands
    that are no constants, `seconds` the first decile of a step. `rewritten` says how often the pass left out applies.
    """

    left_out: str
    rewritten: int
    nodes: int = 0
    calls: int = 0
    moved: int = 0
    weights: int = 0
    seconds: float = 0.0
    reason: str = ""


def ablate(graph: Path, folder: Path, seconds: float = 2.0) -> list[Variant]:
    """Compile the exported `graph` with the whole pipeline and without each pass that applies to it; time them all.

    Bundles are left in `folder`. The first variant is the whole pipeline.
    """
    applied = _run_passes(graph, None, folder / "whole.onnx")
    variants = [Variant("", 0), *(Variant(name, count) for name, count in applied.items() if count)]
    compiled = [_compile(graph, variant, folder) for variant in progress.track(variants, graph.stem)]
    return _time(compiled, folder, seconds)


def table(variants: Sequence[Variant]) -> str:
    """Variants as a table in Markdown: absolute for the whole pipeline, and what is lost without each pass."""
    whole = variants[0]
    lines = [
        "| without | rewrites | nodes | kernel calls | MB moved | weights, MB | ms a step | times the whole |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in variants:
        head = f"| {each.left_out or '(nothing: the whole pipeline)'} | {each.rewritten or ''} "
        if each.reason:
            lines.append(f"{head}| {each.nodes or ''} | cannot be compiled: {each.reason} | | | | |")
            continue
        sizes = f"| {each.nodes} | {each.calls} | {each.moved / 1e6:.2f} | {each.weights / 1e6:.2f} "
        lines.append(f"{head}{sizes}| {each.seconds * 1e3:.3f} | {each.seconds / whole.seconds:.2f} |")
    return "\n".join(lines)


def _run_passes(graph: Path, left_out: str | None, output: Path) -> dict[str, int]:
    """Optimise without one pass; write the pair that `compile` reads. Returns how often each pass rewrote."""
    model = load_graph(graph)
    noise = noise_schedule(model)
    schedule = Schedule(noise.timesteps(_STEPS), noise.num_train_timesteps)
    counts: dict[str, int] = {}
    for make in PIPELINE:
        each = make(schedule)
        if each.name != left_out:
            report = each(model)
            assert isinstance(report, Report)
            counts[each.name] = max(len(report.rewritten), int(report.modified))
    save_graph(model, output)
    if PREPARE in model.meta:
        save_graph(model.meta[PREPARE], output.with_suffix(".prepare.onnx"))
    return counts


def _compile(graph: Path, variant: Variant, folder: Path) -> Variant:
    if variant.left_out == SplitPrepare.__name__:
        return replace(variant, reason="the runtime needs the two graphs that it makes")
    name = variant.left_out or "whole"
    deployed, bundle = folder / f"{name}.onnx", folder / f"{name}.bundle"
    try:
        _run_passes(graph, variant.left_out, deployed)
        compile_graph(deployed, bundle)
    except EdgedmError as error:
        shutil.rmtree(bundle, ignore_errors=True)
        reason = str(error).replace(str(folder), "").replace("|", "\\|")
        return replace(variant, reason=reason[:_REASON])
    nodes = len(load_graph(deployed).graph)
    with LocalRunner(bundle) as runner:
        needs = step_needs(runner.manifest)
        moved = sum(need.moved for need in needs)
        return Variant(variant.left_out, variant.rewritten, nodes, len(needs), moved, runner.manifest.weights_bytes)


def _time(variants: Sequence[Variant], folder: Path, seconds: float) -> list[Variant]:
    with ExitStack() as stack:
        engines = {
            each.left_out or "whole": _step(
                stack.enter_context(LocalRunner(folder / f"{each.left_out or 'whole'}.bundle"))
            )
            for each in variants
            if not each.reason
        }
        timing = each_call(engines, seconds)
    return [each if each.reason else replace(each, seconds=timing[each.left_out or "whole"].low) for each in variants]


def _step(runner: LocalRunner) -> Run:
    number, x = middle_step(runner)
    return lambda: runner.run_step(number, x)
