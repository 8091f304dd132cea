"""A bundle as the `unet` of a diffusers pipeline, which runs unchanged on the compiled model.

Any scheduler serves that calls the model once a step at whole timesteps: DDIM, DDPM, DPM-Solver++ and others. Those
that ask between timesteps (Euler's linspace) are refused, and so are those that ask twice at one (Heun, PNDM) where
the model carries state from step to step.

from diffusers import DDIMPipeline, DDIMScheduler
from edgedm.integrations.diffusers import BundleUNet

unet = BundleUNet("model.bundle")
images = DDIMPipeline(unet, DDIMScheduler.from_config(unet.noise_schedule))(num_inference_steps=50).images

It is given to a pipeline's constructor, or put into one that was loaded: `pipeline.unet = unet`. What `from_pretrained`
is given, diffusers wants to be a module of its own. A pipeline that changes its scheduler's config when it is made
(Stable Diffusion's does) gets the model's own back by `pipeline.scheduler = DDIMScheduler.from_config(...)`.
"""

import inspect
import os
from typing import Any

import numpy as np

from edgedm.errors import ToolchainError, UnsupportedError

try:
    import diffusers
    import torch
    from diffusers.configuration_utils import FrozenDict
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from torch import Tensor
except ModuleNotFoundError as error:
    raise ToolchainError(f"pipelines need the package `{error.name}`: pip install 'edgedm[train]'") from error

from edgedm.bundle import Bundle
from edgedm.diffusion import NoiseSchedule
from edgedm.runtime.opening import open_runner
from edgedm.runtime.runner import Floats


class BundleUNet:
    """Stands in for a diffusers UNet: `config`, `dtype`, `device` and calls are those of the model that was compiled.

    It runs on the CPU in float32, image after image; what comes from another device or dtype goes back there. A
    model that carries state from step to step keeps one for each image of a batch, and drops them where the timestep
    rises or the batch changes its size: a new trajectory. A timestep that is repeated is refused then, unless `reset`
    came in between: it may be a scheduler's second call or the next run of one step.
    Use it as a context manager or call `close`.
    """

    def __init__(self, bundle: Bundle | str | os.PathLike[str], threads: int = 1, variant: str | None = None) -> None:
        """Of several variants of a bundle's kernels `variant` runs, or the one that `open_runner` picks.

        Raises what that raises: UnsupportedError for a variant that is not there.
        """
        opened = bundle if isinstance(bundle, Bundle) else os.fspath(bundle)
        self._runner = open_runner(opened, threads, variant=variant)
        self._manifest = self._runner.manifest
        self.config = FrozenDict(_config(self._manifest.config, self._manifest.image_shape))
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self._states: list[dict[str, Floats] | None] = []
        self._timestep = -1

    @property
    def in_channels(self) -> int:
        """Channels of the sample."""
        return self._manifest.image_shape[0]

    @property
    def noise_schedule(self) -> dict[str, Any]:
        """The whole config of a scheduler for this model, as `from_config` of diffusers takes it.

        Diffusers' schedulers differ in their defaults, so what the checkpoint leaves open is there too.
        """
        given = self._manifest.config
        schedule = NoiseSchedule.from_config(
            {"prediction_type": given.get("prediction_type", "epsilon"), **given.get("noise_schedule", {})}
        )
        return schedule.model_dump(exclude_none=True)

    def __enter__(self) -> "BundleUNet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the bundle."""
        self._runner.close()
        self.reset()

    def to(self, *_: Any, **__: Any) -> "BundleUNet":
        """Stay on the CPU in float32, whatever a pipeline asks."""
        return self

    def eval(self) -> "BundleUNet":
        """Nothing: there is no training mode."""
        return self

    def reset(self) -> None:
        """Drop carried state: the next call begins a trajectory."""
        self._states, self._timestep = [], -1

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        *,
        return_dict: bool = True,
        **options: Any,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The model's output for `sample` [N, C, H, W], of the same shape, dtype and device.

        `timestep` is one number for all images. `class_labels` [N] and `encoder_hidden_states` [N, T, D] are as the
        model takes them, the text third whatever the architecture; without labels it is unconditional. Raises
        UnsupportedError for what the bundle cannot do, a repeated timestep of a model with carried state included.
        """
        asked = sorted(name for name, value in options.items() if value is not None)
        if asked:
            raise UnsupportedError(f"{asked[0]}: a bundle takes no such input; leave it out")
        at, count = _whole(timestep), sample.shape[0] if sample.ndim else 0
        if not count:
            raise UnsupportedError(f"sample: expected one or more images, got shape {[*sample.shape]}")
        begins = at > self._timestep or len(self._states) != count
        if not begins and at == self._timestep and self._manifest.states():
            raise UnsupportedError(
                f"timestep {at} again: this model carries state from step to step, so a scheduler may call it once a "
                "step (DDIM, DDPM, DPM-Solver++); for a new trajectory call reset() before"
            )
        for name, given in (("encoder_hidden_states", encoder_hidden_states), ("class_labels", class_labels)):
            if given is not None and (given.ndim == 0 or given.shape[0] != count):
                raise UnsupportedError(f"{name}: expected one for each of {count} images, got shape {[*given.shape]}")
        before: list[dict[str, Floats] | None] = [None] * count if begins else self._states
        after: list[dict[str, Floats] | None] = []
        inputs = sample.detach().to("cpu", torch.float32).numpy()
        outputs = np.empty_like(inputs)
        for i in range(count):
            condition = None if encoder_hidden_states is None else _array(encoder_hidden_states[i])
            label = None if class_labels is None else self._label(class_labels[i].item())
            outputs[i], following = self._runner.step(at, inputs[i], label, before[i], condition)
            after.append({name.removesuffix(".next"): array for name, array in following.items()})
        self._states, self._timestep = after, at  # only now: a call that was refused is no step
        result = torch.from_numpy(outputs).to(sample.device, sample.dtype)
        return UNet2DOutput(sample=result) if return_dict else (result,)

    def _label(self, label: float) -> int | None:
        if not float(label).is_integer():
            raise UnsupportedError(f"class_labels: expected whole numbers, got {label}")
        return None if label == self._manifest.null_class else int(label)


def _config(config: dict[str, Any], image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The arguments of the architecture's constructor, defaults included, and the sizes that were compiled."""
    architecture = config.get("architecture", {})
    kind = getattr(diffusers, str(architecture.get("class_name", "UNet2DModel")))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    channels, height, width = image_shape
    size = height if height == width else (height, width)
    return {**defaults, **architecture.get("config", {}), "in_channels": channels, "sample_size": size}


def _whole(timestep: Tensor | float | int) -> int:
    values = timestep.detach().flatten().tolist() if isinstance(timestep, Tensor) else [timestep]
    if not values or len(set(values)) > 1 or not float(values[0]).is_integer():
        raise UnsupportedError(f"timestep: expected one whole number for all images, got {values}")
    return int(values[0])


def _array(tensor: Tensor) -> Floats:
    return tensor.detach().to("cpu", torch.float32).numpy()
