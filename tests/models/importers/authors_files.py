"""Files as the authors' scripts write them, and how an imported model is called."""

import copy

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

LDM = "model.diffusion_model."


def betas(kind="scaled_linear"):
    """What DDPM registers: float32 of a float64 line (of square roots)."""
    if kind == "linear":
        return torch.from_numpy(np.linspace(1e-4, 2e-2, 1000)).float()
    return torch.from_numpy(np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2).float()


def lightning(state, ema=None, **extra):
    """The content of a LatentDiffusion file: UNet, averaged copy, schedule, autoencoder, and Lightning's own keys."""
    tensors = {LDM + name: value for name, value in state.items()}
    tensors |= {"betas": betas(), "scale_factor": torch.tensor(1.0), "first_stage_model.encoder.weight": torch.ones(2)}
    tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    for name, value in (ema or {}).items():
        tensors["model_ema." + ("diffusion_model." + name).replace(".", "")] = value
    return {"epoch": 3, "global_step": 1000, "state_dict": tensors | extra, "optimizer_states": [], "callbacks": {}}


def moved(state, seed=9):
    """Another set of weights of the same shapes: what an average is."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.05 * value.abs().mean() * torch.randn(value.shape, generator=generator)
        for name, value in state.items()
    }


def call(checkpoint, x, t, *rest):
    """The outputs of an imported model, everything float32 as it is before it is saved."""
    with torch.no_grad():
        return checkpoint.module(x, t, *rest)


def inputs(arch, seed=3, timestep=421):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, arch.colours, arch.image, arch.image, generator=generator), torch.tensor([timestep])


class _Widen(TorchFunctionMode):
    """Lets float32 constants, such as unpacked bits, meet float64 activations."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if any(isinstance(item, torch.Tensor) and item.dtype == torch.float64 for item in args):
            args = [a.double() if isinstance(a, torch.Tensor) and a.dtype == torch.float32 else a for a in args]
        return func(*args, **(kwargs or {}))


def double(state):
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def call_exactly(checkpoint, x, t, *rest):
    """`call` in float64, where no code is decided by rounding."""
    module = copy.deepcopy(checkpoint.module).double()
    with torch.no_grad(), _Widen():
        return module(x.double(), t, *(each.double() for each in rest))
