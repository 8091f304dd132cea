"""A checkpoint from a module of diffusers that is in memory: one trained by a loop of the user's own.

edgedm.quantize(unet, "efficientdm")       # then calibrate and train it
edgedm.models.from_module(unet, scheduler)  # what every verb takes
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import nn

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.files import first_fault
from edgedm.models.checkpoint import Checkpoint, skeleton
from edgedm.models.config import CheckpointConfig
from edgedm.models.roles import FLOAT
from edgedm.quant.api import DEFAULT_EDGES, make_inference, record_of


def from_module(
    module: nn.Module, scheduler: Any, *, null_class: int | None = None, condition_tokens: int | None = None
) -> Checkpoint:
    """Return the checkpoint of a diffusers `UNet2DModel`, `UNet2DConditionModel` or `DiTTransformer2DModel`.

    The module is full precision, or was given to `edgedm.quantize` and trained; it is left as it is. `scheduler` is
    the diffusers scheduler that it was trained with, or its config. `null_class` is the class label that means "none",
    of a model with classes; `condition_tokens` how many vectors a model with cross-attention reads.

    Raises `UnsupportedError` for a module of another class or a schedule that cannot be sampled, `InvalidModelError`
    for tensors that are not finite or not what the module's config and method say, naming the first.
    """
    if not isinstance(getattr(module, "config", None), Mapping):
        raise UnsupportedError(
            f"module: expected a model of diffusers, whose config says how to build it again, got "
            f"{type(module).__name__}"
        )
    arguments = _public(module.config)
    schedule = NoiseSchedule.from_config(_public(getattr(scheduler, "config", scheduler)))
    made = record_of(module)
    low_bit: dict[str, Any] = {"method": "fp32", "roles": FLOAT}
    if made is not None:
        bins = [] if tuple(made.edges) == DEFAULT_EDGES else list(made.edges)
        low_bit = {"method": made.method, "roles": made.bits, "options": made.options, "timestep_bins": bins}
    try:
        config = CheckpointConfig.model_validate(
            {
                "architecture": {"class_name": type(module).__name__, "config": json.loads(json.dumps(arguments))},
                "prediction_type": schedule.prediction_type,
                "noise_schedule": schedule.model_dump(mode="json"),
                "null_class": null_class,
                "condition_tokens": condition_tokens,
                **low_bit,
            }
        )
    except ValidationError as error:
        raise UnsupportedError(f"module: {first_fault(error)}") from error
    trained = copy.deepcopy(module).cpu().float()
    make_inference(trained)
    try:
        made_anew = skeleton(config)
    except InvalidModelError as error:
        raise UnsupportedError(f"module: {error}") from error
    _load(made_anew.unet, trained)
    return Checkpoint(config, made_anew)


def _public(config: Any) -> dict[str, Any]:
    """What a config of diffusers says of the object; the rest is about the class and the library."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _load(built: nn.Module, trained: nn.Module) -> None:
    """Give `built` the tensors of `trained`, after a look at names, shapes and values."""
    wanted, given = built.state_dict(), trained.state_dict()
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given or name not in wanted:
            where = "has no" if name not in given else "has an unknown"
            raise InvalidModelError(
                f"module: it {where} tensor {name!r}; expected the layers that its config and method say: swap layers "
                "by edgedm.quantize, which notes how, and change no others"
            )
        if wanted[name].shape != given[name].shape:
            expected, got = list(wanted[name].shape), list(given[name].shape)
            raise InvalidModelError(f"module: tensor {name!r}: expected shape {expected}, got {got}")
        if not bool(given[name].isfinite().all()):
            raise InvalidModelError(f"module: tensor {name!r}: expected finite numbers, got NaN or infinity")
    built.load_state_dict(given)
