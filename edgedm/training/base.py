"""Train a float base model: eps prediction, label dropout, EMA (Ho et al. 2020; Ho, Salimans 2022)."""

from pathlib import Path

import torch
from torch.nn import functional as F

from edgedm.diffusion import NoiseSchedule
from edgedm.models import Checkpoint, CheckpointConfig
from edgedm.models.attention import make_attention_explicit
from edgedm.models.config import Architecture
from edgedm.models.denoiser import Denoiser
from edgedm.models.presets import NULL_CLASS
from edgedm.models.roles import FLOAT
from edgedm.training.data import Batches, load_digits
from edgedm.training.loop import train
from edgedm.training.objective import Losses, Objective, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.processes import Processes


class EpsError(Objective):
    """The mean squared error of the predicted noise."""

    def __init__(self, student: Denoiser, batches: Batches) -> None:
        super().__init__(student)
        self.batches = batches

    def forward(self, iteration: int, generator: torch.Generator) -> Losses:
        """Return "loss"."""
        del iteration
        batch = self.batches.draw(generator)
        eps = self.student.record(batch.noisy, batch.timesteps, batch.labels)
        return {"loss": F.mse_loss(eps.float(), batch.noise)}


def train_base(architecture: dict[str, object], folder: Path, options: LoopOptions) -> Checkpoint:
    """Train a float `UNet2DModel` of the digits and return its average; resumes from `folder`."""
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=architecture),
        method="fp32",
        roles=FLOAT,
        noise_schedule=NoiseSchedule().model_dump(mode="json"),
        null_class=NULL_CLASS,
    )
    torch.manual_seed(options.seed)
    unet = config.float_unet()
    make_attention_explicit(unet)
    digits = load_digits(architecture["sample_size"])  # type: ignore[arg-type]  # an int, as diffusers takes it
    schedule = NoiseSchedule.from_config(config.noise_schedule)
    batches = Batches(digits.training(), schedule, options.batch, NULL_CLASS, options.label_dropout, Processes().device)
    trained, _ = train(Stage("base", EpsError(Denoiser(unet), batches), options), folder)
    assert isinstance(trained, Denoiser)
    return Checkpoint(config, trained.cpu().eval().requires_grad_(False))
