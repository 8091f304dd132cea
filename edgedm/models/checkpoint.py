"""Checkpoints: a folder of `config.json` and `model.safetensors` (final bits, scales and tables, float16), and of a
latent model `decoder.safetensors`. A folder of diffusers is read as one of full precision (`diffusers_dir`).

Nothing is unpickled, and nothing is loaded before names, shapes and dtypes match what the config says.
"""

import contextlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode
from torch import Tensor, nn

from edgedm.atomic import atomic_dir, read_mark
from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.attention import make_attention_explicit
from edgedm.models.config import MAX_CONFIG_BYTES, CheckpointConfig, read_config
from edgedm.models.decoder import LatentDecoder, empty_decoder, seed_decoder
from edgedm.models.denoiser import Denoiser
from edgedm.models.plausible import check_layers, check_weights
from edgedm.models.preset_reference import is_preset
from edgedm.models.seeded import seed_weights
from edgedm.models.trial import check_runs
from edgedm.quant.api import DEFAULT_EDGES, make_inference, quantize_layers
from edgedm.tensor_file import Entry, read_header

CONFIG_FILE, WEIGHTS_FILE, DECODER_FILE = "config.json", "model.safetensors", "decoder.safetensors"
_FILES = {CONFIG_FILE, WEIGHTS_FILE, DECODER_FILE}
_KEYS = {"format_version", "architecture", "method"}  # that every config of ours has, of any version
ZOO = Path(__file__).parent / "zoo"
_PREFIX = "zoo:"
_DTYPES = {"F16": torch.float16, "F32": torch.float32, "U8": torch.uint8, "I64": torch.int64}


@dataclass(frozen=True)
class Checkpoint:
    """A model as it runs: its config, its module and, of a latent model, the decoder; in float32, in evaluation mode,
    without gradients."""

    config: CheckpointConfig
    module: Denoiser
    decoder: LatentDecoder | None = None


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint folder, one of diffusers or `zoo:NAME`, or make that of a `preset:...` (`preset_checkpoint`).

    Raises `InvalidModelError` for a missing, damaged or inconsistent file, naming the file and the tensor, and
    `UnsupportedError` for a preset that there is not.
    """
    if is_preset(os.fspath(path)):
        from edgedm.models.preset_checkpoint import load_preset  # it builds checkpoints, so it imports this module

        return load_preset(os.fspath(path))
    folder = locate(path)
    from edgedm.models.diffusers_dir import is_diffusers, load_diffusers  # it makes checkpoints likewise

    if is_diffusers(folder):
        return load_diffusers(folder)
    config = read_config(folder / CONFIG_FILE, _bounds(folder / CONFIG_FILE))
    try:
        with contextlib.suppress(UnsupportedError):  # of a schedule that sampling refuses; its numbers are sound
            NoiseSchedule.from_config(config.noise_schedule)
        check_weights(folder / CONFIG_FILE, config, tensor_entries(folder / WEIGHTS_FILE))
        module = skeleton(config)
        decoder = blank_decoder(config, folder / CONFIG_FILE, folder / DECODER_FILE)
    except (UnsupportedError, InvalidModelError) as error:
        named = str(error).startswith(str(folder))  # which of the files it is, where it is known
        raise InvalidModelError(str(error) if named else f"{folder / CONFIG_FILE}: {error}") from error
    module.load_state_dict(read_tensors(folder / WEIGHTS_FILE, module.state_dict()))
    if decoder is not None:
        decoder.load_state_dict(read_tensors(folder / DECODER_FILE, decoder.state_dict()), assign=True)
    check_runs(config, folder / CONFIG_FILE)
    return Checkpoint(config, module, decoder)


def save(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint folder, whole or not at all; floating-point tensors become float16.

    Raises `InvalidModelError` that names a tensor which float16 cannot hold: what is written can be loaded. So it does
    for a folder of other files, which is not replaced.
    """
    files = {WEIGHTS_FILE: _stored(checkpoint.module, path)}
    if checkpoint.decoder is not None:
        files[DECODER_FILE] = _stored(checkpoint.decoder, path)
    with atomic_dir(path, strangeness) as folder:
        for name, tensors in files.items():
            (folder / name).write_bytes(encode(tensors))
        text = json.dumps(checkpoint.config.model_dump(mode="json"), indent=1)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def strangeness(folder: Path) -> str | None:
    """Return what makes `folder` no checkpoint of edgedm, which another may replace; None for one.

    transformers' `save_pretrained` writes files of the same names, so the config's keys decide.
    """
    if not (folder / WEIGHTS_FILE).is_file() or not read_mark(folder / CONFIG_FILE, MAX_CONFIG_BYTES).keys() >= _KEYS:
        return f"has no {CONFIG_FILE} and {WEIGHTS_FILE} of edgedm"
    others = sorted(each.name for each in folder.iterdir() if each.name not in _FILES)
    return f"has {', '.join(others[:3])} beside a checkpoint" if others else None


