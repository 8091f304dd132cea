"""From a trained denoiser to a checkpoint."""

import copy

from torch import nn

from edgedm.diffusion import NoiseSchedule
from edgedm.models import Checkpoint, CheckpointConfig
from edgedm.models.attention import make_attention_explicit
from edgedm.models.config import Architecture
from edgedm.models.denoiser import Denoiser
from edgedm.models.presets import DIGITS, NULL_CLASS
from edgedm.models.roles import FLOAT
from edgedm.quant.convert import POLICIES, Method, make_inference


def to_checkpoint(denoiser: Denoiser, base: CheckpointConfig, method: Method) -> Checkpoint:
    """Return the checkpoint of a denoiser that was trained from `base`: packed layers, table, config."""
    unet = copy.deepcopy(denoiser.unet)
    for module in unet.modules():
        module._forward_hooks.clear()  # the taps of `denoiser` and those of distillation
    make_inference(unet)
    edges = denoiser.edges.tolist() if denoiser.taps else []
    module = Denoiser(unet, denoiser.taps, edges)
    if denoiser.taps:
        module.cache_coefficients.data.copy_(denoiser.cache_coefficients.data)
    changed = {"method": method, "roles": POLICIES[method], "taps": denoiser.taps, "timestep_bins": edges}
    config = CheckpointConfig.model_validate({**base.model_dump(), **changed})
    return Checkpoint(config, module.eval().requires_grad_(False))


def float_checkpoint(unet: nn.Module) -> Checkpoint:
    """Return the checkpoint of a float UNet of the digits architecture."""
    unet = copy.deepcopy(unet)
    make_attention_explicit(unet)
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=DIGITS),
        method="fp32",
        roles=FLOAT,
        noise_schedule=NoiseSchedule().model_dump(mode="json"),
        null_class=NULL_CLASS,
    )
    return Checkpoint(config, Denoiser(unet).eval().requires_grad_(False))
