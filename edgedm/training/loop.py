"""One training loop for every method: AdamW, warm-up and cosine decay, EMA, resumable, a progress line."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from edgedm.atomic import atomic_file

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class LoopOptions:
    """What a run needs besides its loss; `iterations` is the equal-budget unit of comparisons."""

    iterations: int
    learning_rate: float
    warm_up: int = 100
    ema_decay: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0
    bf16: bool = True
    save_every: int = 200
    final_fraction: float = 0.0


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, iteration: int) -> None:
    """Move `ema` towards `model`; the decay ramps up as (1 + i) / (10 + i), as is usual for short runs."""
    decay = min(decay, (1 + iteration) / (10 + iteration))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for kept, current in zip(ema.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def learning_rate_factor(iteration: int, options: LoopOptions) -> float:
    """Return the linear warm-up and cosine decay factor of an iteration, 0 first."""
    if iteration < options.warm_up:
        return (iteration + 1) / options.warm_up
    progress = (iteration - options.warm_up) / max(1, options.iterations - options.warm_up)
    low = options.final_fraction
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(
    name: str,
    model: nn.Module,
    ema: nn.Module,
    loss: Callable[[torch.Generator], Losses],
    options: LoopOptions,
    folder: Path,
    parameter_groups: list[dict[str, object]] | None = None,
) -> list[dict[str, float]]:
    """Train `model` on `loss()["loss"]`, keep `ema` beside it, and return the loss curve.

    State goes to `folder/state.pt` every `save_every` iterations and is picked up again by the next call; the
    curve to `folder/curve.jsonl`. Every iteration draws from a generator seeded by (seed, iteration), so a resumed
    run sees the same batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Its own mixed precision is one setting a process; runs of both kinds may follow each other here.
    accelerator = Accelerator(cpu=True)
    groups = parameter_groups or [{"params": list(model.parameters())}]
    optimiser = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    rates = [group["lr"] for group in optimiser.param_groups]
    start, curve = _resume(folder / "state.pt", model, ema, optimiser)
    began = time.monotonic()
    generator = torch.Generator()
    sums: dict[str, float] = {}
    model.train()
    for iteration in range(start, options.iterations):
        generator.manual_seed(options.seed * 1_000_003 + iteration)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate_factor(iteration, options)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            terms = loss(generator)
        accelerator.backward(terms["loss"])
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"{name}: gradient norm {norm} at iteration {iteration}")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        update_ema(ema, model, options.ema_decay, iteration)
        for key, value in terms.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        done = iteration + 1
        if done % 50 == 0 or done == options.iterations:
            count = (done - 1) % 50 + 1 if done % 50 else 50
            count = min(count, done - start)
            seconds = (time.monotonic() - began) / (done - start)
            curve.append({"iteration": done, "seconds": seconds, **{k: v / count for k, v in sums.items()}})
            sums = {}
            _progress(name, curve[-1], options.iterations, norm)
        if done % options.save_every == 0 or done == options.iterations:
            _save(folder, model, ema, optimiser, done, curve, options)
    return curve


def _progress(name: str, row: dict[str, float], total: int, norm: Tensor) -> None:
    terms = " ".join(f"{k} {v:.4f}" for k, v in row.items() if k not in ("iteration", "seconds"))
    left = (total - row["iteration"]) * row["seconds"] / 60
    line = f"{name} {row['iteration']:.0f}/{total} {terms} |g| {float(norm):.2f} {row['seconds']:.3f} s/it"
    print(f"{line}, {left:.1f} min left", file=sys.stderr, flush=True)


def _save(
    folder: Path,
    model: nn.Module,
    ema: nn.Module,
    optimiser: torch.optim.Optimizer,
    iteration: int,
    curve: list[dict[str, float]],
    options: LoopOptions,
) -> None:
    state = {
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimiser": optimiser.state_dict(),
        "iteration": iteration,
        "curve": curve,
    }
    with atomic_file(folder / "state.pt") as path:
        torch.save(state, path)
    with atomic_file(folder / "curve.json") as path:
        path.write_text(json.dumps({"options": asdict(options), "curve": curve}))


def _resume(
    path: Path, model: nn.Module, ema: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    ema.load_state_dict(state["ema"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["iteration"]), state["curve"]
