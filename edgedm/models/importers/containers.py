"""What the authors' training scripts wrap a state dict in: Lightning's file with a `state_dict`, ddim's list."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from edgedm.errors import InvalidModelError
from edgedm.models.importers.tensors import Tensors

if TYPE_CHECKING:
    from edgedm.models.importers.layout import Report

Weights = Literal["ema", "raw"]

UNET = "model.diffusion_model."
_EMA = "model_ema."
# LatentDiffusion's other parts: the averaged copy, BinaryDM's and BiDM's teacher, the autoencoder, the condition
_OTHER_PARTS = (_EMA, "model2.", "model2_ema.", "first_stage_model.", "cond_stage_model.")
_SCHEDULE = {  # DDPM's buffers
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "cond_ids",
}
_DDIM_EMA = 4  # index in [model, optimizer, epoch, step, ema]


def latent_diffusion(
    content: Any, file: str, weights: Weights, prefix: str = UNET, report: "Report | None" = None
) -> Tensors:
    """Return the UNet's tensors of a LatentDiffusion module's state dict, and its `betas` if it has them.

    `weights="ema"` takes the averaged copy, `model_ema.<the name without its dots>`, of everything that has one
    (parameters do, buffers don't); the report counts the others. Raises `InvalidModelError` where there is none or a
    tensor, averaged or not, belongs nowhere.
    """
    state = state_dict(content.get("state_dict", content) if isinstance(content, Mapping) else content, file)
    values: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, value in state.items():
        if name.startswith(prefix):
            short = name.removeprefix(prefix)
            values[short], origin[short] = value, name
        elif name not in _SCHEDULE and not name.startswith(_OTHER_PARTS):
            raise InvalidModelError(f"{file}: tensor {name!r} belongs to no part of a LatentDiffusion checkpoint")
    if not values:
        raise InvalidModelError(f"{file}: no tensor's name starts with {prefix!r}; is it another layout?")
    if weights == "ema":
        raw = _take_averages(state, values, origin, prefix, file)
        if report is not None:
            report.count("ema.without_average", len(raw))
            if raw:
                report.say(f"weights: {len(raw)} tensors have no average and are raw: {', '.join(raw[:3])}")
    if "betas" in state:
        values["betas"] = state["betas"]
    return Tensors(file, values, origin, prefix)


def ddim_list(content: Any, file: str, weights: Weights) -> Tensors:
    """Return the tensors of ddim's list [model, optimizer, epoch, step, ema] or of a plain state dict.

    The model's names may start with `module.` (DataParallel); those of the average don't.
    """
    if isinstance(content, list | tuple):
        index = _DDIM_EMA if weights == "ema" else 0
        if len(content) <= index:
            raise InvalidModelError(
                f"{file}: expected a list [model, optimizer, epoch, step, ema], got {len(content)} entries; "
                "weights=raw reads the first"
            )
        content = content[index]
    elif weights == "ema":
        raise InvalidModelError(f"{file}: a plain state dict holds no averaged copy; read it with weights=raw")
    return plain(content, file, "module.")


def plain(content: Any, file: str, prefix: str = "") -> Tensors:
    """Return the tensors of a state dict whose names may start with `prefix`."""
    state = state_dict(content, file)
    origin = {name.removeprefix(prefix): name for name in state}
    if len(origin) != len(state):
        raise InvalidModelError(f"{file}: some names stand twice, with and without {prefix!r}")
    return Tensors(file, {short: state[name] for short, name in origin.items()}, origin)


def state_dict(content: Any, file: str) -> dict[str, Tensor]:
    """Return `content` if it is {name: tensor}; else raise `InvalidModelError`."""
    if not isinstance(content, Mapping) or not content:
        raise InvalidModelError(f"{file}: expected a state dict of tensors by name, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InvalidModelError(
                f"{file}: expected a state dict of tensors by name, got {type(value).__name__} under {name!r}"
            )
    return dict(content)


def _take_averages(
    state: Mapping[str, Tensor], values: dict[str, Tensor], origin: dict[str, str], prefix: str, file: str
) -> list[str]:
    """Replace values by their averages; return the names of the floating-point tensors that have none."""
    inner = prefix.removeprefix("model.")  # LitEma averages LatentDiffusion.model
    averages: dict[str, str] = {}
    for short in values:
        name = _EMA + (inner + short).replace(".", "")
        if name in averages:
            raise InvalidModelError(f"{file}: tensor {name!r} may mean {averages[name]!r} or {short!r}: weights=raw")
        averages[name] = short
    found = {short: name for name, short in averages.items() if name in state}
    if not found:
        raise InvalidModelError(f"{file}: no averaged copy ('{_EMA}...'); read the raw weights with weights=raw")
    strangers = sorted(name for name in state if name.startswith(_EMA + "diffusion_model") and name not in averages)
    if strangers:
        raise InvalidModelError(f"{file}: tensor {strangers[0]!r} averages nothing of the model: weights=raw")
    raw = [origin[short] for short in values if short not in found and values[short].is_floating_point()]
    for short, name in found.items():
        values[short], origin[short] = state[name], name
    return raw
