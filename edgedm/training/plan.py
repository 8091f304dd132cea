"""What a training would do, without doing it: layers, bits, stages, sizes; and what a method offers."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import UnsupportedError
from edgedm.models import Checkpoint
from edgedm.models.roles import roles
from edgedm.outcome import Outcome
from edgedm.quant.methods import METHODS
from edgedm.quant.methods.method import Options
from edgedm.quant.option_text import takes
from edgedm.quant.policy import POLICIES, Policy
from edgedm.training.base_model import load_base
from edgedm.training.options import LoopOptions
from edgedm.training.recipes import RECIPES
from edgedm.training.run import Settings, make_student, settle, to_checkpoint

Row = dict[str, Any]


def plan(
    base: str | os.PathLike[str],
    method: str,
    policy: Policy | None = None,
    *,
    options: Options | Mapping[str, Any] | None = None,
    data: str = "digits",
    loop: LoopOptions | None = None,
    null_class: int | None = None,
    conditions: str | os.PathLike[str] | None = None,
    negative: str | os.PathLike[str] | None = None,
) -> Outcome:
    """Return what `train_checkpoint` would do with the same arguments; nothing is trained or written.

    `details["tables"]` has a row a layer (and a row for the two products of each attention block): path, role, bits,
    channels, kernel, parameters, multiply-accumulates for one image, and why it gets these bits. Figures: layers,
    MACs by bits, parameters of the base and those of the student that may learn, and the bytes that the checkpoint
    will take. Raises as `run_method` does.
    """
    checkpoint = load_base(base, null_class)
    settings = settle(checkpoint.config, method, policy, options, data, loop, conditions, negative)
    rows = _layer_rows(checkpoint, settings.policy)
    student = _student(checkpoint, settings)
    shipped = to_checkpoint(student, checkpoint.config, method, settings.policy, settings.options)
    figures = {
        "layers": float(len(rows)),
        "parameters.base": float(_count(checkpoint.module)),
        "parameters.student": float(sum(p.numel() for p in student.parameters() if p.requires_grad)),
        "bytes.base": float(_stored_bytes(checkpoint.module)),
        "bytes.result": float(_stored_bytes(shipped.module)),
    }
    for row in rows:
        key = f"macs.{row['bits']}"
        figures[key] = figures.get(key, 0.0) + row["macs"]
    summary = {
        "base": os.fspath(base),
        "method": method,
        "policy": f"{settings.policy.name} at {settings.policy.nominal}",
        "data": "none needed" if settings.recipe.data_free else data,
        "training": _stages_text(settings.recipe.stages),
        "parameters": f"{figures['parameters.base']:,.0f} in the base; of the student's, "
        f"{figures['parameters.student']:,.0f} can learn",
        "bytes": f"{figures['bytes.base']:,.0f} in the base; {figures['bytes.result']:,.0f} in the result",
    }
    tables = {
        "Layers": rows,
        "Options": [{"option": key, "value": str(value)} for key, value in settings.options.model_dump().items()],
        "Loop": _loop_rows(settings.loop),
    }
    return Outcome(True, figures, {"summary": summary, "tables": tables})


def describe(method: str, policy: Policy | None = None) -> Outcome:
    """Return a method's options, the loop of its recipe, and its published policies (or only `policy`) as tables.

    Raises `UnsupportedError` for an unknown method.
    """
    if method not in RECIPES:
        raise UnsupportedError(f"method: expected one of {', '.join(RECIPES)}, got {method!r}")
    recipe, kind = RECIPES[method], METHODS[method].options
    options: list[Row] = [
        {
            "option": name,
            "takes": takes(info),
            "default": str(info.get_default(call_default_factory=True)),
            "meaning": info.description or "",
        }
        for name, info in kind.model_fields.items()
    ]
    shown = list(POLICIES[method].values()) if policy is None else [policy]
    summary = {
        "method": method,
        "training": _stages_text(recipe.stages),
        "data": "none needed" if recipe.data_free else "images",
        "options": " ".join((inspect.getdoc(kind) or "").split()),
    }
    tables = {"Options (--option NAME=VALUE)": options, "Loop": _loop_rows(recipe.loop)}
    for one in shown:
        rows = [{"role": role, "bits": bits, "why": why} for role, bits, why in one.rows()]
        tables[f"Policy {one.name} at {one.nominal}"] = rows
    return Outcome(True, {"options": float(len(options))}, {"summary": summary, "tables": tables})


def _student(checkpoint: Checkpoint, settings: Settings) -> Any:
    schedule = NoiseSchedule.from_config(checkpoint.config.noise_schedule)
    with torch.random.fork_rng():
        torch.manual_seed(settings.loop.seed)
        return make_student(checkpoint.module.unet, schedule, settings.method, settings.policy, settings.options)


def _layer_rows(checkpoint: Checkpoint, policy: Policy) -> list[Row]:
    from diffusers.models.attention_processor import Attention

    unet = checkpoint.module.unet
    named: dict[str, Any] = dict(roles(unet))
    named |= {path: "attn_matmul" for path, module in unet.named_modules() if isinstance(module, Attention)}
    macs = _macs(checkpoint, list(named))
    rows = []
    for path, module in unet.named_modules():
        if path not in named:
            continue
        role, weight = named[path], getattr(module, "weight", None)
        rows.append(
            {
                "layer": path,
                "role": role,
                "bits": policy.bits[role],
                "in": 0 if weight is None else weight.shape[1] * getattr(module, "groups", 1),
                "out": 0 if weight is None else weight.shape[0],
                "kernel": "-" if weight is None else "x".join(map(str, weight.shape[2:])) or "1",
                "parameters": 0 if weight is None else _count(module),
                "macs": macs[path],
                "why": policy.reasons.get(role, ""),
            }
        )
    return rows


def _macs(checkpoint: Checkpoint, paths: list[str]) -> dict[str, int]:
    """Return multiply-accumulates for one image: of each layer, and of the two products of each attention block."""
    unet, found = checkpoint.module.unet, dict.fromkeys(paths, 0)

    def count(path: str) -> Callable[[nn.Module, Any, dict[str, Any], torch.Tensor], None]:
        def hook(module: nn.Module, _inputs: Any, named: dict[str, Any], output: torch.Tensor) -> None:
            weight = getattr(module, "weight", None)
            if weight is not None:
                found[path] = output.numel() // weight.shape[0] * weight.numel()
            else:  # each of L positions with every position, or with every token of the condition
                channels, tokens = output.shape[1 if output.ndim == 4 else -1], named.get("encoder_hidden_states")
                keys = output.numel() // channels if tokens is None else tokens.shape[1]
                found[path] = 2 * output.numel() * keys

        return hook

    handles = [unet.get_submodule(path).register_forward_hook(count(path), with_kwargs=True) for path in paths]
    zero = torch.zeros(1, dtype=torch.int64)
    try:
        with torch.no_grad():
            checkpoint.module.record(torch.zeros(1, *checkpoint.config.image_shape), zero, zero)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _stored_bytes(module: nn.Module) -> int:
    """Return the bytes of a checkpoint's tensors: floats are stored as float16."""
    tensors = module.state_dict().values()
    return sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in tensors)


def _stages_text(stages: Callable[..., Any]) -> str:
    """Return the first paragraph of what the recipe says about its stages."""
    return " ".join((inspect.getdoc(stages) or "").partition("\n\n")[0].split())


def _loop_rows(loop: LoopOptions) -> list[Row]:
    return [{"setting": field.name, "value": str(getattr(loop, field.name))} for field in fields(loop)]
