"""A full-precision `UNet2DModel` from a local folder of diffusers, as `save_pretrained` writes it; safetensors only.

    PATH/unet/config.json, PATH/unet/diffusion_pytorch_model.safetensors, PATH/scheduler/scheduler_config.json
    PATH/config.json, PATH/diffusion_pytorch_model.safetensors, PATH/scheduler_config.json     (all in one folder)

Nothing is downloaded and nothing unpickled.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.checkpoint import Checkpoint, read_tensors, skeleton
from edgedm.models.config import Architecture, CheckpointConfig
from edgedm.models.roles import FLOAT

CONFIG_FILE, SCHEDULER_FILE = "config.json", "scheduler_config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
UNET = "UNet2DModel"
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")

_MAX_CONFIG_BYTES = 1 << 20
# the names of attention layers before diffusers 0.18
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_diffusers(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a folder of diffusers rather than a checkpoint of edgedm."""
    folder = Path(path)
    if (folder / "unet" / CONFIG_FILE).is_file():
        return True
    return (folder / CONFIG_FILE).is_file() and "_class_name" in _read_json(folder / CONFIG_FILE)


def load_diffusers(path: str | os.PathLike[str], null_class: int | None = None) -> Checkpoint:
    """Load a folder of diffusers as a full-precision checkpoint.

    `null_class` is the class label that means "none", needed for a model with classes: diffusers does not record it.
    Raises `InvalidModelError` for missing, broken or inconsistent files, `UnsupportedError` for another kind of model
    or scheduler.
    """
    root = Path(path)
    folder = root / "unet" if (root / "unet" / CONFIG_FILE).is_file() else root
    architecture = _architecture(folder / CONFIG_FILE)
    schedule = NoiseSchedule.from_config(_scheduler(root, folder))
    if architecture.get("num_class_embeds") is not None and null_class is None:
        raise UnsupportedError(
            f"{folder / CONFIG_FILE}: the model takes class labels; say which one means none: "
            "edgedm.models.diffusers_dir.load_diffusers(PATH, null_class=...), then save it as a checkpoint"
        )
    config = CheckpointConfig(
        architecture=Architecture(class_name=UNET, config=architecture),
        prediction_type=schedule.prediction_type,
        method="fp32",
        roles=FLOAT,
        noise_schedule=schedule.model_dump(mode="json"),
        null_class=null_class,
    )
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InvalidModelError(f"{weights}: no such file; save the model with safe_serialization=True, in one file")
    names = _names(weights)
    wanted = _expected(config, folder / CONFIG_FILE, len(names))
    named = {name: _present(name) for name in names}
    twice = sorted(ours for ours, count in Counter(named.values()).items() if count > 1)
    if twice:
        raise InvalidModelError(f"{weights}: tensors {twice[:3]} stand twice, under their former and present names")
    expected = {given: wanted[ours] for given, ours in named.items() if ours in wanted}
    expected |= {name: wanted[name] for name in wanted.keys() - set(named.values())}
    unknown = sorted(given for given, ours in named.items() if ours not in wanted)
    if unknown:
        raise InvalidModelError(f"{weights}: unknown tensors {unknown[:3]}")
    tensors = {named[given]: tensor for given, tensor in read_tensors(weights, expected).items()}
    module = skeleton(config)
    module.unet.load_state_dict(tensors)
    return Checkpoint(config, module)


def _expected(config: CheckpointConfig, path: Path, stored: int) -> dict[str, Tensor]:
    """Return the UNet's tensors without memory, so that the file's are held against them before any is allocated.

    Raises `InvalidModelError` for more layers than the file has tensors, which would take long even so.
    """
    layers = config.architecture.config.get("layers_per_block")
    if isinstance(layers, int) and layers > stored:
        raise InvalidModelError(f"{path}: layers_per_block: {layers} layers, but the file has {stored} tensors")
    with torch.device("meta"):
        return skeleton(config).unet.state_dict()


def _architecture(path: Path) -> dict[str, Any]:
    values = _read_json(path)
    kind = values.get("_class_name")
    if kind != UNET:
        raise UnsupportedError(f"{path}: expected a {UNET}, got {kind!r}")
    if not isinstance(values.get("sample_size"), int):
        raise UnsupportedError(f"{path}: sample_size: expected one number, got {values.get('sample_size')!r}")
    return {key: value for key, value in values.items() if not key.startswith("_")}


def _scheduler(root: Path, folder: Path) -> dict[str, Any]:
    """Return the scheduler's config: of the pipeline, or beside the model."""
    places = (root / "scheduler", root, folder, *([root.parent / "scheduler"] if root.name == "unet" else []))
    for place in places:
        if (place / SCHEDULER_FILE).is_file():
            values = _read_json(place / SCHEDULER_FILE)
            kind = values.get("_class_name", SCHEDULERS[0])
            if kind not in SCHEDULERS:
                raise UnsupportedError(
                    f"{place / SCHEDULER_FILE}: expected {' or '.join(SCHEDULERS)}, got {kind}; save the config of "
                    "one of these with the same betas"
                )
            return values
    raise InvalidModelError(f"{root}: no scheduler/{SCHEDULER_FILE}: without it the noise schedule is unknown")


def _present(name: str) -> str:
    """Return today's name of a tensor."""
    layer, dot, leaf = name.rpartition(".")
    head, _, last = layer.rpartition(".")
    return f"{head}.{_FORMER[last]}{dot}{leaf}" if ".attentions." in name and last in _FORMER else name


def _names(path: Path) -> list[str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise InvalidModelError(f"{path}: not a whole safetensors file: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise InvalidModelError(f"{path}: expected at most {_MAX_CONFIG_BYTES} bytes of JSON")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidModelError(f"{path}: expected a JSON object")
    return values
