"""One training loop for every method: AdamW, warm-up and decay, EMA, resumable, the same on one device or many."""

import copy
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from edgedm import progress
from edgedm.atomic import atomic_file
from edgedm.training.objective import Stage
from edgedm.training.options import LoopOptions

Curve = list[dict[str, float]]

CURVE_EVERY = 50
STATE_FILE, CURVE_FILE = "state.pt", "curve.json"


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, iteration: int) -> None:
    """Move `ema` towards `model`; the decay ramps up as (1 + i) / (10 + i), as is usual for short runs."""
    decay = min(decay, (1 + iteration) / (10 + iteration))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for kept, current in zip(ema.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def learning_rate_factor(iteration: int, options: LoopOptions) -> float:
    """Return the factor of an iteration's learning rate: linear warm-up, then the decay."""
    if iteration < options.warm_up:
        return (iteration + 1) / options.warm_up
    if options.decay == "constant":
        return 1.0
    done = min(1.0, (iteration - options.warm_up) / max(1, options.iterations - options.warm_up))
    left = 1 - done if options.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return options.final_fraction + (1 - options.final_fraction) * left


def train(stage: Stage, folder: Path) -> tuple[nn.Module, Curve]:
    """Train the stage's student; return its average (the student itself without EMA) and the loss curve.

    State goes to `folder/state.pt` every `save_every` iterations and is picked up again by the next call; the curve
    to `folder/curve.json`. Every iteration draws from a generator seeded by (seed, iteration), so a resumed run sees
    the same batches. Raises `FloatingPointError` where the gradient is not finite.
    """
    name, objective, options = stage.name, stage.objective, stage.loop
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    optimiser = torch.optim.AdamW(
        objective.parameter_groups(options.learning_rate),
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )
    rates = [group["lr"] for group in optimiser.param_groups]
    ema = copy.deepcopy(objective.student).requires_grad_(False) if options.ema_decay else None
    session = _Session(folder / STATE_FILE, objective, ema, optimiser)
    session.resume()
    wrapped, prepared = accelerator.prepare(objective, optimiser)
    generator = torch.Generator()
    objective.student.train()
    began, start = time.monotonic(), session.iteration
    for iteration in progress.track(range(start, options.iterations), name):
        generator.manual_seed((options.seed * 1_000_003 + iteration) * 4099 + accelerator.process_index)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate_factor(iteration, options)
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=options.bf16):
            terms = wrapped(iteration, generator)
        accelerator.backward(terms["loss"])
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), options.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"{name}: gradient norm {norm} at iteration {iteration}")
        prepared.step()
        prepared.zero_grad(set_to_none=True)
        if ema is not None:
            update_ema(ema, objective.student, options.ema_decay, iteration)
        session.note(iteration + 1, terms, last=iteration + 1 == options.iterations)
        if (iteration + 1) % options.save_every == 0 or iteration + 1 == options.iterations:
            session.save(options, (time.monotonic() - began) / (iteration + 1 - start))
    return (objective.student if ema is None else ema), session.curve


class _Session:
    """What is kept from one call to the next."""

    def __init__(
        self, path: Path, objective: nn.Module, ema: nn.Module | None, optimiser: torch.optim.Optimizer
    ) -> None:
        self.path, self.objective, self.ema, self.optimiser = path, objective, ema, optimiser
        self.iteration = 0
        self.curve: Curve = []
        self.sums: dict[str, float] = {}
        self.count = 0

    def note(self, iteration: int, terms: dict[str, Tensor], last: bool) -> None:
        """Add an iteration's losses; every 50 of them become a point of the curve."""
        self.iteration, self.count = iteration, self.count + 1
        for key, value in terms.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value.detach())
        if iteration % CURVE_EVERY == 0 or last:
            self.curve.append({"iteration": iteration, **{k: v / self.count for k, v in self.sums.items()}})
            self.sums, self.count = {}, 0

    def save(self, options: LoopOptions, seconds: float) -> None:
        """Write everything, whole or not at all."""
        state = {
            "objective": self.objective.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "iteration": self.iteration,
            "curve": self.curve,
            "sums": self.sums,
            "count": self.count,
        }
        with atomic_file(self.path) as path:
            torch.save(state, path)
        with atomic_file(self.path.with_name(CURVE_FILE)) as path:
            path.write_text(json.dumps({"options": asdict(options), "seconds": seconds, "curve": self.curve}))

    def resume(self) -> None:
        """Continue where the last call stopped, if there was one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.iteration, self.curve = int(state["iteration"]), state["curve"]
        self.sums, self.count = state["sums"], int(state["count"])
