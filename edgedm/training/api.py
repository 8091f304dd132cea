"""`edgedm.quantize`: swap the layers of a module, or train a low-bit checkpoint from a float one."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from edgedm.atomic import check_place
from edgedm.errors import UnsupportedError
from edgedm.models import save
from edgedm.models.roles import Role
from edgedm.outcome import Outcome
from edgedm.quant.api import quantize_layers
from edgedm.quant.methods.method import Options
from edgedm.quant.policy import Policy, policy_of
from edgedm.training.base_model import load_base
from edgedm.training.finished import finish, finished_before
from edgedm.training.options import LoopOptions
from edgedm.training.processes import Processes
from edgedm.training.recipes import RECIPES
from edgedm.training.run import record_of, run_method, settle

Precision = Literal["fp32", "bf16"]
SUFFIX = ".training"


@overload
def quantize(
    model: nn.Module,
    method: str,
    policy: Policy | Mapping[Role, str] | str | None = None,
    *,
    bits: str | None = None,
    **named: Any,
) -> nn.Module: ...


@overload
def quantize(
    model: str | os.PathLike[str],
    method: str,
    policy: Policy | str | None = None,
    *,
    bits: str | None = None,
    **named: Any,
) -> Outcome: ...


def quantize(
    model: nn.Module | str | os.PathLike[str],
    method: str,
    policy: Policy | Mapping[Role, str] | str | None = None,
    *,
    bits: str | None = None,
    **named: Any,
) -> nn.Module | Outcome:
    """Quantise `model` by `method`.

    A module: its layers are swapped in place, untrained, and it is returned; `named` are the arguments of
    `edgedm.quant.api.quantize_layers` (`options`, `roles`, `edges`). A checkpoint (a folder or `zoo:NAME`): a
    low-bit copy is trained and written; `named` are the arguments of `train_checkpoint`.

    `policy` is a published variant by name ("paper", "code"), a `Policy`, or, for a module, a table {role: bits};
    by default the method's first variant. `bits`, such as "W6A6", sets a published policy at another width.
    Raises `UnsupportedError` for an unknown method, policy, option, role or width.
    """
    chosen = choose_policy(method, policy, bits) if isinstance(policy, str) else policy
    if bits is not None and not isinstance(policy, str):
        if policy is not None:
            raise UnsupportedError("bits: only a published policy, given by name, can be set at another width")
        chosen = choose_policy(method, None, bits)
    if isinstance(model, nn.Module):
        return quantize_layers(model, method, chosen, **named)
    if chosen is not None and not isinstance(chosen, Policy):
        raise UnsupportedError("policy: a checkpoint takes a published policy or a Policy, not a table")
    return train_checkpoint(model, method, chosen, **named)


def choose_policy(method: str, variant: str | None = None, bits: str | None = None) -> Policy:
    """Return a published policy at its own width or at `bits`; `UnsupportedError` where there is none."""
    try:
        return policy_of(method, variant, bits)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error


def train_checkpoint(
    base: str | os.PathLike[str] = "zoo:digits-fp32",
    method: str = "bidm",
    policy: Policy | None = None,
    *,
    data: str = "digits",
    output: str | os.PathLike[str] = "checkpoint",
    options: Options | Mapping[str, Any] | None = None,
    iterations: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    ema: float | None = None,
    precision: Precision | None = None,
    seed: int = 0,
    save_every: int | None = None,
    runs: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    restart: bool = False,
    overwrite: bool = False,
    null_class: int | None = None,
    conditions: str | os.PathLike[str] | None = None,
    negative: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> Outcome:
    """Train a low-bit checkpoint from the full-precision model `base` (see `load_base`) and write it to `output`.

    `iterations`, `batch` (samples a process and iteration), `learning_rate`, `ema` (decay, 0 for none) and
    `precision` replace the recipe's own; `data` and `options` are as in `run_method`. Training keeps its state in
    `runs`/METHOD, by default the folder `OUTPUT.training` beside the output: the same call goes on from it after
    whatever stopped it, a call with other settings is refused, `restart` begins anew. When the checkpoint is
    written the states are deleted; curves (`STAGE/curve.json`) and the record (`run.json`) stay. The same call then
    trains nothing and returns the same figures; one with other settings is refused unless it may `overwrite` the
    checkpoint. `log` is a folder for TensorBoard. `null_class` is the label that means "none" of a base of diffusers
    with classes; `conditions` and `negative` are as in `run_method`. `threads` sets torch's number of threads.

    The outcome's figures are each stage's last losses and seconds, the recipe's own figures and the peak memory;
    its details the paths written and the curves. Raises as `run_method` does.
    """
    for place in (output, runs, log):
        if place is not None:
            check_place(place)
    loop = loop_options(method, iterations, batch, learning_rate, ema, precision, seed, save_every)
    checkpoint = load_base(base, null_class)
    if threads is not None:
        torch.set_num_threads(threads)
    folder = run_folder(output, runs, method)
    settings = settle(checkpoint.config, method, policy, options, data, loop, conditions, negative)
    if Path(output).exists():
        before = finished_before(Path(output), folder, record_of(checkpoint, settings), overwrite)
        if before is not None:
            return before
    trained = run_method(
        checkpoint,
        method,
        folder,
        policy=policy,
        options=options,
        data=data,
        loop=loop,
        conditions=conditions,
        negative=negative,
        restart=restart,
        log=None if log is None else Path(log),
    )
    processes = Processes()
    if processes.is_main:
        save(trained.checkpoint, output)
        finish(folder, trained.figures, Path(output))
    processes.wait()
    written = [str(output), str(folder)]
    return Outcome(True, trained.figures, {"written": written, "curves": trained.curves})


def loop_options(
    method: str,
    iterations: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    ema: float | None = None,
    precision: Precision | None = None,
    seed: int = 0,
    save_every: int | None = None,
) -> LoopOptions | None:
    """Return the recipe's loop with what is given replaced; None for an unknown method."""
    if method not in RECIPES:
        return None
    given = {
        "iterations": iterations,
        "batch": batch,
        "learning_rate": learning_rate,
        "ema_decay": ema,
        "bf16": None if precision is None else precision == "bf16",
        "seed": seed,
        "save_every": save_every,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(RECIPES[method].loop, **changes)


def run_folder(output: str | os.PathLike[str], runs: str | os.PathLike[str] | None, method: str) -> Path:
    """Return where a run keeps its states: `runs`/METHOD, or `OUTPUT.training` beside the output."""
    if runs is not None:
        return Path(runs) / method
    absolute = Path(os.path.abspath(output))
    return absolute.parent / (absolute.name + SUFFIX)
