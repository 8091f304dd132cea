"""A small UNet of `QuantLayer`s and `UniformQuantizer`s, of no particular method: every form that they come in."""

from collections.abc import Iterator

import torch
from architectures import SMALL_UNET
from torch import nn

from edgedm.models import Checkpoint, CheckpointConfig
from edgedm.models.attention import OPERANDS, make_attention_explicit
from edgedm.models.config import Architecture
from edgedm.models.denoiser import Denoiser
from edgedm.models.roles import roles
from edgedm.models.seeded import seed_weights
from edgedm.quant.api import make_inference
from edgedm.quant.clock import Clock, clock_of
from edgedm.quant.policy import policy_of
from edgedm.quant.uniform import ActivationTable
from edgedm.quant.uniform_layer import UniformLayer

SIZE, CLASSES = 8, 4
EDGES = (0, 30, 500, 700)  # asymmetric, and the last bin is not the widest
UNET = {**SMALL_UNET, "num_class_embeds": CLASSES + 1}
EIGHT_BITS = ("conv_in", "conv_out")  # of one table row, as in DilateQuant
WIDTHS = {
    "down_blocks.0.resnets.0.conv1": (2, 4),
    "down_blocks.0.resnets.0.conv2": (6, 6),
    "mid_block.resnets.0.conv1": (4, 2),
}


def w4a4_checkpoint(seed: int = 0, edges: tuple[int, ...] = EDGES) -> Checkpoint:
    """4-bit layers, 8-bit ends without a table, some of 2 and 6 bits, dilated convolutions, per-head attention."""
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method="dilatequant",
        roles=dict(policy_of("dilatequant").bits),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=CLASSES,
        timestep_bins=list(edges),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = config.float_unet()
    clock, attentions = clock_of(unet), make_attention_explicit(unet)
    for path, layer in _layers(unet, clock, edges):
        unet.set_submodule(path, layer)
    for block, processor in attentions.items():
        heads = unet.get_submodule(block).heads
        widths = dict.fromkeys(OPERANDS, 4) | {"weight": 8}
        processor.quantizers = nn.ModuleDict(
            {operand: ActivationTable(bits, edges, clock, heads) for operand, bits in widths.items()}
        )
    make_inference(unet)
    module = Denoiser(unet).eval().requires_grad_(False)
    seed_weights(module, seed)
    return Checkpoint(config, module)


def _layers(unet: nn.Module, clock: Clock, edges: tuple[int, ...]) -> Iterator[tuple[str, UniformLayer]]:
    for path, role in list(roles(unet).items()):
        layer = unet.get_submodule(path)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight, activation = WIDTHS.get(path, (8, 8) if role in EIGHT_BITS else (4, 4))
            rows = (0,) if role in EIGHT_BITS else edges
            symmetric, dilate = role == "shortcut", role == "res_conv"
            yield path, UniformLayer(layer, weight, activation, clock, rows, symmetric, dilate)
