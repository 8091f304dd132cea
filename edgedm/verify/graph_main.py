"""The verb `verify` on a graph: ONNX Runtime, every optimisation off, against PyTorch."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from edgedm import progress
from edgedm.models import Checkpoint
from edgedm.verify import GRAPH_LEVELS
from edgedm.verify.bisect import Dumped, check_same_config
from edgedm.verify.blame import blame_graph
from edgedm.verify.contents_level import contents_level
from edgedm.verify.decoder_rows import with_decoder
from edgedm.verify.distribution_level import distribution_level, fits
from edgedm.verify.evidence import Evidence
from edgedm.verify.facts import graph_facts, graph_sizes
from edgedm.verify.finish import Finished, finish
from edgedm.verify.graph_layers import graph_layer_level
from edgedm.verify.report import Level, Row
from edgedm.verify.request import Request
from edgedm.verify.run_level import Runs, draw_runs, step_level, trajectory_level, visit_moments
from edgedm.verify.torch_reference import TorchReference
from edgedm.verify.whole_graph import GraphRunner, WholeGraph


def run(path: str | os.PathLike[str], against: Checkpoint | str | os.PathLike[str], request: Request) -> Finished:
    """See `edgedm.verify`."""
    names = request.chosen(GRAPH_LEVELS, "a graph")
    graph = WholeGraph(path)
    if request.levels is None and not fits(graph.info.config, request):
        names.remove("distribution")
    checkpoint = os.fspath(against) if isinstance(against, os.PathLike) else against
    reference = TorchReference(checkpoint)
    check_same_config(path, graph.info.config, reference.config.model_dump(mode="json"))
    if request.chain is not None:
        Dumped(request.chain).check_made_from(graph.info.config)
    examination = Examination(graph, checkpoint, reference, request)
    found = [examination.level(name) for name in names]
    examination.illustrate()

    def blame(_level: Level, row: Row) -> str:
        return blame_graph(examination, row)

    method = reference.config.method
    return finish(
        found,
        examination.tables,
        examination.evidence,
        os.fspath(path),
        checkpoint,
        request,
        blame,
        GRAPH_LEVELS,
        method,
    )


class Examination:
    """What the levels share: the graph, and torch's runs, drawn once when first needed."""

    def __init__(
        self, graph: WholeGraph, checkpoint: Checkpoint | str, reference: TorchReference, request: Request
    ) -> None:
        self.graph, self.checkpoint, self.reference, self.request = graph, checkpoint, reference, request
        self.tables = request.tables(reference.config.method)
        self.evidence = Evidence()
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
        asked = self.request
        return draw_runs(self.reference, asked.images, asked.steps, asked.sampler, range(asked.steps))

    def weights(self) -> Level:
        """What is stored, bit for bit."""
        return contents_level(self.graph, self.reference.modules[32], self.reference.schedule.num_train_timesteps)

    def layer(self) -> Level:
        """Every low-bit layer alone."""
        asked = self.request
        moments, images = visit_moments(self.reference, asked.steps, asked.visits())
        fed = list(zip(moments, images, strict=True))
        return graph_layer_level(self.graph, self.reference, fed, asked.layers_a_visit)

    def step(self) -> Level:
        """Single steps, and the decoder of a latent model."""
        most, undecided = self.tables.step.ratio, self.runner.undecided
        level = step_level(self.runner, self.graph.states, self.reference, self.runs, undecided, most)
        return with_decoder(level, self.runner, self.reference, self.runs.float32.images[-1], most)

    def trajectory(self) -> Level:
        """Whole trajectories."""
        asked = self.request
        return trajectory_level(
            self.runner,
            self.reference,
            self.runs,
            asked.steps,
            asked.sampler,
            most=self.tables.trajectory.ratio,
            seen=self.evidence,
            decode=self.runner.decode if self.reference.decodes else None,
        )

    def distribution(self) -> Level:
        """Samples as sets."""
        return distribution_level(self.runner, self.runner, self.reference, self.request, self.tables.distribution)

    def illustrate(self) -> None:
        """Measure what only reports ask for."""
        if self.request.illustrated:
            self.evidence.facts = graph_facts(self.graph.path, self.checkpoint)
            self.evidence.sizes = graph_sizes(self.graph)
            if self.reference.decodes:
                self.evidence.decoded(lambda x: self.reference.decode(32, x), self.runner.decode)


_LEVELS: dict[str, Callable[[Examination], Level]] = {
    "weights": Examination.weights,
    "layer": Examination.layer,
    "step": Examination.step,
    "trajectory": Examination.trajectory,
    "distribution": Examination.distribution,
}
