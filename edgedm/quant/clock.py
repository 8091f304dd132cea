"""The timestep of the current forward pass, for layers whose scales differ from timestep to timestep."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Clock:
    """Holds the timestep int64[N] (or int64[1]) that the model was called with; a plain object, shared by layers."""

    def __init__(self) -> None:
        self.timestep: Tensor | None = None

    def now(self) -> Tensor:
        """Return the timestep; `RuntimeError` where the model was called in a way that the clock didn't see."""
        if self.timestep is None:
            raise RuntimeError("a layer with per-timestep tables ran before its model: call the model itself")
        return self.timestep


class _ReadTimestep:
    """Forward pre-hook of the whole model: takes the second argument, `timestep` in all of diffusers' denoisers."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, _model: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        timestep = named["timestep"] if "timestep" in named else arguments[1] if len(arguments) > 1 else None
        if timestep is None:
            return
        self.clock.timestep = timestep.reshape(-1) if isinstance(timestep, Tensor) else torch.tensor([timestep])


def clock_of(model: nn.Module) -> Clock:
    """Return the clock of `model`, installed at the first call; a deep copy of the model has a clock of its own."""
    clock = find_clock(model)
    if clock is None:
        clock = Clock()
        install_clock(model, clock)
    return clock


def find_clock(model: nn.Module) -> Clock | None:
    """Return the clock of `model`, None where none is installed."""
    hooks = model._forward_pre_hooks.values()
    return next((hook.clock for hook in hooks if isinstance(hook, _ReadTimestep)), None)


def install_clock(model: nn.Module, clock: Clock) -> None:
    """Let `clock` read the timestep of every call of `model`, which has no clock yet."""
    model.register_forward_pre_hook(_ReadTimestep(clock), with_kwargs=True)
