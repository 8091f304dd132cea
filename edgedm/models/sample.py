"""Sample from a checkpoint with PyTorch: the slow twin of the generated runtime, with the same noise."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedm import progress
from edgedm.conditions import read_conditions
from edgedm.diffusion import NoiseSchedule
from edgedm.diffusion import sample as draw_one
from edgedm.errors import UnsupportedError
from edgedm.images import check_latent, read_start, write_images
from edgedm.models import CheckpointConfig, load
from edgedm.models.denoiser import Denoiser
from edgedm.outcome import Outcome
from edgedm.output import check_output


class Predictor:
    """The model's output for one trajectory of one condition; carries the state from step to step."""

    def __init__(
        self, module: Denoiser, label: int, height: int, width: int, condition: NDArray[np.float32] | None = None
    ) -> None:
        self.module, self.label = module, torch.tensor([label])
        self.condition = None if condition is None else torch.from_numpy(condition)[None]
        self.state: list[Tensor] = module.zero_state(height, width) if module.taps else []
        self.has_state = 0.0

    def __call__(self, x: NDArray[np.float32], timestep: int, _step: int) -> NDArray[np.float32]:
        """Return the output f32[C, H, W] for x f32[C, H, W] and advance the state."""
        inputs = [torch.from_numpy(np.ascontiguousarray(x))[None], torch.tensor([timestep])]
        if self.module.conditional:
            inputs.append(self.label)
        if self.condition is not None:
            inputs.append(self.condition)
        if self.state:
            inputs += [torch.tensor([self.has_state]), *self.state]
        with torch.inference_mode():
            eps, *self.state = self.module(*inputs)
        self.has_state = 1.0
        return np.asarray(eps[0].numpy())


def sample_checkpoint(
    checkpoint: str,
    output: str,
    *,
    n: int,
    steps: int,
    sampler: str,
    eta: float,
    seed: int,
    label: int | None,
    guidance: float,
    condition: str | None,
    negative: str | None,
    latent: bool,
    start: str | None,
    strength: float,
    threads: int,
) -> Outcome:
    """Draw `n` images with PyTorch and write them; see `edgedm.sample`."""
    loaded = load(checkpoint)
    module, config = loaded.module.eval(), loaded.config
    check_latent(checkpoint, loaded.decoder is not None, latent, output)
    wanted, unwanted = read_conditions(checkpoint, module.condition, condition, negative)
    null = _null_class(checkpoint, config, label, guidance)
    schedule = NoiseSchedule.from_config(config.noise_schedule)
    shape = config.image_shape
    decoder = None if latent else loaded.decoder
    check_output(output, shape[0] if decoder is None else decoder.decoder.conv_out.out_channels)
    given = read_start(start, n, shape)
    torch.set_num_threads(threads)
    images = []
    for image in progress.track(range(n), "images"):
        conditional = Predictor(module, null if label is None else label, *shape[1:], wanted)
        unconditional = Predictor(module, null, *shape[1:], unwanted) if guidance != 1.0 else None
        numbers = (steps, sampler, eta, seed, image)
        begin = (None if given is None else given[image], strength)
        images.append(draw_one(conditional, schedule, shape, *numbers, unconditional, guidance, *begin))
    drawn = np.stack(images)
    if decoder is not None:
        with torch.inference_mode():
            decoded = [decoder(torch.from_numpy(each)[None])[0] for each in progress.track(drawn, "decoding")]
        drawn = torch.stack(decoded).numpy()
    path = write_images(output, drawn)
    return Outcome(True, {"images": float(n), "steps": float(steps)}, {"written": [str(path)]})


def _null_class(checkpoint: str, config: CheckpointConfig, label: int | None, guidance: float) -> int:
    """Return the label that means none (0 for a model that takes none), after checking `label` and `guidance`."""
    null = config.null_class
    if null is None:
        if label is not None or (guidance != 1.0 and config.condition_tokens is None):
            raise UnsupportedError(
                f"label, guidance: {checkpoint} is unconditional; expected none and 1, got {label} and {guidance}"
            )
        return 0
    if label is not None and not 0 <= label < null:
        raise UnsupportedError(f"label: {checkpoint} knows classes 0..{null - 1}, got {label}")
    return null
