"""From a float checkpoint to a trained low-bit one."""

import copy
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgedm import progress
from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import Checkpoint, CheckpointConfig
from edgedm.models.attention import make_attention_explicit
from edgedm.models.denoiser import Denoiser
from edgedm.quant.api import DEFAULT_EDGES, make_inference, method_options, quantize_layers
from edgedm.quant.methods import METHODS
from edgedm.quant.methods.method import Options
from edgedm.quant.policy import Policy, policy_of
from edgedm.training import identity as identities
from edgedm.training.data import Batches, Images
from edgedm.training.interrupt import Interrupts
from edgedm.training.loop import train
from edgedm.training.objective import Recipe, Run
from edgedm.training.options import LoopOptions
from edgedm.training.processes import Processes
from edgedm.training.prompts import prompts_identity, read_prompts
from edgedm.training.recipes import RECIPES
from edgedm.training.sources import NONE, open_images
from edgedm.training.state import Curve

DEFAULT_DATA = "digits"
File = str | os.PathLike[str]
TRAINED = ("UNet2DModel", "UNet2DConditionModel")  # the architectures that the recipes call
# what a recipe that trains nothing has no use for: setting -> the option that sets it
_OF_TRAINING = {
    "iterations": "--iterations",
    "batch": "--batch",
    "learning_rate": "--learning-rate",
    "ema_decay": "--ema",
    "bf16": "--precision",
}


