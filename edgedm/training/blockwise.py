"""Block-wise distillation (BKD of DilateQuant, arXiv 2409.14307): one block after the other learns to
give the full-precision block's output from what the low-bit blocks before it give.

    L_k = MSE( B_k(... B_1(x)), Bhat_k(... Bhat_1(x)) ),    gradients in Bhat_k alone

Blocks are residual blocks, attentions and transformer blocks; every other low-bit layer is a block of its own
(EDA-DM). They come in the order in which the model runs them. A block's quantisers are calibrated once more when
its stage begins, so their grids are those of what the finished blocks before it really give.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.models.denoiser import Denoiser
from edgedm.quant.clock import clock_of
from edgedm.quant.uniform import ActivationTable
from edgedm.quant.uniform_layer import UniformLayer
from edgedm.training.calibrate import calibrating
from edgedm.training.objective import Frozen, Losses, Objective
from edgedm.training.trajectory import Samples, predictor

CHUNK = 64  # samples that are run at once to fill the cache
CALIBRATED = 512  # samples, evenly spread over the trajectory, that a block's quantisers are calibrated on


@dataclass(frozen=True)
class Rates:
    """Learning rates relative to what they move: Adam's own step does not know how large a parameter is.

    `weight` is in steps of the weight's grid; `quantizer` a share of the step itself, and for a zero point of the
    grid's 2^bits - 1.
    """

    weight: float
    quantizer: float


def blocks_of(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Return the paths of the blocks of a low-bit `model`, in the order in which `run()`, which calls it, meets them.

    A block that `run` never reaches is left out.
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    wholes = (BasicTransformerBlock, Attention, ResnetBlock2D)
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(block + ".") for block in found)
        if not inside and (isinstance(module, UniformLayer) or (isinstance(module, wholes) and _low_bit(module))):
            found.append(path)
    order: list[str] = []
    handles = [
        model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: order.append(path)) for path in found
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


class BlockReconstruction(Objective):
    """The loss of one block; its parameters and its saved state are the block's alone.

    The block must be calibrated, which gives the quantisers their rates. The first iteration of a stage calibrates
    it again, behind the blocks that are finished by then, and fills the cache; so a stage that is already done costs
    nothing but loading its state. Without `cache` inputs and targets are computed anew for every batch.
    """

    def __init__(
        self,
        student: Denoiser,
        teacher: nn.Module,
        path: str,
        samples: Samples,
        rates: Rates,
        batch: int,
        cache: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        self.__dict__["student"] = student  # not a part: the state of a stage is the state of its block
        self.block = student.unet.get_submodule(path)
        self.path, self.samples, self.rates, self.batch, self.cache = path, samples, rates, batch, cache
        self.teacher = Frozen(teacher)
        self.clock = clock_of(student.unet)
        self.cached: _Reconstruction | None = None
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.begun: Tensor
        wanted = {id(parameter) for group in self.parameter_groups(1.0) for parameter in group["params"]}
        for parameter in self.block.parameters():
            parameter.requires_grad_(id(parameter) in wanted)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return one group a weight, step, bias or zero point, each at its rate times `learning_rate`.

        A bias has the rate of its layer's weight. What the block has besides low-bit layers and tables is left alone.
        """
        rates: list[tuple[nn.Parameter, float]] = []
        for module in self.block.modules():
            if not isinstance(module, UniformLayer | ActivationTable):
                continue
            step = float(module.step.detach().mean())
            rates.append((module.step, self.rates.quantizer * step))
            if isinstance(module, ActivationTable):
                rates.append((module.zero, self.rates.quantizer * (2**module.bits - 1)))
                continue
            rates.append((module.weight, self.rates.weight * step))
            if module.bias is not None:
                rates.append((module.bias, self.rates.weight * step))
        return [{"params": [p], "lr": learning_rate * rate} for p, rate in rates if p.requires_grad]

    def forward(self, iteration: int, generator: torch.Generator) -> Losses:
        """Return "loss", the mean squared error of the block's output."""
        del iteration
        self.block.eval()
        if self.cache and self.cached is None:
            self.cached = self._collect(self.samples)
        if not self.begun:
            self._calibrate(self._take(self.samples.spread(CALIBRATED, turn=self.student.prompts is not None)))
        part = self._take(torch.randint(len(self.samples), (self.batch,), generator=generator))
        return {"loss": F.mse_loss(self._run(part).float(), part.target)}

    def _take(self, rows: Tensor) -> "_Reconstruction":
        return self._collect(self.samples.take(rows)) if self.cached is None else self.cached.take(rows)

    @torch.no_grad()
    def _calibrate(self, part: "_Reconstruction") -> None:
        """Set every row of the block's tables from its own timesteps' samples."""
        with calibrating(self.block, per_row=True):
            for chunk in _chunks(len(part.target)):
                self._run(part.take(chunk))
        self.begun.fill_(True)

    def _run(self, part: "_Reconstruction") -> Tensor:
        """Return the block's output; its tables read the timesteps of `part`."""
        device = next(self.block.parameters()).device
        self.clock.timestep = part.timesteps.to(device)
        output: Tensor = self.block(*part.arguments, **part.named)
        return output

    @torch.no_grad()
    def _collect(self, samples: Samples) -> "_Reconstruction":
        """Return the block's inputs behind the low-bit blocks before it, and its full-precision output."""
        student, teacher, prompts = self.student.unet.eval(), self.teacher.module, self.student.prompts
        inputs, targets = [], []
        for chunk in _chunks(len(samples)):
            part = samples.take(chunk)
            inputs.append(_input_of(student, self.path, part, prompts))
            targets.append(_output_of(teacher, self.path, part, prompts))
        arguments = [_join([given[0][i] for given in inputs]) for i in range(len(inputs[0][0]))]
        named = {name: _join([given[1][name] for given in inputs]) for name in inputs[0][1]}
        return _Reconstruction(arguments, named, torch.cat(targets).float(), samples.timesteps)


