"""CompVis' `openaimodel.UNetModel` (latent-diffusion) as a diffusers `UNet2DModel`: architecture and names.

What makes both the same function: the sinusoid is [cos, sin] with frequencies 10000^(-i / half)
(flip_sin_to_cos, freq_shift 0); GroupNorm of 32 groups with eps 1e-5; downsampling pads 1 on every side; attention
scales q and k by d^-1/4 each. Blocks are counted differently: input_blocks and output_blocks run through all levels,
a level's last one downsamples or upsamples.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.importers.naming import Naming, Origin, fused_rows
from edgedm.models.importers.tensors import Tensors

EPSILON = 1e-5
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.")
_MOST_BLOCKS = 200

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}


class OpenAIOptions(BaseModel):
    """What the tensors don't tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(64, ge=1, le=4096, description="of the latent")
    head_channels: int | None = Field(
        None, ge=1, description="num_head_channels of the model's configuration; or give heads"
    )
    heads: int | None = Field(None, ge=1, description="num_heads of the model's configuration")
    attention_order: Literal["legacy", "new"] = Field(
        "legacy", description="new if the configuration says use_new_attention_order"
    )
    norm_groups: int = Field(32, ge=1, description="of every GroupNorm")


def openai_naming(tensors: Tensors, options: OpenAIOptions) -> Naming:
    """Derive the architecture from the tensors' names and shapes.

    Raises `InvalidModelError` where they make no UNet, `UnsupportedError` naming what `UNet2DModel` cannot be.
    """
    inputs, outputs = _count(tensors, "input_blocks"), _count(tensors, "output_blocks")
    for name in tensors.names():
        if ".transformer_blocks." in name:
            raise UnsupportedError(f"{tensors.file}: '{name}': UNet2DModel has no SpatialTransformer")
    ups = [i for i in range(outputs) if _upsampler(tensors, i) is not None]
    levels = len(ups) + 1
    repeats = outputs // levels
    if (
        outputs != levels * repeats
        or repeats < 2
        or inputs != levels * repeats
        or ups != list(range(repeats - 1, outputs - 1, repeats))
    ):
        raise InvalidModelError(
            f"{tensors.file}: {inputs} input_blocks and {outputs} output_blocks with upsamplers in {ups} make no UNet "
            "of equal levels"
        )
    layers = repeats - 1
    walk = _Walk(tensors, options)
    walk.add("conv_in", "input_blocks.0.0")
    walk.add("time_embedding.linear_1", "time_embed.0")
    walk.add("time_embedding.linear_2", "time_embed.2")
    walk.add("conv_norm_out", "out.0")
    walk.add("conv_out", "out.2")
    if "label_emb.weight" in tensors:
        walk.add("class_embedding", "label_emb")
    downs_attend, widths = [], []
    for level in range(levels):
        first = 1 + level * repeats
        widths.append(walk.width(f"input_blocks.{first}.0.out_layers.0"))
        attends = [walk.block(f"down_blocks.{level}", i, f"input_blocks.{first + i}") for i in range(layers)]
        downs_attend.append(_uniform(attends, f"input_blocks.{first}", tensors.file))
        if level < levels - 1:
            walk.sampler(f"down_blocks.{level}.downsamplers.0", f"input_blocks.{first + layers}.0", "op")
    walk.middle()
    ups_attend = []
    for block in range(levels):
        first = block * repeats
        attends = [walk.block(f"up_blocks.{block}", i, f"output_blocks.{first + i}") for i in range(repeats)]
        ups_attend.append(_uniform(attends, f"output_blocks.{first}", tensors.file))
        if block < levels - 1:
            place = _upsampler(tensors, first + layers)
            walk.sampler(f"up_blocks.{block}.upsamplers.0", f"output_blocks.{first + layers}.{place}", "conv")
    architecture = _architecture(tensors, options, walk, widths, layers, downs_attend, ups_attend)
    return Naming(architecture, walk.origins, walk.attentions, inputs)


