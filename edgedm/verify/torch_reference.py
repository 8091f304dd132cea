"""The checkpoint in PyTorch, in float32 and in float64 with the same decisions taken in float64.

The float64 twin keeps one thing in float32: the sinusoid of the timestep, which diffusers computes in float32
whatever the module's type. Its phase reaches 999 radians, so a float64 sinusoid would differ by 1e-5 and hide
everything else behind an error that all float32 implementations share.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from edgedm.diffusion import NoiseSchedule
from edgedm.diffusion.sampler import trajectory
from edgedm.models import Checkpoint, load
from edgedm.models.sample import Predictor

Array = NDArray[np.floating[Any]]


class _Widen(TorchFunctionMode):
    """Lets float32 constants (unpacked signs) meet float64 activations: both become float64, exactly."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(item, torch.Tensor) and item.dtype == torch.float64 for item in args):
            args = tuple(
                item.double() if isinstance(item, torch.Tensor) and item.dtype == torch.float32 else item
                for item in args
            )
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Moment:
    """What a model is given at one step of a trajectory, as float32, and at which step."""

    step: int
    timestep: int
    label: int
    x: NDArray[np.float32]  # [C, H, W]
    state: tuple[NDArray[np.float32], ...]
    has_state: bool


class TorchReference:
    """A checkpoint's module in both precisions, with its noise schedule; one image at a time."""

    def __init__(self, checkpoint: Checkpoint | str) -> None:
        loaded = load(checkpoint) if isinstance(checkpoint, str) else checkpoint
        self.config = loaded.config
        self.null_class = int(loaded.config.null_class)
        self.schedule = NoiseSchedule.from_config(loaded.config.noise_schedule)
        config = loaded.config.architecture.config
        self.shape = (int(config["in_channels"]), int(config["sample_size"]), int(config["sample_size"]))
        self.modules = {32: loaded.module.eval(), 64: copy.deepcopy(loaded.module).double().eval()}

    def trajectory(
        self, bits: int, label: int, seed: int, image: int, steps: int, sampler: str, keep: tuple[int, ...] = ()
    ) -> tuple[list[Array], list[Moment]]:
        """Free-running sampling in float`bits`: the steps + 1 images, and the moments of the steps in `keep`."""
        predictor = Predictor(self.modules[bits], label, *self.shape[1:])
        moments = []

        def predict(x: Any, timestep: int, step: int) -> Any:
            if step in keep:
                state = tuple(tensor.numpy().astype(np.float32) for tensor in predictor.state)
                x32 = np.asarray(x, np.float32).copy()
                moments.append(Moment(step, timestep, label, x32, state, predictor.has_state > 0))
            return predictor(x, timestep, step)

        with self._arithmetic():
            images = list(trajectory(predict, self.schedule, self.shape, steps, sampler, 0.0, seed, image))
        return [np.array(x) for x in images], moments

    def predict(self, bits: int, moment: Moment) -> tuple[Array, list[Array]]:
        """The model's output at one moment and the state it leaves."""
        predictor = Predictor(self.modules[bits], moment.label, *self.shape[1:])
        if moment.has_state:
            predictor.state = [torch.from_numpy(array.copy()) for array in moment.state]
            predictor.has_state = 1.0
        with self._arithmetic():
            output = predictor(moment.x, moment.timestep, moment.step)
        return np.array(output), [tensor.numpy() for tensor in predictor.state]

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """One thread: sums must not depend on the machine's cores, and tiny layers don't gain from more."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(), _Widen():
                yield
        finally:
            torch.set_num_threads(threads)