@dataclass(frozen=True)
class _Reconstruction:
    """Inputs of a block, its target and the timesteps; tensors are f32[M, ...], anything else is the same for all."""

    arguments: Sequence[Any]
    named: dict[str, Any]
    target: Tensor
    timesteps: Tensor

    def take(self, rows: Tensor | slice) -> "_Reconstruction":
        """Return some of the images."""

        def part(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) else value

        return _Reconstruction(
            [part(value) for value in self.arguments],
            {name: part(value) for name, value in self.named.items()},
            self.target[rows],
            self.timesteps[rows],
        )


class _Reached(Exception):  # noqa: N818  # not an error: it ends a forward pass whose rest nobody needs
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _input_of(model: nn.Module, path: str, samples: Samples, prompts: Tensor | None) -> Any:
    """Run `model` up to the module at `path`; return what that is called with, (arguments, named arguments)."""

    def reached(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached((arguments, named))

    handle = model.get_submodule(path).register_forward_pre_hook(reached, with_kwargs=True)
    return _run_until_reached(model, samples, prompts, handle, path)


def _output_of(model: nn.Module, path: str, samples: Samples, prompts: Tensor | None) -> Any:
    """Run `model` through the module at `path`; return that one's output."""

    def reached(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        raise _Reached(output)

    return _run_until_reached(model, samples, prompts, model.get_submodule(path).register_forward_hook(reached), path)


def _run_until_reached(model: nn.Module, samples: Samples, prompts: Tensor | None, handle: Any, path: str) -> Any:
    device = next(model.parameters()).device
    try:
        predictor(model, prompts)(samples.noisy.to(device), samples.timesteps.to(device), samples.labels.to(device))
    except _Reached as end:
        return end.value
    finally:
        handle.remove()
    raise RuntimeError(f"the model ran without its block {path!r}")


def _join(values: list[Any]) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


def _low_bit(module: nn.Module) -> bool:
    return any(isinstance(part, UniformLayer | ActivationTable) for part in module.modules())