def _stored(module: nn.Module, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in module.state_dict().items():
        stored = tensor.half() if tensor.is_floating_point() else tensor
        if not bool(stored.isfinite().all()):
            largest = float(tensor.abs().max())
            raise InvalidModelError(
                f"{path}: tensor '{name}': expected finite numbers up to 65504, which float16 holds, got {largest:g}"
            )
        tensors[name] = stored.contiguous().clone()
    return tensors


def build(config: CheckpointConfig, seed: int) -> Checkpoint:
    """Return an untrained model with seeded weights that are not degenerate, for tests; see `seeded`."""
    module = skeleton(config, seed)
    seed_weights(module, seed)
    decoder = decoder_of(config, seed)
    if decoder is not None:
        seed_decoder(decoder, config.sample_size, torch.Generator().manual_seed(seed))
    return Checkpoint(config, module, decoder)


def skeleton(config: CheckpointConfig, seed: int = 0) -> Denoiser:
    """Return the module that `config` describes, with seeded random weights; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = config.float_unet()
        make_attention_explicit(unet)
        if config.method != "fp32":
            edges = config.timestep_bins or DEFAULT_EDGES
            quantize_layers(unet, config.method, config.roles, options=config.options, edges=edges)
        make_inference(unet)
    for path in (*config.taps, *config.mixes):
        try:
            unet.get_submodule(path)
        except AttributeError as error:
            raise InvalidModelError(f"taps: the architecture has no module '{path}'") from error
    denoiser = Denoiser(unet, config.taps, config.timestep_bins, config.mixes, config.condition_shape)
    return denoiser.eval().requires_grad_(False)


def decoder_of(config: CheckpointConfig, seed: int = 0) -> LatentDecoder | None:
    """Return the decoder that `config` describes, with seeded random weights; None where it describes none."""
    if config.decoder is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return empty_decoder(config.decoder, config.in_channels)


def blank_decoder(config: CheckpointConfig, place: Path, weights: Path) -> LatentDecoder | None:
    """Return the decoder that `config` describes without memory for its tensors, so that a file is held against it
    before any is allocated; `load_state_dict(..., assign=True)` gives it the file's. None where there is none.

    Raises `InvalidModelError` that names `place`, the config's file, where diffusers or edgedm refuses it.
    """
    if config.decoder is None:
        return None
    check_layers(place, config.decoder.config, len(tensor_entries(weights)))
    try:
        with torch.device("meta"):
            return decoder_of(config)
    except InvalidModelError as error:
        raise InvalidModelError(f"{place}: {error}") from error


def locate(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkpoint path or `zoo:NAME`; `InvalidModelError` where there is none."""
    text = os.fspath(path)
    if not text.startswith(_PREFIX):
        folder = Path(text)
        if not folder.is_dir():
            raise InvalidModelError(f"{text}: no such checkpoint folder; the built-in ones are {', '.join(zoo())}")
        return folder
    if text not in zoo():
        raise InvalidModelError(f"{text}: no such built-in checkpoint; there are {', '.join(zoo())}")
    return ZOO / text.removeprefix(_PREFIX)


def zoo() -> list[str]:
    """Return the names of the built-in checkpoints, `zoo:` included."""
    return sorted(_PREFIX + entry.parent.name for entry in ZOO.glob(f"*/{CONFIG_FILE}"))


def read_tensors(path: Path, expected: dict[str, Tensor], besides: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read the tensors named in `expected`, floats as float32, after checking the header against it.

    Others are left alone if their names start with one of `besides`. Raises `InvalidModelError` for a name, shape or
    dtype that differs, and for values that are not finite.
    """
    entries = tensor_entries(path)
    names = {name for name in entries if name in expected or not name.startswith(besides)}
    if names != expected.keys():
        missing, extra = sorted(expected.keys() - names), sorted(names - expected.keys())
        raise InvalidModelError(f"{path}: missing tensors {missing[:3]}, unknown tensors {extra[:3]}")
    for name, tensor in expected.items():
        _check_entry(path, name, entries[name], tensor)
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise InvalidModelError(f"{path}: not a whole safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
            if not math.isfinite(float(tensors[name].abs().sum())):
                raise InvalidModelError(f"{path}: tensor '{name}' holds NaN or infinity")
    return tensors


def tensor_entries(path: Path) -> dict[str, Entry]:
    """Return what the header of a safetensors file says; `InvalidModelError` for one that is missing or broken."""
    try:
        return read_header(path, _bounds(path))
    except FileNotFoundError as error:
        raise InvalidModelError(f"{path}: no such file") from error


def _bounds(path: Path) -> Path | None:
    """The folder that a link at `path` may not leave; installers put links into the package's own."""
    return None if path.is_relative_to(ZOO) else path.parent


def _check_entry(path: Path, name: str, stored: Entry, tensor: Tensor) -> None:
    floating = tensor.is_floating_point()
    allowed = ("F16", "F32") if floating else tuple(k for k, v in _DTYPES.items() if v == tensor.dtype)
    if stored.shape != tuple(tensor.shape) or stored.dtype not in allowed:
        raise InvalidModelError(
            f"{path}: tensor '{name}': expected {' or '.join(allowed)} {list(tensor.shape)}, "
            f"got {stored.dtype} {list(stored.shape)}"
        )
