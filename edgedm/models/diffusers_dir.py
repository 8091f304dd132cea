"""A full-precision UNet from a local folder of diffusers, as `save_pretrained` writes it; safetensors only.

    PATH/unet/config.json, PATH/unet/diffusion_pytorch_model.safetensors, PATH/scheduler/scheduler_config.json
    PATH/vqvae/... or PATH/vae/...      the autoencoder of a latent model, whose decoder is kept
    PATH/config.json, PATH/diffusion_pytorch_model.safetensors, PATH/scheduler_config.json     (all in one folder)

A model with cross-attention reads as many vectors as the pipeline's text encoder makes: PATH/tokenizer or the encoder's
own config says how many.

Nothing is downloaded and nothing unpickled.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.files import check_inside, first_fault, read_json
from edgedm.models.checkpoint import Checkpoint, blank_decoder, read_tensors, skeleton, tensor_entries
from edgedm.models.config import MOST_TOKENS, Architecture, CheckpointConfig, DecoderArchitecture
from edgedm.models.decoder import LatentDecoder
from edgedm.models.plausible import check_layers
from edgedm.models.roles import FLOAT
from edgedm.models.trial import check_runs

CONFIG_FILE, SCHEDULER_FILE = "config.json", "scheduler_config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
UNETS = ("UNet2DModel", "UNet2DConditionModel")
AUTOENCODERS = {"vqvae": "VQModel", "vae": "AutoencoderKL"}  # folder of a pipeline -> what is usual there
_ENCODER = ("encoder.", "quant_conv.")  # tensors of an autoencoder that sampling has no use for
_LENGTHS = (  # where a pipeline says how many tokens its prompts have
    ("tokenizer/tokenizer_config.json", "model_max_length"),
    ("text_encoder/config.json", "max_position_embeddings"),
    ("bert/config.json", "max_position_embeddings"),
)
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


def load_diffusers(
    path: str | os.PathLike[str], null_class: int | None = None, condition_tokens: int | None = None
) -> Checkpoint:
    """Load a folder of diffusers as a full-precision checkpoint.

    `null_class` is the class label that means "none", needed for a model with classes: diffusers does not record it.
    `condition_tokens` is how many vectors a model with cross-attention reads, where the folder does not say.
    Raises `InvalidModelError` for missing, broken or inconsistent files, `UnsupportedError` for another kind of model
    or scheduler.
    """
    root = Path(path)
    _check_parts(root)
    folder = root / "unet" if (root / "unet" / CONFIG_FILE).is_file() else root
    class_name, architecture = _architecture(folder / CONFIG_FILE)
    schedule = NoiseSchedule.from_config(_scheduler(root, folder))
    if architecture.get("num_class_embeds") is not None and null_class is None:
        raise UnsupportedError(
            f"{folder / CONFIG_FILE}: the model takes class labels; say which one means none: "
            "edgedm.models.diffusers_dir.load_diffusers(PATH, null_class=...), then save it as a checkpoint"
        )
    try:
        described = Architecture.model_validate({"class_name": class_name, "config": architecture})
        config = CheckpointConfig(
            architecture=described,
            prediction_type=schedule.prediction_type,
            method="fp32",
            roles=FLOAT,
            noise_schedule=schedule.model_dump(mode="json"),
            null_class=null_class,
            decoder=_decoder_architecture(root),
            condition_tokens=_tokens(root, described, condition_tokens),
        )
    except ValidationError as error:
        raise InvalidModelError(f"{folder / CONFIG_FILE}: {first_fault(error)}") from error
    names = _names(folder / WEIGHTS_FILE)
    tensors = _read(folder / WEIGHTS_FILE, names, _expected(config, folder / CONFIG_FILE, names))
    module, decoder = skeleton(config), _decoder(config, _decoder_folder(root))
    module.unet.load_state_dict(tensors)
    check_runs(config, folder / CONFIG_FILE, _decoder_folder(root) / CONFIG_FILE)
    return Checkpoint(config, module, decoder)


def _check_parts(root: Path) -> None:
    """No folder of the pipeline is a link to somebody's other files; those of one file are looked at when it is read.

    Raises `InvalidModelError` that names the folder.
    """
    names = ("unet", "scheduler", *AUTOENCODERS, *(Path(name).parent.name for name, _ in _LENGTHS))
    parts = [root / name for name in names] + ([root.parent / "scheduler"] if root.name == "unet" else [])
    for part in parts:
        if part.exists():
            check_inside(part, part.parent)


def _decoder(config: CheckpointConfig, folder: Path) -> LatentDecoder | None:
    if config.decoder is None:
        return None
    weights = folder / WEIGHTS_FILE
    kept = [name for name in _names(weights) if not name.startswith(_ENCODER)]
    decoder = blank_decoder(config, folder / CONFIG_FILE, weights)
    if decoder is not None:
        decoder.load_state_dict(_read(weights, kept, decoder.state_dict()), assign=True)
    return decoder


def _read(weights: Path, names: list[str], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors `names` of a file under today's names, after holding them against `wanted`."""
    named = {name: _present(name) for name in names}
    twice = sorted(ours for ours, count in Counter(named.values()).items() if count > 1)
    if twice:
        raise InvalidModelError(f"{weights}: tensors {twice[:3]} stand twice, under their former and present names")
    expected = {given: wanted[ours] for given, ours in named.items() if ours in wanted}
    expected |= {name: wanted[name] for name in wanted.keys() - set(named.values())}
    unknown = sorted(given for given, ours in named.items() if ours not in wanted)
    if unknown:
        raise InvalidModelError(f"{weights}: unknown tensors {unknown[:3]}")
    return {named[given]: tensor for given, tensor in read_tensors(weights, expected, _ENCODER).items()}


