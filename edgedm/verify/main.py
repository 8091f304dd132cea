"""The verb `verify`: all levels on one bundle."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property

import numpy as np

from edgedm import progress
from edgedm.bundle import load
from edgedm.bundle.manifest import GraphName
from edgedm.errors import InvalidModelError
from edgedm.models import Checkpoint
from edgedm.runtime.choice import choose
from edgedm.verify import LEVELS
from edgedm.verify.bisect import Dumped, check_same_config
from edgedm.verify.blame import blame_bundle
from edgedm.verify.by_labels import ByLabels
from edgedm.verify.coins import undecided
from edgedm.verify.decoder_rows import with_decoder
from edgedm.verify.distribution_level import distribution_level, fits
from edgedm.verify.evidence import Evidence
from edgedm.verify.facts import bundle_facts, bundle_sizes, step_speed
from edgedm.verify.finish import Finished, finish
from edgedm.verify.graphs import Graph
from edgedm.verify.layer_level import Moment, layer_level
from edgedm.verify.lowered import load_lowered
from edgedm.verify.op_level import op_level
from edgedm.verify.pass_level import pass_level
from edgedm.verify.probe import Probe, open_probe
from edgedm.verify.report import Level, Row
from edgedm.verify.request import LEAST_IMAGES, Request
from edgedm.verify.run_level import Runs, draw_runs, step_level, trajectory_level, visit_moments
from edgedm.verify.sampler_rows import lanes_rows, sampler_rows
from edgedm.verify.teacher import teacher_feeds
from edgedm.verify.torch_reference import TorchReference

MOMENTS = LEAST_IMAGES
"""Steps of a trajectory whose single steps are compared: one image gives its label enough runs for a test."""
_WITHOUT_REFERENCE = frozenset({"op", "pass"})  # the levels that don't run the checkpoint in torch


def run(
    bundle_path: str | os.PathLike[str],
    against: Checkpoint | str | os.PathLike[str],
    request: Request,
    variant: str | None = None,
) -> Finished:
    """See `edgedm.verify`."""
    names = request.chosen(LEVELS, "a bundle")
    bundle = choose(load(bundle_path), variant)
    if not isinstance(bundle.manifest.config.get("method"), str):
        raise InvalidModelError(f"{bundle.path}: its config names no method; compile the bundle again")
    if request.levels is None and not fits(bundle.manifest.config, request):
        names.remove("distribution")
    if request.chain is not None:
        Dumped(request.chain).check_made_from(bundle.manifest.config)
    checkpoint = os.fspath(against) if isinstance(against, os.PathLike) else against
    names_of_graphs: tuple[GraphName, ...] = ("prepare", "step", "decoder")
    graphs: dict[str, Graph] = {
        name: load_lowered(bundle, name) for name in names_of_graphs if name in bundle.manifest.inputs
    }
    with open_probe(bundle) as probe:
        examination = Examination(probe, checkpoint, graphs, request)
        if not _WITHOUT_REFERENCE.issuperset(names):
            examination.check_checkpoint()  # refused now, not after the levels that don't ask
        found = [examination.level(name) for name in names]
        examination.illustrate()

        def blame(level: Level, row: Row) -> str:
            return blame_bundle(examination, level, row)

        return finish(
            found,
            examination.tables,
            examination.evidence,
            os.fspath(bundle_path),
            checkpoint,
            request,
            blame,
            LEVELS,
            str(probe.manifest.config["method"]),
        )


class Examination:
    """What the levels share: the opened bundle, its graphs, and torch's runs, drawn once when first needed."""

    def __init__(
        self, probe: Probe, checkpoint: Checkpoint | str, graphs: Mapping[str, Graph], request: Request
    ) -> None:
        self.probe, self.checkpoint, self.graphs, self.request = probe, checkpoint, graphs, request
        self.tables = request.tables(str(probe.manifest.config["method"]))
        self.evidence = Evidence()

    def level(self, name: str) -> Level:
        """Run one level and time it."""
        progress.stage(f"level {name}")
        started = time.perf_counter()
        level = _LEVELS[name](self)
        return replace(level, seconds=time.perf_counter() - started)

    def check_checkpoint(self) -> None:
        """Raise `InvalidModelError` unless the checkpoint's config is the bundle's."""
        _ = self.reference

    @cached_property
    def reference(self) -> TorchReference:
        """The checkpoint in torch; it must be the bundle's."""
        reference = TorchReference(self.checkpoint)
        check_same_config(self.probe.bundle.path, self.probe.manifest.config, reference.config.model_dump(mode="json"))
        return reference

    @cached_property
    def runs(self) -> Runs:
        """Trajectories of the checkpoint in torch."""
        asked = self.request
        keep = self.compared([int(each) for each in self.reference.schedule.timesteps(asked.steps, asked.sampler)])
        return draw_runs(self.reference, asked.images, asked.steps, asked.sampler, keep)

    @cached_property
    def runner(self) -> "Probe | ByLabels":
        """The bundle, drawing by labels."""
        shape = self.reference.condition_shape
        return self.probe if shape is None else ByLabels(self.probe, self.reference.null_class, shape)

    def op(self) -> Level:
        """Every kernel on trials."""
        return op_level(self.probe, self.graphs, self.request.sample)

    def passes(self) -> Level:
        """The pipeline once more."""
        return pass_level(self.checkpoint, self.graphs, self.request.steps, self.request.sampler)

    def layer(self) -> Level:
        """Torch takes a step a moment, in float32 alone, whatever the other levels need of it."""
        asked = self.request
        moments, images = visit_moments(self.reference, asked.steps, asked.visits())
        fed = [
            Moment(moment.step, image, teacher_feeds(self.graphs, moment, image))
            for moment, image in zip(moments, images, strict=True)
        ]
        return layer_level(self.probe, self.graphs, fed, asked.layers_a_visit)

    def step(self) -> Level:
        """Single steps, and the decoder of a latent model."""
        states, most = [port.name for port in self.probe.manifest.states()], self.tables.step.ratio
        level = step_level(self.runner, states, self.reference, self.runs, self.undecided, most)
        return with_decoder(level, self.probe, self.reference, self.runs.float32.images[-1], most)

    def compared(self, timesteps: Sequence[int]) -> list[int]:
        """The steps of a schedule whose single steps are compared: decided ones, as far as there are so many."""
        coin = cache(self.undecided)
        chosen: set[int] = set()
        for wanted in np.linspace(0, len(timesteps) - 1, min(MOMENTS, len(timesteps))).round():
            nearest = [
                step for _, step in sorted((abs(i - wanted), i) for i in range(len(timesteps)) if i not in chosen)
            ]
            chosen.add(next((step for step in nearest if not coin(timesteps[step])), nearest[0]))
        return sorted(chosen)

    def undecided(self, timestep: int) -> bool:
        """Whether rounding may take a decision that depends on the timestep alone either way."""
        name = next(port.name for port in self.probe.manifest.inputs["prepare"] if port.role == "timestep")
        return undecided(self.graphs["prepare"], name, timestep)

    def trajectory(self) -> Level:
        """Whole trajectories, and the sampler that ships."""
        asked = self.request
        level = trajectory_level(
            self.runner,
            self.reference,
            self.runs,
            asked.steps,
            asked.sampler,
            self.probe.sample,
            self.tables.trajectory.ratio,
            self.evidence,
            self.probe.decode if self.reference.decodes else None,
        )
        rows = sampler_rows(self.runner, self.probe, self.reference)
        rows += lanes_rows(self.probe.bundle, self.runner, self.probe, self.reference)
        return replace(level, rows=(*level.rows, *rows))

    def distribution(self) -> Level:
        """Samples as sets."""
        return distribution_level(self.runner, self.probe, self.reference, self.request, self.tables.distribution)

    def illustrate(self) -> None:
        """Measure what only gates and reports ask for."""
        size, speed = self.tables.size, self.tables.speed
        if self.request.illustrated or size != type(size)():
            self.evidence.sizes = bundle_sizes(self.probe.bundle)
        if self.request.illustrated or speed != type(speed)():
            self.evidence.speed = step_speed(self.probe, self.runner, self.reference)
        if self.request.illustrated:
            self.evidence.facts = bundle_facts(self.probe.bundle, self.checkpoint)
            if self.reference.decodes:
                self.evidence.decoded(lambda x: self.reference.decode(32, x), self.probe.decode)


_LEVELS: dict[str, Callable[[Examination], Level]] = {
    "op": Examination.op,
    "pass": Examination.passes,
    "layer": Examination.layer,
    "step": Examination.step,
    "trajectory": Examination.trajectory,
    "distribution": Examination.distribution,
}
