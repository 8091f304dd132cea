"""Golden data: what PyTorch computed, recorded so that a graph or a bundle can be held against it without PyTorch.

`<stem>.golden.safetensors` holds one DDIM trajectory under the default seed and label, of `TRAJECTORY_STEPS` steps
(`SHORT_TRAJECTORY` where a step of PyTorch takes seconds):

    noise                        f32[C, H, W]  the trajectory's start (Philox, see edgedm.diffusion)
    step.<i>.<input>             each input of the graph at step i, with the true carried state
    step.<i>.<output>            each output
    image                        f32[C, H, W]  the end of the trajectory
    decoded                      f32[3, H', W']  of a latent model: what its decoder makes of it

for the steps i of `golden_steps` (the first one has has_state 0; fewer where the carried state is large), and as
metadata: format, sampler, steps, golden_steps, seed, image, class_label, torch, and rounding_noise: how far, relative
to its size, the output at each of these steps moves where every norm's output moves by a few roundings, which a
low-bit network amplifies. `<stem>.layers.safetensors` holds of one step `<module path>.input` and
`<module path>.output` of every low-bit layer and quantiser. PyTorch runs on one thread.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from edgedm import progress
from edgedm.diffusion import NoiseSchedule, normals
from edgedm.diffusion.sampler import trajectory
from edgedm.models.decoder import LatentDecoder
from edgedm.models.denoiser import Denoiser
from edgedm.models.threads import one_thread
from edgedm.quant.running import RUNNING_LAYERS, RUNNING_QUANTIZERS

FORMAT = "edgedm.golden/1"
TRAJECTORY_STEPS, SHORT_TRAJECTORY = 50, 10
RECORDED_STEPS = 8  # spread evenly from the first to the last
SEED, IMAGE = 0, 0
_CONDITION_DRAW = 1 << 20  # above the draws of any trajectory
_ROUNDING = 2.0**-20  # relative: what another order of sums makes of a norm
_LARGE_MODEL = 100_000_000  # weights
_BUDGET = 64 << 20  # bytes of recorded inputs and outputs


@dataclass(frozen=True)
class Golden:
    """Tensors and metadata of the two files; `layers` is empty unless asked for."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    layers: dict[str, Tensor] = field(default_factory=dict)


def golden_steps(trajectory: int = TRAJECTORY_STEPS, recorded: int = RECORDED_STEPS) -> list[int]:
    """Return the recorded steps, first and last included."""
    return [int(step) for step in np.linspace(0, trajectory - 1, recorded).round()]


