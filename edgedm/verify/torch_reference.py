"""The checkpoint in PyTorch, in float32 and in float64 with the same decisions taken in float64.

The float64 twin keeps one thing in float32: the sinusoid of the timestep, which diffusers computes in float32
whatever the module's type. Its phase reaches 999 radians, so a float64 sinusoid would differ by 1e-5 and hide
everything else behind an error that all float32 implementations share.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from edgedm import progress
from edgedm.diffusion import NoiseSchedule, advance, estimate, guide, normals, step_coefficients
from edgedm.models import Checkpoint, load
from edgedm.verify.conditions import TEXTS, text_conditions

Array = NDArray[np.floating[Any]]
_DTYPES = {32: torch.float32, 64: torch.float64}


class _Widen(TorchFunctionMode):
    """Lets float32 constants (unpacked signs) meet float64 activations: both become float64, exactly."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(item, torch.Tensor) and item.dtype == torch.float64 for item in args):
            args = tuple(
                item.double() if isinstance(item, torch.Tensor) and item.dtype == torch.float32 else item
                for item in args
            )
        return func(*args, **(kwargs or {}))


_Module = TypeVar("_Module", bound=torch.nn.Module)


class _Precisions(dict[int, _Module]):
    """The module in float32, and in float64 from when that is first asked for: of a big model it takes a while."""

    def __init__(self, module: _Module) -> None:
        super().__init__({32: module})

    def __missing__(self, bits: int) -> _Module:
        made = self[bits] = copy.deepcopy(self[32]).to(_DTYPES[bits]).eval()
        return made


@dataclass(frozen=True)
class Moment:
    """What a model is given at one step of several trajectories, in float32; the leading axis counts images."""

    step: int
    timestep: int
    labels: NDArray[np.int64]
    x: NDArray[np.float32]  # [N, C, H, W]
    state: tuple[NDArray[np.float32], ...]  # [N, C', H', W'] each; empty on a first step
    has_state: bool
    texts: NDArray[np.float32] | None = None  # [N, T, D]: the text conditions that the labels number


@dataclass(frozen=True)
class Trajectories:
    """Free-running trajectories in one precision: images before every step and after the last, each [N, C, H, W]."""

    images: list[Array]
    moments: list[Moment]


