"""A small float UNet, images to train it on, and runs of a method with given options, for tests of recipes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import SMALL_UNET
from torch import nn

from edgedm.diffusion import NoiseSchedule
from edgedm.models import Checkpoint, CheckpointConfig, build
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.quant.api import method_options
from edgedm.quant.policy import Policy, policy_of
from edgedm.quant.uniform import ActivationTable
from edgedm.training.data import Batch, Batches
from edgedm.training.noising import add_noise
from edgedm.training.objective import Run
from edgedm.training.options import LoopOptions
from edgedm.training.qat import QuantizationAware
from edgedm.training.recipes import RECIPES
from edgedm.training.run import make_student, run_method

SIZE, NULL = 8, 10
UNET = SMALL_UNET
LOOP = LoopOptions(6, 1e-3, batch=4, save_every=2)


def small_base() -> Checkpoint:
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method="fp32",
        roles=FLOAT,
        noise_schedule={"num_train_timesteps": 1000},
        null_class=NULL,
    )
    return build(config, 0)


class Blobs(Batches):
    """Batches of smooth random images; no files, no data set."""

    def __init__(self, batch: int = 4) -> None:
        self.alphas = torch.from_numpy(NoiseSchedule().alphas_cumprod())
        self.batch = batch

    def draw(self, generator: torch.Generator) -> Batch:
        coarse = torch.randn(self.batch, 1, 2, 2, generator=generator)
        images = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear").clamp(-1, 1)
        noise = torch.randn(images.shape, generator=generator)
        t = torch.randint(1000, (self.batch,), generator=generator)
        labels = torch.randint(NULL + 1, (self.batch,), generator=generator)
        return Batch(images, noise, t, labels, add_noise(images, noise, t, self.alphas))


@dataclass(frozen=True)
class Begun:
    """A recipe's only stage, not trained yet."""

    run: Run
    objective: QuantizationAware

    def losses(self, iteration: int, seed: int = 0) -> dict[str, torch.Tensor]:
        return self.objective(iteration, torch.Generator().manual_seed(seed))

    def train(self, iterations: int, rate: float = 2e-3) -> list[float]:
        """Plain Adam; returns the losses, each on a batch of its own."""
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        optimiser, found = torch.optim.Adam(parameters, rate), []
        for iteration in range(iterations):
            losses = self.losses(iteration, iteration)
            losses["loss"].backward()
            optimiser.step()
            optimiser.zero_grad()
            found.append(float(losses["loss"].detach()))
        return found


def begin(method: str, policy: Policy | None = None, loop: LoopOptions = LOOP, **options: Any) -> Begun:
    torch.manual_seed(0)
    teacher, schedule = small_base().module.unet, NoiseSchedule()
    settings, batches = method_options(method, options), Blobs(loop.batch)
    student = make_student(teacher, schedule, method, policy or policy_of(method), settings)
    run = Run(student, teacher, batches, schedule, (1, SIZE, SIZE), NULL, settings, loop)
    (stage,) = RECIPES[method].stages(run)
    assert isinstance(stage.objective, QuantizationAware)
    return Begun(run, stage.objective)


def finish(method: str, folder: Path, loop: LoopOptions = LOOP, **options: Any) -> Any:
    """Train on the digits by the real loop."""
    return run_method(small_base(), method, folder, options=options, loop=loop)


class KillError(Exception):
    pass


def finish_after_a_kill(
    monkeypatch: pytest.MonkeyPatch, iteration: int, method: str, folder: Path, **options: Any
) -> Any:
    """As `finish`, but the first attempt dies at `iteration`."""
    forward = QuantizationAware.forward

    def dying(self: QuantizationAware, at: int, generator: torch.Generator) -> Any:
        if at == iteration:
            raise KillError
        return forward(self, at, generator)

    with monkeypatch.context() as patch:
        patch.setattr(QuantizationAware, "forward", dying)
        with pytest.raises(KillError):
            finish(method, folder, **options)
    return finish(method, folder, **options)


def started(model: nn.Module) -> bool:
    """Return whether every table of `model` is calibrated."""
    return all(bool(module.started) for module in model.modules() if isinstance(module, ActivationTable))
