"""The verb `verify` on a graph: ONNX Runtime, every optimisation off, against PyTorch."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from edgedm import progress
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import Checkpoint
from edgedm.outcome import Outcome
from edgedm.verify import GRAPH_LEVELS
from edgedm.verify.contents_level import contents_level
from edgedm.verify.decoder_rows import with_decoder
from edgedm.verify.graph_layers import graph_layer_level
from edgedm.verify.report import Level, outcome_of
from edgedm.verify.run_level import Runs, check_counts, draw_runs, step_level, trajectory_level, visit_moments
from edgedm.verify.torch_reference import TorchReference
from edgedm.verify.whole_graph import GraphRunner, WholeGraph


def run(
    path: str | os.PathLike[str],
    against: Checkpoint | str | os.PathLike[str],
    levels: Sequence[str],
    steps: int,
    sampler: str,
    images: int,
    timesteps: int,
    sample: int | None,
) -> Outcome:
    """See `edgedm.verify`."""
    unknown = sorted(set(levels) - set(GRAPH_LEVELS))
    if unknown:
        raise UnsupportedError(
            f"levels of a graph: expected some of {', '.join(GRAPH_LEVELS)}, got {', '.join(unknown)}"
        )
    check_counts(timesteps, sample)
    graph = WholeGraph(path)
    checkpoint = os.fspath(against) if isinstance(against, os.PathLike) else against
    reference = TorchReference(checkpoint)
    _check_same_model(reference, graph, Path(path))
    examination = _Examination(graph, reference, steps, sampler, images, timesteps, sample)
    found = [examination.level(name) for name in GRAPH_LEVELS if name in levels]
    named = checkpoint if isinstance(checkpoint, str) else "(a checkpoint in memory)"
    return outcome_of(found, os.fspath(path), named)


class _Examination:
    """What the levels share: the graph, and torch's runs, drawn once when first needed."""

    def __init__(
        self,
        graph: WholeGraph,
        reference: TorchReference,
        steps: int,
        sampler: str,
        images: int,
        timesteps: int,
        sample: int | None,
    ) -> None:
        self.graph, self.reference = graph, reference
        self.timesteps, self.sample = timesteps, sample
        self.steps, self.sampler, self.images = steps, sampler, images
        self.runner = GraphRunner(graph, reference.null_class)

    def level(self, name: str) -> Level:
        """Run one level and time it."""
        progress.stage(f"level {name}")
        started = time.perf_counter()
        level = _LEVELS[name](self)
        return replace(level, seconds=time.perf_counter() - started)

    @cached_property
    def runs(self) -> Runs:
        """Trajectories of the checkpoint in torch; every step is kept."""
        return draw_runs(self.reference, self.images, self.steps, self.sampler, range(self.steps))

    def weights(self) -> Level:
        return contents_level(self.graph, self.reference.modules[32], self.reference.schedule.num_train_timesteps)

    def layer(self) -> Level:
        moments, images = visit_moments(self.reference, self.steps, self.timesteps)
        fed = list(zip(moments, images, strict=True))
        return graph_layer_level(self.graph, self.reference, fed, self.sample)

    def step(self) -> Level:
        level = step_level(self.runner, self.graph.states, self.reference, self.runs, self.runner.undecided)
        return with_decoder(level, self.runner, self.reference, self.runs.float32.images[-1])

    def trajectory(self) -> Level:
        return trajectory_level(self.runner, self.reference, self.runs, self.steps, self.sampler)


_LEVELS: dict[str, Callable[[_Examination], Level]] = {
    "weights": _Examination.weights,
    "layer": _Examination.layer,
    "step": _Examination.step,
    "trajectory": _Examination.trajectory,
}


def _check_same_model(reference: TorchReference, graph: WholeGraph, path: Path) -> None:
    own, theirs = graph.info.config, reference.config.model_dump(mode="json")
    different = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    if different:
        raise InvalidModelError(
            f"{path} was not made from this checkpoint: {', '.join(different)} differ; "
            "verify against the checkpoint that was exported"
        )