class TorchReference:
    """A checkpoint's module in both precisions, with its noise schedule; many images at a time."""

    def __init__(self, checkpoint: Checkpoint | str) -> None:
        loaded = load(checkpoint) if isinstance(checkpoint, str) else checkpoint
        self.config = loaded.config
        self.null_class = int(loaded.config.null_class or 0)  # an unconditional model ignores its one label, 0
        self.schedule = NoiseSchedule.from_config(loaded.config.noise_schedule)
        self.shape = loaded.config.image_shape
        self.modules = _Precisions(loaded.module.eval())
        self._decoders = None if loaded.decoder is None else _Precisions(loaded.decoder.eval())
        self.condition_shape = loaded.config.condition_shape
        if self.condition_shape is not None and loaded.config.null_class is None:
            self.null_class = TEXTS  # labels number text conditions then

    def sample(
        self,
        bits: int,
        labels: Sequence[int],
        noise: Sequence[tuple[int, int]],
        steps: int,
        sampler: str,
        keep: Sequence[int] = (),
        guidance: float = 1.0,
    ) -> Trajectories:
        """Draw one image a label in float`bits` from `noise` (seed, image), as the C runtime does.

        The moments of the steps in `keep` are recorded. With `guidance` other than 1 the null class runs beside
        the labels, with carried state of its own.
        """
        rows, texts = step_coefficients(self.schedule, steps, sampler), self._texts(labels)
        clip = self.schedule.clip(sampler)
        before: Array | None = None
        x: Any = self._noise(noise, 0)
        images, moments = [x], []
        state: list[Array] = []
        free_state: list[Array] = []
        told = progress.track(zip(rows, self.schedule.timesteps(steps, sampler), strict=True), f"float{bits}", steps)
        for step, (row, timestep) in enumerate(told):
            given = tuple(np.asarray(each, np.float32) for each in state)
            if step in keep:
                x32 = np.asarray(x, np.float32)
                moments.append(Moment(step, int(timestep), np.array(labels, np.int64), x32, given, bool(given), texts))
            output, state = self._forward(bits, x, int(timestep), labels, state)
            if guidance != 1.0:
                null = [self.null_class] * len(labels)
                free, free_state = self._forward(bits, x, int(timestep), null, free_state)
                output = guide(output, free, guidance)
            fresh = self._noise(noise, step + 1) if row.to_noise else None
            x, before = advance(row, clip, x, output, fresh, before), estimate(row, clip, x, output)
            images.append(x)
        return Trajectories(images, moments)

    def visit(
        self, labels: Sequence[int], noise: Sequence[tuple[int, int]], steps: int, chosen: Sequence[int]
    ) -> list[Moment]:
        """The moments of the steps `chosen` (ascending) of a schedule of `steps`, in float32.

        DDIM leaps from one to the next, without the steps between: as much like what the model meets as a whole
        trajectory is, at the cost of one call a moment.
        """
        timesteps, rows = self.schedule.timesteps(steps), step_coefficients(self.schedule, steps)
        texts = self._texts(labels)
        alphas = self.schedule.alphas_cumprod()
        clip = self.schedule.clip("ddim")
        x: Any = self._noise(noise, 0)
        state: list[Array] = []
        moments: list[Moment] = []
        leaps = zip(chosen, [*chosen[1:], None], strict=True)
        for step, following in progress.track(leaps, "float32", len(chosen)):
            given = tuple(np.asarray(each, np.float32) for each in state)
            where = int(timesteps[step])
            moments.append(Moment(step, where, np.array(labels, np.int64), x, given, bool(given), texts))
            if following is not None:
                output, state = self._forward(32, x, where, labels, state)
                kept = float(alphas[timesteps[following]])
                leap = replace(rows[step], to_x0=np.float32(kept**0.5), to_eps=np.float32((1.0 - kept) ** 0.5))
                x = advance(leap, clip, x, output, None)
        return moments

    def predict(self, bits: int, moment: Moment) -> tuple[Array, list[Array]]:
        """The model's outputs at one moment and the states it leaves."""
        return self._forward(bits, moment.x, moment.timestep, moment.labels, moment.state)

    @property
    def decodes(self) -> bool:
        """Whether the model is a latent one."""
        return self._decoders is not None

    def decode(self, bits: int, latent: Array) -> Array:
        """The image [3, H, W] of a latent [C, h, w]."""
        assert self._decoders is not None
        with _arithmetic():
            image: torch.Tensor = self._decoders[bits](torch.from_numpy(np.array(latent))[None].to(_DTYPES[bits]))
        return image[0].numpy()

    def layer_inputs(
        self, moment: Moment, image: int, kinds: tuple[type[torch.nn.Module], ...]
    ) -> dict[str, NDArray[np.float32]]:
        """What every module of these kinds inside the UNet is given at one moment of one image, in float32.

        Both modules have seen the moment afterwards, so `layer` takes its row of per-timestep tables.
        """
        own = replace(
            moment,
            x=moment.x[image : image + 1],
            labels=moment.labels[image : image + 1],
            texts=None if moment.texts is None else moment.texts[image : image + 1],
            state=tuple(each[image : image + 1] for each in moment.state),
        )
        given: dict[str, torch.Tensor] = {}
        layers = [(path, each) for path, each in self.modules[32].unet.named_modules() if isinstance(each, kinds)]
        handles = [each.register_forward_pre_hook(partial(_keep, given, path)) for path, each in layers]
        try:
            self.predict(32, own)
        finally:
            for handle in handles:
                handle.remove()
        self.predict(64, own)
        return {path: x.numpy() for path, x in given.items()}

    def layer(self, path: str, x: Array, method: str = "forward") -> NDArray[np.float64]:
        """Apply a module of the UNet, or another method of it, in float64 to `x`."""
        with _arithmetic():
            result: torch.Tensor = getattr(self.modules[64].unet.get_submodule(path), method)(
                torch.from_numpy(np.array(x)).double()
            )
        return result.numpy()

    def _forward(
        self, bits: int, x: Array, timestep: int, labels: Sequence[int] | NDArray[np.int64], state: Sequence[Array]
    ) -> tuple[Array, list[Array]]:
        module, dtype = self.modules[bits], _DTYPES[bits]
        inputs = [torch.from_numpy(np.array(x)).to(dtype), torch.tensor([timestep])]
        if module.conditional:
            inputs.append(torch.tensor(np.array(labels)))
        texts = self._texts(labels)
        if texts is not None:
            inputs.append(torch.from_numpy(texts).to(dtype))
        if module.taps:
            inputs.append(torch.full((1,), float(bool(state)), dtype=dtype))
            inputs += [torch.from_numpy(np.array(each)).to(dtype) for each in state or self._no_state(len(labels))]
        with _arithmetic():
            output, *after = module(*inputs)
        return output.numpy(), [each.numpy() for each in after]

    def _texts(self, labels: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32] | None:
        shape = self.condition_shape
        return None if shape is None else text_conditions(labels, self.null_class, shape)

    def _no_state(self, count: int) -> list[NDArray[np.float32]]:
        shapes = self.modules[32].state_shapes(*self.shape[1:])
        return [np.zeros((count, *shape[1:]), np.float32) for shape in shapes]

    def _noise(self, noise: Sequence[tuple[int, int]], draw: int) -> NDArray[np.float32]:
        size = int(np.prod(self.shape))
        return np.stack([normals(seed, image, draw, size).reshape(self.shape) for seed, image in noise])


def _keep(
    given: dict[str, torch.Tensor], path: str, _module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]
) -> None:
    given[path] = arguments[0].clone()


@contextmanager
def _arithmetic() -> Iterator[None]:
    """One thread: sums must not depend on the machine's cores, and small layers don't gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), _Widen():
            yield
    finally:
        torch.set_num_threads(threads)
