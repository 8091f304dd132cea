"""Is a config's model as large as its file? Asked before any of it is built: a config is text, which may say anything.

Every weight takes at least one bit of the file and every layer at least one tensor, so a model that is larger is none
of the file's, and building it would be the attack.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgedm.errors import InvalidModelError
from edgedm.models.config import CheckpointConfig
from edgedm.models.construct import flat
from edgedm.tensor_file import Entry

_COUNTS = ("layers_per_block", "transformer_layers_per_block", "num_layers", "reverse_transformer_layers_per_block")
_LISTS = ("block_out_channels", "down_block_types", "up_block_types")
_WEIGHTS_A_BYTE = 8  # of one bit each


def check_layers(place: Path, architecture: Mapping[str, Any], tensors: int) -> None:
    """Raise `InvalidModelError` naming `place`, the config's file, for more layers or blocks than a file has tensors.

    They would take long to build, even without memory for their weights.
    """
    for key in _COUNTS:
        for layers in flat(architecture.get(key)):
            if isinstance(layers, int) and layers > tensors:
                raise InvalidModelError(f"{place}: {key}: {layers} layers, but the file has {tensors} tensors")
    for key in _LISTS:
        given = architecture.get(key)
        if isinstance(given, list | tuple) and len(given) > tensors:
            raise InvalidModelError(f"{place}: {key}: {len(given)} blocks, but the file has {tensors} tensors")


def check_weights(place: Path, config: CheckpointConfig, entries: Mapping[str, Entry]) -> None:
    """Raise `InvalidModelError` naming `place` for a config whose model has more weights than `entries` have bits.

    Also for one with a tensor without numbers. The network is built without memory for its tensors.
    """
    check_layers(place, config.architecture.config, len(entries))
    with torch.device("meta"):
        unet = config.float_unet()
    empty = [name for name, tensor in unet.state_dict().items() if tensor.numel() == 0]
    if empty:
        raise InvalidModelError(f"{place}: architecture.config: tensor {empty[0]!r} would have no numbers")
    weights = sum(tensor.numel() for tensor in unet.state_dict().values())
    held = sum(entry.end - entry.begin for entry in entries.values())
    if weights > held * _WEIGHTS_A_BYTE:
        raise InvalidModelError(
            f"{place}: architecture.config: a model of {weights} weights; its file has {held} bytes"
        )