def _expected(config: CheckpointConfig, path: Path, names: list[str]) -> dict[str, Tensor]:
    """Return the UNet's tensors without memory, so that the file's are held against them before any is allocated."""
    check_layers(path, config.architecture.config, len(names))
    try:
        with torch.device("meta"):
            return skeleton(config).unet.state_dict()
    except InvalidModelError as error:
        raise InvalidModelError(f"{path}: {error}") from error


def _architecture(path: Path) -> tuple[str, dict[str, Any]]:
    values = _read_json(path)
    kind = values.get("_class_name")
    if kind not in UNETS:
        raise UnsupportedError(f"{path}: expected a {' or a '.join(UNETS)}, got {kind!r}")
    if not isinstance(values.get("sample_size"), int):
        raise UnsupportedError(f"{path}: sample_size: expected one number, got {values.get('sample_size')!r}")
    return str(kind), _arguments(path, values)


def _arguments(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    for key in ("down_block_types", "up_block_types"):
        names = values.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidModelError(f"{path}: {key}: expected a list of names, got {names!r}")
    return {key: value for key, value in values.items() if not key.startswith("_")}


def _decoder_folder(root: Path) -> Path:
    """The folder of a pipeline's autoencoder; it is not there if the model draws images."""
    return next((root / name for name in AUTOENCODERS if (root / name / CONFIG_FILE).is_file()), root / "vae")


def _decoder_architecture(root: Path) -> DecoderArchitecture | None:
    path = _decoder_folder(root) / CONFIG_FILE
    if not path.is_file():
        return None
    values = _read_json(path)
    kind = values.get("_class_name")
    if kind not in AUTOENCODERS.values():
        raise UnsupportedError(f"{path}: expected a {' or an '.join(AUTOENCODERS.values())}, got {kind!r}")
    return DecoderArchitecture.model_validate({"class_name": kind, "config": _arguments(path, values)})


def _tokens(root: Path, architecture: Architecture, given: int | None) -> int | None:
    """How many vectors the model reads; None for one without cross-attention."""
    if not architecture.reads_text:
        return None
    if given is not None:
        return given
    for name, key in _LENGTHS:
        values = _read_json(root / name) if (root / name).is_file() else {}
        if isinstance(values.get(key), int) and 1 <= values[key] <= MOST_TOKENS:
            return int(values[key])
    raise UnsupportedError(
        f"{root}: the model reads a text condition, and neither {' nor '.join(name for name, _ in _LENGTHS)} says how "
        "many tokens it has: edgedm.models.diffusers_dir.load_diffusers(PATH, condition_tokens=...), then save it as a "
        "checkpoint"
    )


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
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file; save the model with safe_serialization=True, in one file")
    return list(tensor_entries(path))


def _read_json(path: Path) -> dict[str, Any]:
    values = read_json(path, _MAX_CONFIG_BYTES, path.parent)
    if not isinstance(values, dict):
        raise InvalidModelError(f"{path}: expected a JSON object")
    return values
