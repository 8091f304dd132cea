"""From a float checkpoint to a trained low-bit one."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import Checkpoint, CheckpointConfig
from edgedm.models.attention import make_attention_explicit
from edgedm.models.denoiser import Denoiser
from edgedm.quant.api import DEFAULT_EDGES, make_inference, method_options, quantize_layers
from edgedm.quant.methods import METHODS
from edgedm.quant.methods.method import Options
from edgedm.quant.policy import Policy, policy_of
from edgedm.training.data import Batches, load_digits
from edgedm.training.loop import Curve, train
from edgedm.training.objective import Run
from edgedm.training.options import LoopOptions
from edgedm.training.recipes import RECIPES

INITIAL_MIX = 0.3


@dataclass(frozen=True)
class Trained:
    """A finished run: what ships, the loss curve of each stage, and what the recipe measured."""

    checkpoint: Checkpoint
    denoiser: Denoiser
    curves: dict[str, Curve]
    figures: dict[str, float]


def make_student(
    teacher: nn.Module, schedule: NoiseSchedule, method: str, policy: Policy, options: Options
) -> Denoiser:
    """Return a trainable low-bit copy of `teacher`, a float UNet."""
    unet = copy.deepcopy(teacher).requires_grad_(True)
    make_attention_explicit(unet)
    taps = METHODS[method].taps(unet, options)
    bins = METHODS[method].bins(options)
    edges = [i * schedule.num_train_timesteps // bins for i in range(bins)] if bins > 1 else list(DEFAULT_EDGES)
    quantize_layers(unet, method, policy, options=options, edges=edges)
    student = Denoiser(unet, taps, edges)
    if taps:
        nn.init.constant_(student.cache_coefficients, INITIAL_MIX)
    return student


def run_method(
    base: Checkpoint,
    method: str,
    folder: Path,
    *,
    policy: Policy | None = None,
    options: Options | Mapping[str, Any] | None = None,
    data: str = "digits",
    loop: LoopOptions | None = None,
) -> Trained:
    """Train `method` from the float checkpoint `base`; states are kept in `folder`, from which a rerun goes on."""
    if method not in RECIPES:
        raise UnsupportedError(f"method: expected one of {', '.join(RECIPES)}, got {method!r}")
    if base.config.method != "fp32":
        raise InvalidModelError(f"base: expected a full-precision checkpoint, got one made by {base.config.method}")
    recipe = RECIPES[method]
    settings = method_options(method, options)
    chosen = policy or policy_of(method)
    loop = loop or recipe.loop
    schedule = NoiseSchedule.from_config(base.config.noise_schedule)
    teacher = base.module.unet.eval().requires_grad_(False)
    torch.manual_seed(loop.seed)
    student = make_student(teacher, schedule, method, chosen, settings)
    run = Run(
        student=student,
        teacher=teacher,
        batches=None if recipe.data_free else _batches(data, base.config, schedule, loop),
        schedule=schedule,
        shape=image_shape(base.config),
        null_class=base.config.null_class,
        options=settings,
        loop=loop,
    )
    curves, final = {}, student
    for stage in recipe.stages(run):
        result, curves[stage.name] = train(stage, folder / stage.name)
        assert isinstance(result, Denoiser)
        final = run.trained = result
    return Trained(to_checkpoint(final, base.config, method, chosen, settings), final, curves, run.figures)


def image_shape(config: CheckpointConfig) -> tuple[int, int, int]:
    """Return (C, H, W) of the images of an architecture."""
    architecture = config.architecture.config
    size = architecture["sample_size"]
    return int(architecture["in_channels"]), size, size


def to_checkpoint(
    denoiser: Denoiser, base: CheckpointConfig, method: str, policy: Policy, options: Options
) -> Checkpoint:
    """Return the checkpoint of a denoiser that was trained from `base`: packed layers, tables, config."""
    unet = copy.deepcopy(denoiser.unet)
    for module in unet.modules():
        module._forward_hooks.clear()  # the taps of `denoiser` and those of distillation
    make_inference(unet)
    bins = METHODS[method].bins(options)
    count = NoiseSchedule.from_config(base.noise_schedule).num_train_timesteps
    edges = [i * count // bins for i in range(bins)] if bins > 1 else []
    module = Denoiser(unet, denoiser.taps, edges)
    if denoiser.taps:
        module.cache_coefficients.data.copy_(denoiser.cache_coefficients.data)
    changed = {
        "method": method,
        "roles": dict(policy.bits),
        "options": options.model_dump(mode="json"),
        "taps": denoiser.taps,
        "timestep_bins": edges,
    }
    config = CheckpointConfig.model_validate({**base.model_dump(), **changed})
    return Checkpoint(config, module.eval().requires_grad_(False))


def _batches(data: str, config: CheckpointConfig, schedule: NoiseSchedule, loop: LoopOptions) -> Batches:
    if data != "digits":
        raise UnsupportedError(f"data: expected 'digits', got {data!r}")
    digits = load_digits(image_shape(config)[1])
    return Batches(
        digits.train_images, digits.train_labels, schedule, loop.batch, config.null_class, loop.label_dropout
    )
