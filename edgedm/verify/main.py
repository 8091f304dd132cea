"""The verb `verify`: all levels on one bundle."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from edgedm import progress
from edgedm.bundle import Bundle, load
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.graph_io import load_graph
from edgedm.models import Checkpoint
from edgedm.outcome import Outcome
from edgedm.verify import LEVELS
from edgedm.verify.by_labels import ByLabels
from edgedm.verify.decoder_rows import with_decoder
from edgedm.verify.graphs import Graph
from edgedm.verify.layer_level import layer_level
from edgedm.verify.op_level import op_level
from edgedm.verify.pass_level import pass_level
from edgedm.verify.probe import Probe, open_probe
from edgedm.verify.report import Level, outcome_of
from edgedm.verify.run_level import Runner, Runs, check_counts, draw_runs, step_level, trajectory_level, visit_moments
from edgedm.verify.teacher import teacher_feeds
from edgedm.verify.torch_reference import TorchReference

MOMENTS = 8
"""Steps of a trajectory, first and last included, whose single steps are compared."""


def run(
    bundle_path: str | os.PathLike[str],
    against: Checkpoint | str | os.PathLike[str],
    levels: Sequence[str],
    steps: int,
    sampler: str,
    images: int,
    timesteps: int,
    sample: int | None,
) -> Outcome:
    """See `edgedm.verify`."""
    unknown = sorted(set(levels) - set(LEVELS))
    if unknown or not levels:
        raise UnsupportedError(f"levels: expected some of {', '.join(LEVELS)}, got {', '.join(unknown) or 'none'}")
    check_counts(timesteps, sample)
    bundle = load(bundle_path)
    checkpoint = os.fspath(against) if isinstance(against, os.PathLike) else against
    names: list[str] = [name for name in ("prepare", "step", "decoder") if name in bundle.manifest.inputs]
    graphs = {name: _graph(bundle, name) for name in names}
    with open_probe(bundle) as probe:
        examination = _Examination(probe, checkpoint, graphs, steps, sampler, images, timesteps, sample)
        found = [examination.level(name) for name in LEVELS if name in levels]
    named = checkpoint if isinstance(checkpoint, str) else "(a checkpoint in memory)"
    return outcome_of(found, str(bundle.path), named)


class _Examination:
    """What the levels share: the opened bundle, its graphs, and torch's runs, drawn once when first needed."""

    def __init__(
        self,
        probe: Probe,
        checkpoint: Checkpoint | str,
        graphs: Mapping[str, Graph],
        steps: int,
        sampler: str,
        images: int,
        timesteps: int,
        sample: int | None,
    ) -> None:
        self.checkpoint, self.graphs = checkpoint, graphs
        self.steps, self.sampler, self.images = steps, sampler, images
        self.timesteps, self.sample = timesteps, sample
        self.probe = probe

    def level(self, name: str) -> Level:
        """Run one level and time it."""
        progress.stage(f"level {name}")
        started = time.perf_counter()
        level = _LEVELS[name](self)
        return replace(level, seconds=time.perf_counter() - started)

    @cached_property
    def reference(self) -> TorchReference:
        """The checkpoint in torch; it must be the bundle's."""
        reference = TorchReference(self.checkpoint)
        _check_same_model(reference, self.probe.bundle)
        return reference

    @cached_property
    def runs(self) -> Runs:
        """Trajectories of the checkpoint in torch."""
        keep = sorted({int(step) for step in np.linspace(0, self.steps - 1, MOMENTS).round()})
        return draw_runs(self.reference, self.images, self.steps, self.sampler, keep)

    @cached_property
    def runner(self) -> Runner:
        """The bundle, drawing by labels."""
        shape = self.reference.condition_shape
        return self.probe if shape is None else ByLabels(self.probe, self.reference.null_class, shape)

    def op(self) -> Level:
        return op_level(self.probe, self.graphs, self.sample)

    def passes(self) -> Level:
        return pass_level(self.checkpoint, self.graphs, self.steps, self.sampler)

    def layer(self) -> Level:
        """Torch takes a step a moment, in float32 alone, whatever the other levels need of it."""
        moments, images = visit_moments(self.reference, self.steps, self.timesteps)
        fed = [
            (f"step {moment.step}, image {image}", teacher_feeds(self.graphs, moment, image))
            for moment, image in zip(moments, images, strict=True)
        ]
        return layer_level(self.probe, self.graphs, fed, self.sample)

    def step(self) -> Level:
        states = [port.name for port in self.probe.manifest.states()]
        level = step_level(self.runner, states, self.reference, self.runs)
        return with_decoder(level, self.probe, self.reference, self.runs.float32.images[-1])

    def trajectory(self) -> Level:
        return trajectory_level(self.runner, self.reference, self.runs, self.steps, self.sampler, self.probe.sample)


_LEVELS: dict[str, Callable[[_Examination], Level]] = {
    "op": _Examination.op,
    "pass": _Examination.passes,
    "layer": _Examination.layer,
    "step": _Examination.step,
    "trajectory": _Examination.trajectory,
}


def _graph(bundle: Bundle, name: str) -> Graph:
    path = bundle.path / "golden" / f"{name}.onnx"
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file; verify needs the lowered graphs: compile the bundle again")
    return Graph(load_graph(path))


def _check_same_model(reference: TorchReference, bundle: Bundle) -> None:
    own, theirs = bundle.manifest.config, reference.config.model_dump(mode="json")
    different = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    if different:
        raise InvalidModelError(
            f"{bundle.path} was not made from this checkpoint: {', '.join(different)} differ; "
            "verify against the checkpoint that was exported"
        )
