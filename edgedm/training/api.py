"""`edgedm.quantize`: swap the layers of a module, or train a low-bit checkpoint from a float one."""

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.models import load, save
from edgedm.models.roles import Role
from edgedm.outcome import Outcome
from edgedm.quant.api import quantize_layers
from edgedm.quant.methods.method import Options
from edgedm.quant.policy import Policy, policy_of
from edgedm.training.recipes import RECIPES
from edgedm.training.run import run_method


@overload
def quantize(
    model: nn.Module, method: str, policy: Policy | Mapping[Role, str] | str | None = None, **named: Any
) -> nn.Module: ...


@overload
def quantize(
    model: str | os.PathLike[str],
    method: str,
    policy: Policy | Mapping[Role, str] | str | None = None,
    **named: Any,
) -> Outcome: ...


def quantize(
    model: nn.Module | str | os.PathLike[str],
    method: str,
    policy: Policy | Mapping[Role, str] | str | None = None,
    **named: Any,
) -> nn.Module | Outcome:
    """Quantise `model` by `method`.

    A module: its layers are swapped in place, untrained, and it is returned (`edgedm.quant.api.quantize_layers`).
    A checkpoint (a folder or `zoo:NAME`): a low-bit copy is trained and written (`train_checkpoint`). `policy` is a
    published variant by name ("paper", "code"), a `Policy`, or, for a module, a table {role: bits}.
    """
    chosen = policy_of(method, policy) if isinstance(policy, str) else policy
    if isinstance(model, nn.Module):
        return quantize_layers(model, method, chosen, **named)
    if chosen is not None and not isinstance(chosen, Policy):
        raise UnsupportedError("policy: a checkpoint takes a published policy or a Policy, not a table")
    return train_checkpoint(model, method, chosen, **named)


def train_checkpoint(
    base: str | os.PathLike[str] = "zoo:digits-fp32",
    method: str = "bidm",
    policy: Policy | None = None,
    *,
    data: str = "digits",
    output: str = "checkpoint",
    options: Options | Mapping[str, Any] | None = None,
    iterations: int | None = None,
    seed: int = 0,
    runs: str | None = None,
    threads: int = 2,
) -> Outcome:
    """Train a low-bit checkpoint from the float checkpoint `base` and write it to `output`.

    `iterations` replaces the recipe's. With `runs`, a folder, training keeps its state there and resumes. Raises
    `InvalidModelError` for a bad base, `UnsupportedError` for an unknown method, option or data set.
    """
    checkpoint = load(base)
    loop = None
    if method in RECIPES:
        recipe = RECIPES[method].loop
        loop = dataclasses.replace(recipe, seed=seed, iterations=iterations or recipe.iterations)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(runs or scratch) / method
        trained = run_method(checkpoint, method, folder, policy=policy, options=options, data=data, loop=loop)
    save(trained.checkpoint, output)
    figures = dict(trained.figures)
    for name, curve in trained.curves.items():
        figures |= {f"{name}.{key}": value for key, value in curve[-1].items()}
    return Outcome(True, figures, {"written": [str(output)], "curves": trained.curves})