def _architecture(
    tensors: Tensors,
    options: OpenAIOptions,
    walk: "_Walk",
    widths: list[int],
    layers: int,
    downs_attend: list[bool],
    ups_attend: list[bool],
) -> dict[str, object]:
    base = walk.width("input_blocks.0.0", "bias")
    if widths[0] != base:
        raise UnsupportedError(
            f"{tensors.file}: channel_mult starts with {widths[0]} / {base}; UNet2DModel's first level is as wide as "
            "the first convolution"
        )
    scale_shift = walk.width("input_blocks.1.0.emb_layers.1", "bias") == 2 * widths[0]
    kinds = {True: ("AttnDownBlock2D", "AttnUpBlock2D"), False: ("DownBlock2D", "UpBlock2D")}
    if walk.resnet_samplers:
        kinds[False] = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    sampler = "resnet" if walk.resnet_samplers else "conv"
    architecture: dict[str, object] = {
        "sample_size": options.image_size,
        "in_channels": tensors.axis("input_blocks.0.0.weight", 1, 4),
        "out_channels": walk.width("out.2", "bias"),
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": [kinds[attends][0] for attends in downs_attend],
        "up_block_types": [kinds[attends][1] for attends in ups_attend],
        "norm_num_groups": options.norm_groups,
        "norm_eps": EPSILON,
        "attention_head_dim": walk.head_channels,
        "downsample_padding": 1,
        "downsample_type": sampler,
        "upsample_type": sampler,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "time_embedding_dim": walk.width("time_embed.0", "bias"),
        "add_attention": walk.middle_attends,
    }
    if scale_shift:
        architecture |= {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": options.norm_groups}
    if "label_emb.weight" in tensors:
        architecture["num_class_embeds"] = tensors.shape("label_emb.weight")[0]
    return architecture


class _Walk:
    """Collects origins while the blocks are visited in order."""

    def __init__(self, tensors: Tensors, options: OpenAIOptions) -> None:
        self.tensors, self.options = tensors, options
        self.origins: dict[str, Origin] = {}
        self.attentions: dict[str, str] = {}
        self.head_channels: int | None = None
        self.resnet_samplers = False
        self.middle_attends = False

    def add(self, ours: str, theirs: str) -> None:
        self.origins[ours] = Origin(theirs)

    def width(self, path: str, kind: str = "weight") -> int:
        """Channels of a norm, or of a layer by its bias: weights may be packed."""
        return self.tensors.axis(f"{path}.{kind}", 0, 1)

    def block(self, ours: str, index: int, theirs: str) -> bool:
        """Add a residual block and its attention; return whether there is one."""
        self.resnet(f"{ours}.resnets.{index}", f"{theirs}.0")
        if not self.attends(f"{theirs}.1"):
            return False
        self.attention(f"{ours}.attentions.{index}", f"{theirs}.1")
        return True

    def attends(self, theirs: str) -> bool:
        """Whether the file has an attention block here, or what is left of one."""
        return any(f"{theirs}.{part}.weight" in self.tensors for part in ("norm", "qkv", "proj_out"))

    def middle(self) -> None:
        self.resnet("mid_block.resnets.0", "middle_block.0")
        self.middle_attends = self.attends("middle_block.1")
        if not self.middle_attends:
            raise UnsupportedError(f"{self.tensors.file}: a middle_block without attention is not supported")
        self.attention("mid_block.attentions.0", "middle_block.1")
        self.resnet("mid_block.resnets.1", "middle_block.2")

    def resnet(self, ours: str, theirs: str) -> None:
        for part, name in _RESNET.items():
            self.add(f"{ours}.{part}", f"{theirs}.{name}")
        if f"{theirs}.skip_connection.weight" in self.tensors:
            self.add(f"{ours}.conv_shortcut", f"{theirs}.skip_connection")

    def sampler(self, ours: str, theirs: str, conv: str) -> None:
        """Add a down- or upsampler: a convolution, or a residual block (resblock_updown)."""
        if f"{theirs}.in_layers.0.weight" in self.tensors:
            self.resnet_samplers = True
            self.resnet(ours, theirs)
        else:
            self.add(f"{ours}.conv", f"{theirs}.{conv}")

    def attention(self, ours: str, theirs: str) -> None:
        channels = self.width(f"{theirs}.norm")
        per_head = self._head_channels(theirs, channels)
        self.attentions[ours] = theirs
        self.add(f"{ours}.group_norm", f"{theirs}.norm")
        order = self.options.attention_order
        for part, rows in fused_rows(channels, channels // per_head, order).items():
            self.origins[f"{ours}.{part}"] = Origin(f"{theirs}.qkv", rows, 3 * channels, trailing=1)
        self.origins[f"{ours}.to_out.0"] = Origin(f"{theirs}.proj_out", trailing=1)

    def _head_channels(self, path: str, channels: int) -> int:
        options = self.options
        if (options.head_channels is None) == (options.heads is None):
            raise UnsupportedError(
                f"{self.tensors.file}: '{path}': the tensors don't tell its heads; give one of the options "
                "head_channels (num_head_channels, 32 for LDM-4) and heads (num_heads)"
            )
        per_head = options.head_channels or channels // (options.heads or 1)
        if per_head < 1 or channels % per_head or (options.heads and channels % options.heads):
            raise UnsupportedError(f"{self.tensors.file}: '{path}': {channels} channels don't divide into such heads")
        if self.head_channels not in (None, per_head):
            raise UnsupportedError(
                f"{self.tensors.file}: '{path}': heads={options.heads} means {per_head} channels a head here and "
                f"{self.head_channels} elsewhere (LDM-8 of LSUN-Churches is so); UNet2DModel has one number for all"
            )
        self.head_channels = per_head
        return per_head


def _count(tensors: Tensors, part: str) -> int:
    """Return how many blocks there are. Raises `InvalidModelError` for none, too many, or a gap."""
    found = {int(match[2]) for name in tensors.names() if (match := _BLOCK.match(name)) and match[1] == part}
    missing = next(i for i in range(len(found) + 1) if i not in found)
    if not found or len(found) > _MOST_BLOCKS or missing != len(found):
        raise InvalidModelError(
            f"{tensors.file}: {part}.{missing} has no tensors; expected CompVis' openaimodel.UNetModel with "
            "convolutions in its down- and upsamplers (conv_resample)"
        )
    return len(found)


def _upsampler(tensors: Tensors, block: int) -> int | None:
    """Return the place of an output block's upsampler in it, or None."""
    for place in (1, 2):
        path = f"output_blocks.{block}.{place}"
        if f"{path}.conv.weight" in tensors or f"{path}.in_layers.0.weight" in tensors:
            return place
    return None


def _uniform(attends: list[bool], first: str, file: str) -> bool:
    if len(set(attends)) != 1:
        raise InvalidModelError(f"{file}: of the level from {first} on, only some blocks have attention")
    return attends[0]
