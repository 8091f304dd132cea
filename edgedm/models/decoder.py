"""The decoder of a latent model: what diffusers' pipelines do to a latent before it is an image.

    VQModel         image = Decoder(post_quant_conv(nearest(latent / scaling_factor)))
    AutoencoderKL   image = Decoder(post_quant_conv(latent / scaling_factor + shift_factor))

`nearest` puts the vector of every pixel on the nearest one of the codebook. The encoder is not kept: sampling has no
use for it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.attention import make_attention_explicit
from edgedm.models.config import DecoderArchitecture
from edgedm.models.construct import construct
from edgedm.models.threads import one_thread

_IMAGE_SPREAD = 0.5  # deviation of a seeded decoder's image: most of it lies in -1..1


class LatentDecoder(nn.Module):
    """latent f32[1, C, h, w] -> image f32[1, 3, H, W], nominally in -1..1; its tensors have diffusers' names."""

    def __init__(self, model: Any) -> None:
        """Take over the second half of an autoencoder of diffusers."""
        super().__init__()
        config = model.config
        self.scaling_factor = float(config.scaling_factor)
        self.shift_factor = float(getattr(config, "shift_factor", None) or 0.0)
        self.latent_channels = int(config.latent_channels)
        self.post_quant_conv = getattr(model, "post_quant_conv", None)
        self.decoder = model.decoder
        self.quantize = _Codebook(model.quantize.embedding) if hasattr(model, "quantize") else None
        make_attention_explicit(self)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the image of one latent."""
        z = latent / self.scaling_factor
        if self.shift_factor:
            z = z + self.shift_factor
        if self.quantize is not None:
            z = nearest(z, self.quantize.embedding.weight)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        image: Tensor = self.decoder(z)
        return image


class _Codebook(nn.Module):
    """Stands where diffusers has its quantiser, for the name of its one tensor that decoding needs."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Put every pixel of z f32[1, D, h, w] on the nearest row of `codebook` f32[K, D].

    |z - e|^2 = |z|^2 - 2 z.e + |e|^2, of which the first term is the same for every e. The first of equally near ones.
    """
    pixels = z.permute(0, 2, 3, 1)
    distances = (codebook * codebook).sum(1) - 2 * (pixels @ codebook.T)
    return F.embedding(distances.argmin(-1), codebook).permute(0, 3, 1, 2)


def empty_decoder(architecture: DecoderArchitecture, latent_channels: int) -> LatentDecoder:
    """Return the decoder that `architecture` describes, freshly initialised by the global generator.

    Raises `InvalidModelError` if edgedm or diffusers refuses the arguments or the latents have other channels, and
    `UnsupportedError` for a form of it that edgedm does not run.
    """
    name = architecture.class_name
    model: Any = construct(name, architecture.config, "decoder.config")
    if model.config.get("norm_type", "group") != "group":
        raise UnsupportedError(f"decoder: {name} with norm_type {model.config.norm_type!r}; expected 'group'")
    if model.config.get("latents_mean") or model.config.get("latents_std"):
        raise UnsupportedError(f"decoder: {name} with latents_mean or latents_std; expected a scaling_factor alone")
    scale, shift = model.config.scaling_factor, model.config.get("shift_factor")
    if not _is_number(scale) or scale == 0:
        raise InvalidModelError(f"decoder.config: scaling_factor: expected a number other than 0, got {scale!r}")
    if shift is not None and not _is_number(shift):
        raise InvalidModelError(f"decoder.config: shift_factor: expected a number, got {shift!r}")
    if model.config.latent_channels != latent_channels:
        raise InvalidModelError(
            f"decoder: {name} decodes latents of {model.config.latent_channels} channels, the denoiser's have "
            f"{latent_channels}"
        )
    return LatentDecoder(model).eval().requires_grad_(False)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def seed_decoder(decoder: LatentDecoder, latent_size: int, generator: torch.Generator) -> None:
    """Make a fresh decoder non-degenerate, in place: norms that differ, a codebook that latents of unit variance use
    most of, and images that fill their range. All floats are float16 values, as in a saved checkpoint."""
    for layer in decoder.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.uniform_(-0.3, 0.3, generator=generator)
    if decoder.quantize is not None:
        decoder.quantize.embedding.weight.data.normal_(0, 1 / decoder.scaling_factor, generator=generator)
    _round(decoder)
    noise = torch.randn(1, decoder.latent_channels, latent_size, latent_size, generator=generator)
    with torch.no_grad(), one_thread():
        image = decoder(noise)
    for name in ("weight", "bias"):
        decoder.get_parameter(f"decoder.conv_out.{name}").data.mul_(_IMAGE_SPREAD / image.std())
    _round(decoder)


def decoded_shape(decoder: LatentDecoder, height: int, width: int) -> tuple[int, int, int]:
    """Return channels, height and width of the image of a latent of `height` x `width`."""
    with torch.no_grad():
        _, channels, rows, columns = decoder(torch.zeros(1, decoder.latent_channels, height, width)).shape
    return channels, rows, columns


def _round(decoder: LatentDecoder) -> None:
    for tensor in decoder.state_dict().values():
        tensor.copy_(tensor.half().float())
