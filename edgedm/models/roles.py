"""Layer roles of diffusers' denoisers: what a layer is for, whatever it is called and whatever class it has.

The authors of the four methods choose layers by attribute names of their own UNets ("Conv1d", "skip", "op"). Those
rules change their meaning on diffusers, whose attention is `Linear`; policies (`edgedm.quant.policy`) speak of roles.
"""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.models.bits import Bits

Role = Literal[
    "conv_in",  # the first convolution or patch embedding
    "time_mlp",  # the MLPs of the timestep and of added conditions
    "res_conv",  # 3x3 convolutions of residual blocks
    "res_time",  # a block's projection of the time embedding; DiT's modulation
    "shortcut",  # 1x1 convolutions beside residual blocks
    "down",
    "up",
    "attn_qkv",  # of self- and cross-attention
    "attn_out",
    "attn_matmul",  # the two products of attention: query, key, softmax weight and value
    "attn_proj",  # proj_in and proj_out around transformer blocks
    "feed_forward",  # the MLP of a transformer block
    "conv_out",  # the last convolution or projection
]

# last components of a module path -> role; the names of UNet2DModel, UNet2DConditionModel and DiTTransformer2DModel
_ROLE_OF: dict[str, Role] = {
    "conv_in": "conv_in",
    "pos_embed.proj": "conv_in",
    "time_embedding.linear_1": "time_mlp",
    "time_embedding.linear_2": "time_mlp",
    "time_embedding.cond_proj": "time_mlp",
    "add_embedding.linear_1": "time_mlp",
    "add_embedding.linear_2": "time_mlp",
    "class_embedding.linear_1": "time_mlp",
    "class_embedding.linear_2": "time_mlp",
    "timestep_embedder.linear_1": "time_mlp",
    "timestep_embedder.linear_2": "time_mlp",
    "conv1": "res_conv",
    "conv2": "res_conv",
    "time_emb_proj": "res_time",
    "norm1.linear": "res_time",
    "proj_out_1": "res_time",
    "conv_shortcut": "shortcut",
    "downsamplers.0.conv": "down",
    "upsamplers.0.conv": "up",
    "to_q": "attn_qkv",
    "to_k": "attn_qkv",
    "to_v": "attn_qkv",
    "to_out.0": "attn_out",
    "proj_in": "attn_proj",
    "proj_out": "attn_proj",
    "net.0.proj": "feed_forward",
    "net.2": "feed_forward",
    "conv_out": "conv_out",
    "proj_out_2": "conv_out",
}

ROLES: tuple[Role, ...] = Role.__args__  # type: ignore[attr-defined]  # the members of a Literal
FLOAT: dict[Role, Bits] = dict.fromkeys(ROLES, "float")

LAYERS = (nn.Conv2d, nn.Conv1d, nn.Linear)


def roles(model: nn.Module, named: Mapping[str, Role] | None = None) -> dict[str, Role]:
    """Return {module path: role} of every `Conv2d`, `Conv1d` and `Linear` of `model`, in module order.

    `named` gives roles by path, before the names of diffusers are looked at: with it any `nn.Module` will do.
    Raises `UnsupportedError` for a layer that has no role.
    """
    known = named or {}
    layers = [path for path, module in model.named_modules() if isinstance(module, LAYERS)]
    return {path: known.get(path) or _role(path) for path in layers}


def _role(path: str) -> Role:
    parts = path.split(".")
    for length in (1, 2, 3):
        role = _ROLE_OF.get(".".join(parts[-length:]))
        if role is not None:
            return role
    raise UnsupportedError(
        f"layer '{path}': no role is known for it; edgedm knows the layers of diffusers' UNet2DModel, "
        "UNet2DConditionModel and DiTTransformer2DModel; name the role of any other: roles={path: role}"
    )


def output_blocks(unet: nn.Module) -> list[str]:
    """Return the paths of the modules that end the UNet's output blocks, first one first.

    An output block is that of LDM's UNet: a residual block, its attention if there is one, and the upsampler if
    it is the last of its level.
    """
    ends = []
    for level, block in enumerate(unet.get_submodule("up_blocks").children()):
        attentions = getattr(block, "attentions", None)
        count = len(block.get_submodule("resnets")._modules)
        for index in range(count):
            part = "resnets" if attentions is None else "attentions"
            ends.append(f"up_blocks.{level}.{part}.{index}")
        if getattr(block, "upsamplers", None):
            ends[-1] = f"up_blocks.{level}.upsamplers.0"
    return ends


def block_ends(unet: nn.Module) -> list[str]:
    """Return the modules that end the input, middle and output blocks: LDM's `TimestepEmbedSequential`s but the first,
    which is conv_in alone and full precision."""
    ends = []
    for level, block in enumerate(unet.get_submodule("down_blocks").children()):
        part = "resnets" if getattr(block, "attentions", None) is None else "attentions"
        ends += [f"down_blocks.{level}.{part}.{i}" for i in range(len(block.get_submodule("resnets")._modules))]
        if getattr(block, "downsamplers", None):
            ends.append(f"down_blocks.{level}.downsamplers.0")
    return [*ends, "mid_block", *output_blocks(unet)]
