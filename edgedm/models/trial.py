"""Run a config's model without memory for its tensors: do its sizes fit together, and how large does it get?

A config is text, which may ask for images whose sides do not halve as often as the network wants, or for terabytes of
attention. diffusers' constructors mind neither; PyTorch's "meta" device tells in a moment what else would come to light
after minutes.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgedm.errors import InvalidModelError
from edgedm.models.attention import make_attention_explicit
from edgedm.models.config import CheckpointConfig
from edgedm.models.construct import REFUSALS
from edgedm.models.decoder import empty_decoder
from edgedm.models.denoiser import Denoiser

MOST_BYTES = 4 << 30  # of one tensor
_OF_SIZES = re.compile(r"[Ss]izes? of tensor|input size|[Oo]utput size")  # in what PyTorch says


def check_runs(config: CheckpointConfig, place: Path | str, decoder_place: Path | None = None) -> None:
    """Raise `InvalidModelError` unless the networks of `config` take images of its `sample_size`.

    Also where one tensor on the way would be of more than `MOST_BYTES`. The message begins with `place`, where the
    config is, or `decoder_place`, where the decoder's is in a file of its own. To be called when the weights are known
    to be those of `config`. A network that fails for another reason than sizes, as one does that takes more inputs, is
    left to export, which refuses it by name.
    """
    channels, size = config.in_channels, config.sample_size
    with torch.device("meta"):
        x, number = torch.empty(1, channels, size, size), torch.empty(1, dtype=torch.int64)
        denoiser = _denoiser(config)
        if denoiser is not None:
            _try(f"{place}: architecture.config: images", size, denoiser.record, x, number, number)
        if config.decoder is not None:
            where = f"{place}: decoder.config" if decoder_place is None else str(decoder_place)
            _try(f"{where}: latents", size, empty_decoder(config.decoder, channels), x)


def _denoiser(config: CheckpointConfig) -> Denoiser | None:
    """The full-precision network, with attention written out as in an export; None for a form that has none."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    unet: Any = config.float_unet()  # diffusers is untyped
    if not isinstance(unet, UNet2DModel | UNet2DConditionModel):
        return None
    make_attention_explicit(unet)
    condition = config.condition_shape
    if condition is None and config.architecture.reads_text:
        if not isinstance(unet.config.cross_attention_dim, int):
            return None
        condition = (1, unet.config.cross_attention_dim)
    return Denoiser(unet, condition=condition).eval()


class _TooLargeError(Exception):
    pass


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Refuses to make a tensor that would take more than `MOST_BYTES`."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            size = each.untyped_storage().nbytes() if isinstance(each, Tensor) else 0
            if size > MOST_BYTES:
                shape = " x ".join(map(str, each.shape))
                raise _TooLargeError(f"a tensor of {shape} numbers takes {size} bytes, more than {MOST_BYTES}")
        return result


def _try(what: str, size: int, run: Callable[..., object], *inputs: Tensor) -> None:
    try:
        with torch.inference_mode(), _Sizes():  # type: ignore[no-untyped-call]  # of torch
            run(*inputs)
    except _TooLargeError as error:
        raise InvalidModelError(f"{what} of {size} x {size} (sample_size) are too large: {error}") from error
    except REFUSALS as error:
        reason = str(error).partition("\n")[0]
        if _OF_SIZES.search(reason):
            expected = "expected sides that halve at every downsampler"
            raise InvalidModelError(
                f"{what} of {size} x {size} (sample_size) do not pass: {reason}; {expected}"
            ) from error
