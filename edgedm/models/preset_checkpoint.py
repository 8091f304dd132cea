"""`preset:NAME`: a published architecture with seeded weights, wherever a checkpoint is expected.

    preset:ddpm-cifar10                                         full precision
    preset:ddpm-cifar10,method=bidm                             the method's first policy, its default options
    preset:ldm4-bedrooms,method=binarydm,policy=code,bases=lmb  a policy variant, an option of the method
    preset:ddpm-cifar10,method=bidm,policy=int8                 the options that a policy implies unless given
    preset:ddpm-cifar10,method=bidm,narrow=4                    a quarter of the channels, for tests and trials

The weights are those of `edgedm.models.seeded`: random, calibrated, the same in every process of one machine. A preset
shows what a method costs on an architecture, and that it is right; what it draws is noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from edgedm.errors import UnsupportedError
from edgedm.models import presets
from edgedm.models.checkpoint import Checkpoint, build
from edgedm.models.config import CheckpointConfig
from edgedm.models.preset_reference import PREFIX
from edgedm.models.roles import FLOAT
from edgedm.quant.api import method_options
from edgedm.quant.methods import METHODS
from edgedm.quant.policy import policy_of

SEED = 0
# by `narrow`; what UNet2DConditionModel calls attention_head_dim is the number of heads
_SCALED = {
    "UNet2DModel": ("block_out_channels", "norm_num_groups", "attention_head_dim"),
    "UNet2DConditionModel": ("block_out_channels", "norm_num_groups", "cross_attention_dim"),
    "VQModel": ("block_out_channels", "norm_num_groups"),
}


@dataclass(frozen=True)
class Preset:
    """An architecture (arguments of `class_name`) and its noise schedule; of a latent model the VQModel too."""

    architecture: Mapping[str, Any]
    noise_schedule: Mapping[str, Any]
    class_name: str = "UNet2DModel"
    decoder: Mapping[str, Any] | None = None
    condition_tokens: int | None = None


PRESETS: Mapping[str, Preset] = {
    "ddpm-cifar10": Preset(presets.DDPM_CIFAR10, presets.DDPM_NOISE),
    "ldm4-bedrooms": Preset(presets.LDM4_BEDROOMS, presets.LDM_NOISE),
    "latent-text": Preset(
        presets.LATENT_TEXT,
        presets.LDM_NOISE,
        "UNet2DConditionModel",
        presets.LATENT_DECODER,
        presets.LATENT_TEXT_TOKENS,
    ),
    "latent-class": Preset(presets.LATENT_CLASS, presets.LDM_NOISE, "UNet2DConditionModel", presets.LATENT_DECODER),
}


@dataclass(frozen=True)
class PresetReference:
    """A parsed `preset:...`; `options` are the method's own, as text."""

    name: str
    method: str = "fp32"
    policy: str | None = None
    narrow: int = 1
    options: Mapping[str, str] = field(default_factory=dict)


def load_preset(text: str) -> Checkpoint:
    """Return the checkpoint of a `preset:...`; raises as `read_reference` and `preset_config` do."""
    return build(preset_config(read_reference(text)), SEED)


def read_reference(text: str) -> PresetReference:
    """Parse `preset:NAME[,KEY=VALUE...]`. Raises `UnsupportedError` for an unknown name or a part that is no pair."""
    name, *parts = text.removeprefix(PREFIX).split(",")
    if name not in PRESETS:
        raise UnsupportedError(f"{text}: expected one of {', '.join(PREFIX + each for each in PRESETS)}")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value) or key in options:
            raise UnsupportedError(f"{text}: {part!r}: expected KEY=VALUE, each key once")
        options[key] = value
    narrow = options.pop("narrow", "1")
    if not narrow.isdecimal() or int(narrow) not in (1, 2, 4, 8, 16):
        raise UnsupportedError(f"{text}: narrow: expected 1, 2, 4, 8 or 16, got {narrow!r}")
    method, policy = options.pop("method", "fp32"), options.pop("policy", None)
    return PresetReference(name, method, policy, int(narrow), options)


def preset_config(reference: PresetReference) -> CheckpointConfig:
    """Return the config of a preset. Raises `UnsupportedError` for an unknown method, policy or option."""
    preset = PRESETS[reference.name]
    architecture = _narrowed(preset.class_name, preset.architecture, reference.narrow)
    config: dict[str, Any] = {
        "architecture": {"class_name": preset.class_name, "config": architecture},
        "method": "fp32",
        "roles": FLOAT,
        "noise_schedule": dict(preset.noise_schedule),
        "null_class": classes - 1 if (classes := architecture.get("num_class_embeds")) else None,
        "condition_tokens": preset.condition_tokens,
    }
    if preset.decoder is not None:
        decoder = _narrowed("VQModel", preset.decoder, reference.narrow)
        config["decoder"] = {"class_name": "VQModel", "config": decoder}
    if reference.method == "fp32":
        if reference.options or reference.policy not in (None, "float"):
            raise UnsupportedError(f"{PREFIX}{reference.name}: a policy or an option, but no method; add method=NAME")
        return CheckpointConfig.model_validate(config)
    policy = policy_of(reference.method, reference.policy)
    options, method = method_options(reference.method, reference.options, policy), METHODS[reference.method]
    with torch.device("meta"):
        taps = method.taps(CheckpointConfig.model_validate(config).float_unet(), options)
    bins, count = method.bins(options), int(preset.noise_schedule["num_train_timesteps"])
    config |= {
        "method": reference.method,
        "roles": dict(policy.bits),
        "options": options.model_dump(mode="json"),
        "taps": taps,
        "timestep_bins": [row * count // bins for row in range(bins)] if bins > 1 else [],
    }
    return CheckpointConfig.model_validate(config)


def _narrowed(class_name: str, architecture: Mapping[str, Any], divisor: int) -> dict[str, Any]:
    config = dict(architecture)
    for key in _SCALED[class_name]:
        value = config.get(key)
        if isinstance(value, list):
            config[key] = [each // divisor for each in value]
        elif value is not None:
            config[key] = value // divisor
    return config