def extent(module: Denoiser, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many steps the trajectory of `module` has, and how many of them are recorded: two or more."""
    trajectory = SHORT_TRAJECTORY if _weights(module.unet) >= _LARGE_MODEL else TRAJECTORY_STEPS
    each = 2 * sum(tensor.nbytes for tensor in inputs.values())  # outputs are as large as inputs
    return trajectory, max(2, min(RECORDED_STEPS, _BUDGET // each))


def example_inputs(module: Denoiser, shape: tuple[int, int, int], label: int) -> dict[str, Tensor]:
    """Return the graph's inputs by name for an image of `shape` (C, H, W): zeros, at the start of a trajectory.

    A model without class labels has no use for `label`.
    """
    zeros = [torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)]
    if module.conditional:
        zeros.append(torch.tensor([label]))
    if module.condition:
        zeros.append(torch.zeros(1, *module.condition))
    if module.taps:
        zeros += [torch.zeros(1), *module.zero_state(*shape[1:])]
    return dict(zip(module.input_names, zeros, strict=True))


def example_condition(shape: tuple[int, int]) -> Tensor:
    """Return the text condition of the golden data, f32[1, tokens, size]: normals of the default seed."""
    values = normals(SEED, IMAGE, _CONDITION_DRAW, math.prod(shape))
    return torch.from_numpy(values.reshape(1, *shape).copy())


def record(
    module: Denoiser,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    label: int,
    layers: bool = False,
    decoder: LatentDecoder | None = None,
) -> Golden:
    """Run the trajectory in PyTorch and keep what `golden_steps` see; `layers` keeps the middle one's layers too.

    A model with a text condition reads that of `example_condition`.
    """
    inputs = example_inputs(module, shape, label)
    if module.condition:
        inputs["encoder_hidden_states"] = example_condition(module.condition)
    count, recorded = extent(module, inputs)
    steps = golden_steps(count, recorded)
    recorder, middle = _Recorder(module, inputs, steps), steps[recorded // 2]
    with one_thread(), torch.inference_mode():
        images = trajectory(recorder, schedule, shape, count, "ddim", seed=SEED, image=IMAGE)
        kept = [torch.from_numpy(x.copy()) for x in progress.track(images, "golden data", count + 1)]
        inside = record_layers(module, recorder.inputs_at(middle)) if layers else {}
        noise = [_rounding_noise(module, recorder.inputs_at(step), recorder.output_at(step)) for step in steps]
        decoded = {} if decoder is None else {"decoded": decoder(kept[-1][None])[0]}
    tensors = {"noise": kept[0], **recorder.tensors, "image": kept[-1], **decoded}
    metadata = {
        "format": FORMAT,
        "sampler": "ddim",
        "steps": str(count),
        "golden_steps": json.dumps(steps),
        "seed": str(SEED),
        "image": str(IMAGE),
        "class_label": str(label),
        "layers_step": str(middle),
        "rounding_noise": json.dumps([float(f"{error:.3g}") for error in noise]),
        "torch": torch.__version__,
    }
    return Golden({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata, inside)


def record_layers(module: Denoiser, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run one step on `inputs` and return `<path>.input` and `<path>.output` of every low-bit layer."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            found[f"{path}.input"], found[f"{path}.output"] = arguments[0].clone(), output.clone()

        return hook

    handles = [
        layer.register_forward_hook(keep(path))
        for path, layer in module.unet.named_modules()
        if isinstance(layer, (*RUNNING_LAYERS, *RUNNING_QUANTIZERS))
    ]
    try:
        module(*inputs.values())
    finally:
        for handle in handles:
            handle.remove()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _rounding_noise(module: Denoiser, inputs: Mapping[str, Tensor], eps: Tensor) -> float:
    """How far eps moves, relative to its size, where what every norm returns moves by a few roundings."""
    generator = torch.Generator().manual_seed(SEED)

    def disturb(_norm: nn.Module, _arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * (1 + _ROUNDING * (2 * torch.rand(output.shape, generator=generator) - 1))

    norms = [layer for layer in module.unet.modules() if isinstance(layer, nn.GroupNorm | nn.LayerNorm)]
    handles = [norm.register_forward_hook(disturb) for norm in norms]
    try:
        output = module(*inputs.values())
    finally:
        for handle in handles:
            handle.remove()
    moved = output if isinstance(output, Tensor) else output[0]
    return float((moved - eps).norm() / eps.norm())


def files(golden: Golden, graph: str | os.PathLike[str]) -> dict[Path, bytes]:
    """Return path and contents of the files that belong to the graph at `graph`."""
    contents = {golden_path(graph): _serialize(golden.tensors, golden.metadata)}
    if golden.layers:
        contents[Path(graph).with_suffix(".layers.safetensors")] = _serialize(golden.layers, golden.metadata)
    return contents


def golden_path(graph: str | os.PathLike[str]) -> Path:
    """Return where the golden data of the graph at `graph` stand: model.onnx -> model.golden.safetensors."""
    return Path(graph).with_suffix(".golden.safetensors")


class _Recorder:
    """Predicts for the sampler, carries the state from step to step and keeps what the chosen steps see."""

    def __init__(self, module: Denoiser, inputs: dict[str, Tensor], steps: list[int]) -> None:
        self.module, self.inputs, self.steps = module, inputs, set(steps)
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, x: NDArray[np.float32], timestep: int, step: int) -> NDArray[np.float32]:
        self.inputs["x"] = torch.from_numpy(x.copy())[None]
        self.inputs["timestep"] = torch.tensor([timestep])
        outputs = dict(zip(self.module.output_names, self.module(*self.inputs.values()), strict=True))
        if step in self.steps:
            seen = {**self.inputs, **outputs}
            self.tensors |= {f"step.{step}.{name}": tensor.clone() for name, tensor in seen.items()}
        for tap in self.module.taps:
            self.inputs[f"state.{tap}"] = outputs[f"state.{tap}.next"]
        if self.module.taps:
            self.inputs["has_state"] = torch.ones(1)
        return np.asarray(outputs["eps"][0].numpy())

    def inputs_at(self, step: int) -> dict[str, Tensor]:
        return {name: self.tensors[f"step.{step}.{name}"] for name in self.module.input_names}

    def output_at(self, step: int) -> Tensor:
        return self.tensors[f"step.{step}.eps"]


def _serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Write safetensors with the metadata in order: the library shuffles them, and equal data must be equal bytes."""
    data = save(tensors, metadata)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[start:]


def _weights(unet: nn.Module) -> int:
    """How many weights the layers have, whatever their bits."""
    total = 0
    for layer in unet.modules():
        if isinstance(layer, (*RUNNING_LAYERS, nn.Conv2d, nn.Linear)):
            inputs = getattr(layer, "in_channels", getattr(layer, "in_features", 0))
            outputs = getattr(layer, "out_channels", getattr(layer, "out_features", 0))
            total += inputs * outputs * math.prod(getattr(layer, "kernel_size", ()))
    return total
