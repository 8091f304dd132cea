"""One training loop for every method: AdamW, warm-up and decay, EMA, resumable, the same on one device or many."""

import copy
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from edgedm.training.identity import Identity, of_loop
from edgedm.training.interrupt import Interrupts, TrainingInterrupted
from edgedm.training.monitor import Monitor
from edgedm.training.objective import Losses, Objective, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.processes import Processes
from edgedm.training.state import Curve, State

CURVE_EVERY = 50


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


def seed_of(seed: int, iteration: int, rank: int) -> int:
    """Return the seed of everything random in one iteration of one process."""
    return (seed * 1_000_003 + iteration) * 4099 + rank


def train(
    stage: Stage, folder: Path, *, identity: Identity | None = None, log: Path | None = None
) -> tuple[nn.Module, Curve]:
    """Train the stage's student; return its average (the student itself without EMA) and the loss curve.

    State goes to `folder/state.pt` every `save_every` iterations, at the end, and on SIGINT and SIGTERM, and is
    picked up again by the next call with the same loop options and `identity`; the curve (means over 50 iterations)
    to `folder/curve.json`; TensorBoard events to `log`. Everything random comes from
    (seed, iteration, process), so a resumed run equals an uninterrupted one. Under `accelerate launch` every
    process draws a batch of its own and the gradients are averaged.

    Raises `TrainingInterrupted` when asked to stop, `DivergedError` where a loss or gradient is not finite,
    `UnsupportedError` for a state of another run.
    """
    name, objective, options = stage.name, stage.objective, stage.loop
    folder.mkdir(parents=True, exist_ok=True)
    processes = Processes()
    objective.to(processes.device)
    ema = copy.deepcopy(objective.student).requires_grad_(False) if options.ema_decay else None
    trained = objective.student if ema is None else ema
    if options.iterations == 0:
        return trained, []
    groups = objective.parameter_groups(options.learning_rate)
    optimiser = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    what = {"stage": name, "processes": processes.count, **of_loop(options), **(identity or {})}
    state = State(folder, objective, ema, optimiser, what, processes)
    rates = [group["lr"] for group in optimiser.param_groups]
    state.resume()
    if state.iteration < options.iterations:
        _run(stage, state, processes, rates, log)
    return trained, state.curve


def _run(stage: Stage, state: State, processes: Processes, rates: list[float], log: Path | None) -> None:
    name, objective, options = stage.name, stage.objective, stage.loop
    optimiser = state.optimiser
    learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    step = processes.average_gradients(_Step(objective))
    device, generator = processes.device, torch.Generator()
    objective.student.train()
    began, before = time.monotonic(), state.seconds
    samples = options.batch * processes.count
    log = log if processes.is_main else None
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        Monitor(name, state.iteration, options.iterations, samples, log, processes.is_main) as monitor,
        Interrupts("") as interrupts,
    ):
        for iteration in range(state.iteration, options.iterations):
            interrupts.message = (
                f"{name}: interrupted after iteration {iteration + 1} of {options.iterations}; the state is in "
                f"{state.path}, and the same command goes on from it"
            )
            seed = seed_of(options.seed, iteration, processes.rank)
            generator.manual_seed(seed)
            torch.manual_seed(seed)  # for layers that draw on their own, such as dropout
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * learning_rate_factor(iteration, options)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
                terms: dict[str, Tensor] = step(iteration, generator)
            terms["loss"].backward()  # type: ignore[no-untyped-call]  # torch's own
            norm = nn.utils.clip_grad_norm_(learned, options.clip_norm)
            optimiser.step()
            objective.zero_grad(set_to_none=True)
            if state.ema is not None:
                update_ema(state.ema, objective.student, options.ema_decay, iteration)
            state.add({**terms, "gradient_norm": norm})
            state.seconds = before + time.monotonic() - began
            last, stop = iteration + 1 == options.iterations, processes.any(interrupts.requested)
            due = stop or last or (iteration + 1) % options.save_every == 0
            point = last or (iteration + 1) % CURVE_EVERY == 0
            if due or point:
                state.check_finite(name)
            if point:
                monitor.point(state.point())
            if due:
                state.save(options, last)
            monitor.advance(iteration + 1, terms["loss"])
            if stop:
                raise TrainingInterrupted(interrupts.message)


class _Step(nn.Module):
    """The objective as gradient averaging needs it: only "loss" leads back to parameters."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, iteration: int, generator: torch.Generator) -> Losses:
        """Return the objective's losses, all but "loss" detached."""
        terms: Losses = self.objective(iteration, generator)
        return {name: value if name == "loss" else value.detach() for name, value in terms.items()}