@dataclass(frozen=True)
class Trained:
    """A finished run: what ships, the loss curve of each stage, and figures, all on the CPU.

    `figures` holds each stage's last losses and seconds (`STAGE.loss`), the recipe's own, and
    `peak_memory_bytes` of this process (`peak_gpu_memory_bytes` of its GPU).
    """

    checkpoint: Checkpoint
    denoiser: Denoiser
    curves: dict[str, Curve]
    figures: dict[str, float]


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do, checked and with every default filled in."""

    method: str
    recipe: Recipe
    policy: Policy
    options: Options
    loop: LoopOptions
    data: str
    prompts: Tensor | None = None


def settle(
    base: CheckpointConfig,
    method: str,
    policy: Policy | None = None,
    options: Options | Mapping[str, Any] | None = None,
    data: str = DEFAULT_DATA,
    loop: LoopOptions | None = None,
    conditions: File | None = None,
    negative: File | None = None,
) -> Settings:
    """Check what `run_method` is asked for and fill in the defaults; raises as `run_method` does."""
    if method not in RECIPES:
        raise UnsupportedError(f"method: expected one of {', '.join(RECIPES)}, got {method!r}")
    if base.method != "fp32":
        raise InvalidModelError(f"base: expected a full-precision checkpoint, got one made by {base.method}")
    recipe = RECIPES[method]
    if data == NONE and not recipe.data_free:
        raise UnsupportedError(f"data: {method} trains on images, give --data; without data train {_data_free()}")
    if recipe.data_free and data not in (NONE, DEFAULT_DATA):
        raise UnsupportedError(f"data: {method} trains without images, got {data!r}; leave --data out")
    if base.architecture.class_name not in TRAINED:
        raise UnsupportedError(
            f"base: the recipes train {' and '.join(TRAINED)}, got {base.architecture.class_name}; swap the layers "
            "of the module (edgedm.quantize(module, method)), train it by a loop of your own and make a checkpoint "
            "of it (edgedm.models.from_module)"
        )
    if base.decoder is not None and not recipe.data_free:
        raise UnsupportedError(
            f"base: it draws latents, which a decoder turns into images, and {method} trains on images as they are; "
            f"train a method without data: {_data_free()}"
        )
    if base.prediction_type != "epsilon" and not recipe.data_free:
        raise UnsupportedError(f"base: {method} trains on the noise, but the base predicts {base.prediction_type}")
    chosen, settings = policy or policy_of(method), loop or recipe.loop
    _check_loop(method, recipe, settings)
    prompts = _prompts(base, method, recipe, conditions, negative)
    return Settings(method, recipe, chosen, method_options(method, options, chosen), settings, data, prompts)


def make_student(
    teacher: nn.Module,
    schedule: NoiseSchedule,
    method: str,
    policy: Policy,
    options: Options,
    prompts: Tensor | None = None,
) -> Denoiser:
    """Return a trainable low-bit copy of `teacher`, a float UNet; labels are rows of `prompts` where there are some."""
    unet = copy.deepcopy(teacher).requires_grad_(True)
    make_attention_explicit(unet)
    taps = METHODS[method].taps(unet, options)
    bins = METHODS[method].bins(options)
    edges = [i * schedule.num_train_timesteps // bins for i in range(bins)] if bins > 1 else list(DEFAULT_EDGES)
    quantize_layers(unet, method, policy, options=options, edges=edges)
    student = Denoiser(unet, taps, edges, prompts=prompts)
    if taps:
        nn.init.constant_(student.cache_coefficients, METHODS[method].mix(options))
    return student


def run_method(
    base: Checkpoint,
    method: str,
    folder: Path,
    *,
    policy: Policy | None = None,
    options: Options | Mapping[str, Any] | None = None,
    data: str = DEFAULT_DATA,
    loop: LoopOptions | None = None,
    conditions: File | None = None,
    negative: File | None = None,
    restart: bool = False,
    log: Path | None = None,
) -> Trained:
    """Train `method` from the float checkpoint `base`; states are kept in `folder`, from which a rerun goes on.

    `policy`, `options` and `loop` default to the method's own. `data` is "digits", "folder:PATH", "cifar10:PATH",
    or, for a data-free method, "none". A base that reads text is trained along trajectories of the prompts in the
    .npy file `conditions`, f32[N, T, D], and of `negative`, f32[T, D], which means none. `restart` discards the states
    in `folder`; `log` gets TensorBoard events.
    Under `accelerate launch` all processes must call this; each returns the same.

    Raises `UnsupportedError` for an unknown method, option or data set and for states of another run,
    `InvalidModelError` for a base that is not full precision or files that cannot be read, `DivergedError` where
    training leaves the finite numbers, and `TrainingInterrupted` on SIGINT and SIGTERM, after saving.
    """
    settings = settle(base.config, method, policy, options, data, loop, conditions, negative)
    kept = f"{method}: interrupted; what was saved is in {folder}, and the same command goes on from it"
    with Interrupts(kept, at_once=True), torch.random.fork_rng():
        return _run(base, settings, folder, restart, log)


def _data_free() -> str:
    return ", ".join(name for name, recipe in RECIPES.items() if recipe.data_free)


def _prompts(
    base: CheckpointConfig, method: str, recipe: Recipe, conditions: File | None, negative: File | None
) -> Tensor | None:
    """Return the prompts that stand for classes, of a base that reads text; else None."""
    shape, added = base.condition_shape, base.architecture.config.get("addition_embed_type")
    if added is not None:
        raise UnsupportedError(f"base: it reads conditions beside text (addition_embed_type {added!r}); no recipe does")
    if shape is None:
        base.check_condition()
        if conditions is not None or negative is not None:
            raise UnsupportedError("conditions, negative: the base reads no text; leave them out")
        return None
    if not recipe.data_free:
        raise UnsupportedError(
            f"base: it reads text, and {method} trains on images, which come without; train a method without data: "
            f"{_data_free()}"
        )
    if base.null_class is not None:
        raise UnsupportedError("base: it takes class labels beside text; recipes draw by one of the two")
    if conditions is None:
        raise UnsupportedError(
            f"conditions: the base reads text; give --conditions FILE, a .npy array of float32 [N, {shape[0]}, "
            f"{shape[1]}]: what its text encoder makes of N prompts such as it will be asked for"
        )
    return read_prompts(conditions, negative, shape)


def _check_loop(method: str, recipe: Recipe, loop: LoopOptions) -> None:
    if method == "dilatequant" and loop.ema_decay != 0:
        # the next stage goes on from the student: only the last block's average would ship
        raise UnsupportedError(f"{method}: blocks are trained one after the other and keep no average; --ema 0")
    if recipe.loop.iterations:
        return
    for name, option in _OF_TRAINING.items():
        default, given = getattr(recipe.loop, name), getattr(loop, name)
        if given != default:
            raise UnsupportedError(f"{method}: {name} is {given}, but nothing is trained; leave {option} out")


def _run(base: Checkpoint, settings: Settings, folder: Path, restart: bool, log: Path | None) -> Trained:
    method, loop, config = settings.method, settings.loop, base.config
    processes = Processes()
    progress.enabled &= processes.is_main
    images = None if settings.recipe.data_free else _open(settings.data, config)
    identity = _identity(base, settings, images)
    if processes.is_main:
        identities.claim(folder, identity | _shared(processes), restart)
    processes.wait()
    schedule = NoiseSchedule.from_config(config.noise_schedule)
    prompts = settings.prompts
    device, null_class = processes.device, config.null_class if prompts is None else len(prompts) - 1
    teacher = copy.deepcopy(base.module.unet).to(device).eval().requires_grad_(False)
    torch.manual_seed(loop.seed)
    student = make_student(teacher, schedule, method, settings.policy, settings.options, prompts).to(device)
    batches = None
    if images is not None:
        batches = Batches(images, schedule, loop.batch, null_class, loop.label_dropout, device)
    run = Run(
        student=student,
        teacher=teacher,
        batches=batches,
        schedule=schedule,
        shape=config.image_shape,
        null_class=null_class,
        options=settings.options,
        loop=loop,
    )
    curves: dict[str, Curve] = {}
    final = student
    for stage in settings.recipe.stages(run):
        result, curves[stage.name] = train(stage, folder / stage.name, identity=identity, log=log)
        assert isinstance(result, Denoiser)
        final = run.trained = result
    figures = _stage_figures(curves) | run.figures | _memory(device)
    final = final.cpu()
    made = to_checkpoint(final, config, method, settings.policy, settings.options)
    return Trained(replace(made, decoder=base.decoder), final, curves, figures)


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
    module = Denoiser(unet, denoiser.taps, edges, condition=base.condition_shape)
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


def _open(data: str, config: CheckpointConfig) -> Images:
    images = open_images(data, config.image_shape)
    if config.null_class is not None and images.classes > config.null_class:
        raise UnsupportedError(
            f"data: {data} has {images.classes} classes, the base knows {config.null_class}; put all images into one "
            "folder to train without labels"
        )
    return images


def record_of(base: Checkpoint, settings: Settings) -> identities.Identity:
    """Return what `run.json` says of the run that `run_method` would make, without training anything."""
    images = None if settings.recipe.data_free else _open(settings.data, base.config)
    return _identity(base, settings, images) | _shared(Processes())


def _shared(processes: Processes) -> identities.Identity:
    return {"processes": processes.count}


def _identity(base: Checkpoint, settings: Settings, images: Images | None) -> identities.Identity:
    prompts = settings.prompts
    return identities.flat(
        {
            "method": settings.method,
            "base": identities.of_module(base.module),
            "policy": settings.policy.name,
            "bits": dict(settings.policy.bits),
            "option": settings.options.model_dump(mode="json"),
            "loop": identities.of_loop(settings.loop),
            "data": NONE if images is None else images.identity,
        }
    ) | ({} if prompts is None else {"conditions": prompts_identity(prompts)})


def _stage_figures(curves: Mapping[str, Curve]) -> dict[str, float]:
    return {f"{name}.{key}": value for name, curve in curves.items() if curve for key, value in curve[-1].items()}


def _memory(device: torch.device) -> dict[str, float]:
    figures = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        figures["peak_memory_bytes"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    if device.type == "cuda":
        figures["peak_gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(device))
    return figures
