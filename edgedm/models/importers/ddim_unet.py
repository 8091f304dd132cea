"""ermongroup/ddim's UNet as a diffusers `UNet2DModel`, that of google/ddpm-cifar10-32: architecture and names.

What makes both the same function: the sinusoid is [sin, cos] with frequencies
10000^(-i / (half - 1)) (freq_shift 1); GroupNorm of 32 groups with eps 1e-6; downsampling pads right and below only
(downsample_padding 0); attention has one head, its 1x1 convolutions are linear layers. up.i is processed last to
first.
"""

import re

from pydantic import BaseModel, ConfigDict, Field

from edgedm.errors import InvalidModelError
from edgedm.models.importers.naming import Naming, Origin
from edgedm.models.importers.tensors import Tensors

EPSILON = 1e-6
_LEVEL = re.compile(r"(down|up)\.(\d+)\.block\.(\d+)\.norm1\.weight")
_MOST_LEVELS = 16

_RESNET = {"norm1": "norm1", "conv1": "conv1", "time_emb_proj": "temb_proj", "norm2": "norm2", "conv2": "conv2"}
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


class DDIMOptions(BaseModel):
    """What the tensors don't tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(32, ge=1, le=4096, description="of the images")
    norm_groups: int = Field(32, ge=1, description="of every GroupNorm")


def ddim_naming(tensors: Tensors, options: DDIMOptions) -> Naming:
    """Derive the architecture from the tensors' names and shapes; `InvalidModelError` where they make no UNet."""
    blocks: dict[str, set[tuple[int, int]]] = {"down": set(), "up": set()}
    for name in tensors.names():
        if match := _LEVEL.fullmatch(name):
            blocks[match[1]].add((int(match[2]), int(match[3])))
    levels = 1 + max((level for level, _ in blocks["down"]), default=-1)
    layers = len(blocks["down"]) // levels if levels else 0
    grid = {(level, i) for level in range(min(levels, _MOST_LEVELS)) for i in range(layers + 1)}
    if not layers or blocks["up"] != grid or blocks["down"] != {(level, i) for level, i in grid if i < layers}:
        raise InvalidModelError(
            f"{tensors.file}: expected ddim's UNet, down.<level>.block.<i> and one more block a level in "
            f"up.<level>, got {len(blocks['down'])} and {len(blocks['up'])} blocks in {levels} levels"
        )
    origins: dict[str, Origin] = {}
    attentions: dict[str, str] = {}

    def resnet(ours: str, theirs: str) -> None:
        for part, name in _RESNET.items():
            origins[f"{ours}.{part}"] = Origin(f"{theirs}.{name}")
        if f"{theirs}.nin_shortcut.weight" in tensors:
            origins[f"{ours}.conv_shortcut"] = Origin(f"{theirs}.nin_shortcut")

    def attention(ours: str, theirs: str) -> bool:
        if not any(f"{theirs}.{name}.weight" in tensors for name in ("norm", *_ATTENTION.values())):
            return False
        attentions[ours] = theirs
        origins[f"{ours}.group_norm"] = Origin(f"{theirs}.norm")
        for part, name in _ATTENTION.items():
            origins[f"{ours}.{part}"] = Origin(f"{theirs}.{name}", trailing=2)
        return True

    def level(ours: str, theirs: str, count: int) -> bool:
        for i in range(count):
            resnet(f"{ours}.resnets.{i}", f"{theirs}.block.{i}")
        attends = [attention(f"{ours}.attentions.{i}", f"{theirs}.attn.{i}") for i in range(count)]
        return all(attends)

    plain = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
    plain |= {"time_embedding.linear_1": "temb.dense.0", "time_embedding.linear_2": "temb.dense.1"}
    origins.update({ours: Origin(theirs) for ours, theirs in plain.items()})
    downs, ups = [], []
    for index in range(levels):
        downs.append(level(f"down_blocks.{index}", f"down.{index}", layers))
        if index < levels - 1:
            origins[f"down_blocks.{index}.downsamplers.0.conv"] = Origin(f"down.{index}.downsample.conv")
    resnet("mid_block.resnets.0", "mid.block_1")
    attention("mid_block.attentions.0", "mid.attn_1")
    resnet("mid_block.resnets.1", "mid.block_2")
    for index in range(levels):
        theirs = levels - 1 - index
        ups.append(level(f"up_blocks.{index}", f"up.{theirs}", layers + 1))
        if theirs > 0:
            origins[f"up_blocks.{index}.upsamplers.0.conv"] = Origin(f"up.{theirs}.upsample.conv")
    widths = [tensors.axis(f"down.{index}.block.0.norm2.weight", 0, 1) for index in range(levels)]
    architecture = {
        "sample_size": options.image_size,
        "in_channels": tensors.axis("conv_in.weight", 1, 4),
        "out_channels": tensors.axis("conv_out.bias", 0, 1),
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in downs],
        "up_block_types": ["AttnUpBlock2D" if attends else "UpBlock2D" for attends in ups],
        "norm_num_groups": options.norm_groups,
        "norm_eps": EPSILON,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "time_embedding_dim": tensors.axis("temb.dense.0.bias", 0, 1),
    }
    return Naming(architecture, origins, attentions)
