"""The verb `optimize`: run the pipeline on a graph file, dump and check on the way, write what `compile` reads."""

import os
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgedm import progress
from edgedm.atomic_files import write_together
from edgedm.diffusion import SAMPLERS
from edgedm.errors import InvalidModelError, ParityError, UnsupportedError
from edgedm.export.decoder_file import decoder_path, load_decoder
from edgedm.export.graph_io import (
    GraphInfo,
    graph_info,
    labels,
    load_graph,
    noise_schedule,
    save_graph,
    serialize_graph,
)
from edgedm.golden_file import read_golden
from edgedm.outcome import Outcome
from edgedm.passes.base import GraphPass, Report
from edgedm.passes.check import Checker, random_feeds
from edgedm.passes.decoder import optimize_decoder
from edgedm.passes.editing import Array, dims
from edgedm.passes.pipeline import Schedule, run_passes
from edgedm.passes.regions import Side
from edgedm.passes.split_prepare import PREPARE

CHECKED_STEPS = 2
"""Golden steps that `--check` runs: the first, which has no carried state yet, and the last."""

FilePath = str | os.PathLike[str]


def optimize(
    graph_path: FilePath,
    output: FilePath,
    dump: FilePath | None = None,
    check: bool = False,
    steps: int = 50,
    sampler: str = "ddim",
) -> Outcome:
    """Run the passes on an exported graph; write the step graph, NAME.prepare.onnx and NAME.golden.safetensors;
    of a latent model NAME.decoder.onnx too.

    `dump` is a folder for the graph after every pass, numbered; `check` runs the graph before and after every pass
    and fails (`ok` false, nothing written) at the first that breaks the model; `steps` and `sampler` name the
    default schedule, against which the timestep tables are checked. Figures: nodes after, rewrites and refusals of
    every pass, bytes, seconds; `details` has the refusals' reasons, and under FoldWeightDilation the channels that
    went into each norm and each quantiser. Raises InvalidModelError for a broken or already optimised file and
    UnsupportedError for a schedule that the tables don't cover.
    """
    started, output = time.perf_counter(), Path(output)
    if output.suffix != ".onnx":
        raise InvalidModelError(f"{output}: expected a file name that ends in .onnx")
    model = load_graph(graph_path)
    info = graph_info(model)
    decoder = load_decoder(graph_path, info.config)
    if info.level != "exported":
        raise InvalidModelError(f"{graph_path}: level {info.level!r}; expected a graph from `edgedm export`")
    schedule = _schedule(model, steps, sampler)
    golden = Path(graph_path).with_suffix(".golden.safetensors")
    checker = Checker(_feeds(model, info, golden, schedule)) if check else None
    figures: dict[str, float] = {"nodes.exported": float(len(model.graph))}
    refusals: dict[str, list[str]] = {}
    details: dict[str, Any] = {"refusals": refusals}
    watch = _Watch(model, dump, checker)

    def after_each(number: int, each: GraphPass, report: Report) -> None:
        figures[f"nodes.{each.name}"] = float(len(model.graph))
        figures[f"rewritten.{each.name}"] = float(len(report.rewritten))
        figures[f"refused.{each.name}"] = float(len(report.refusals))
        figures.update({f"{each.name}.{name}": float(value) for name, value in report.notes.items()})
        if report.refusals:
            refusals[each.name] = [str(refusal) for refusal in report.refusals]
        if report.details:
            details[each.name] = report.details
        watch.after(number, each, model)

    try:
        run_passes(model, schedule, after_each)
        if decoder is not None:
            progress.stage("the decoder")
            optimize_decoder(decoder, checker, lambda number, name: watch.save_decoder(decoder, number, name))
    except ParityError as error:
        details |= {"check": _verdicts(checker), "broken": str(error)}
        return Outcome(False, figures | {"seconds": time.perf_counter() - started}, details)
    step, prepare = serialize_graph(model), serialize_graph(model.meta[PREPARE])
    figures |= {"bytes.step": float(len(step)), "bytes.prepare": float(len(prepare))}
    files = {output: step, output.with_suffix(".prepare.onnx"): prepare}
    if decoder is not None:
        files[decoder_path(output)] = serialize_graph(decoder)
        figures |= {
            "nodes.decoder": float(len(decoder.graph)),
            "bytes.decoder": float(len(files[decoder_path(output)])),
        }
    if golden.is_file():
        files[output.with_suffix(".golden.safetensors")] = golden.read_bytes()
    layers = Path(graph_path).with_suffix(".layers.safetensors")
    if layers.is_file():
        files[output.with_suffix(".layers.safetensors")] = layers.read_bytes()
    write_together(files)
    figures["seconds"] = time.perf_counter() - started
    details |= {"check": _verdicts(checker), "written": [str(path) for path in files]}
    return Outcome(True, figures, details)


class _Watch:
    """What happens between two passes: dumps, and checks against the graph before."""

    def __init__(self, model: ir.Model, dump: FilePath | None, checker: Checker | None) -> None:
        self.dump, self.checker = None if dump is None else Path(dump), checker
        self.before = Side(model) if checker is not None else None
        self._save(model, "00-exported")

    def after(self, number: int, each: GraphPass, model: ir.Model) -> None:
        """Dump the graph, and its prepare graph once there is one; check the pass."""
        self._save(model, f"{number:02}-{each.name}")
        if PREPARE in model.meta:
            self._save(model.meta[PREPARE], f"{number:02}-{each.name}.prepare")
        if self.checker is not None and self.before is not None:
            progress.stage(f"checking {each.name}")
            self.before = self.checker.check(each, self.before, model)

    def save_decoder(self, decoder: ir.Model, number: int, name: str) -> None:
        """Dump the decoder after a pass of its own."""
        self._save(decoder, f"{number:02}-{name}.decoder")

    def _save(self, model: ir.Model, name: str) -> None:
        if self.dump is not None:
            save_graph(model, self.dump / f"{name}.onnx")


def _schedule(model: ir.Model, steps: int, sampler: str) -> Schedule:
    if sampler not in SAMPLERS:
        raise UnsupportedError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    noise = noise_schedule(model)
    return Schedule(noise.timesteps(steps, sampler), noise.num_train_timesteps)


def _feeds(model: ir.Model, info: GraphInfo, golden: Path, schedule: Schedule) -> list[dict[str, Array]]:
    """Inputs for the check: recorded steps of the golden data, or seeded random ones without such a file."""
    if not golden.is_file():
        timestep = 0 if schedule.timesteps is None else int(schedule.timesteps[len(schedule.timesteps) // 2])
        return [random_feeds(model, info.inputs, timestep)]
    recorded = read_golden(golden)
    if not recorded.steps:
        raise InvalidModelError(f"{golden}: records no step; export the checkpoint again")
    chosen = [recorded.steps[index] for index in _spread(len(recorded.steps), CHECKED_STEPS)]
    shapes = {value.name or "": dims(value) for value in model.graph.inputs}
    return [recorded.inputs(step, shapes, labels(info.config)) for step in chosen]


def _spread(length: int, count: int) -> list[int]:
    """Up to `count` indices spread from the first to the last of `length` items."""
    if length <= count:
        return list(range(length))
    return [index * (length - 1) // (count - 1) for index in range(count)]


def _verdicts(checker: Checker | None) -> list[dict[str, Any]]:
    return [] if checker is None else [vars(verdict) for verdict in checker.verdicts]
