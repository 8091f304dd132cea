"""Layer roles of a diffusers `UNet2DModel`, and the policies that speak of them.

The authors of BinaryDM and BiDM choose layers by attribute names of their own UNets ("Conv1d", "skip", "op").
Those rules change their meaning on diffusers, whose attention is `Linear`; a role says what a layer is for.
"""

from typing import Literal

from torch import nn

from edgedm.errors import UnsupportedError

Role = Literal[
    "conv_in", "time_mlp", "res_conv", "res_time", "shortcut", "down", "up", "attn_qkv", "attn_out", "conv_out"
]
Bits = Literal["float", "W1A1", "W1A4"]

# last components of a module path -> role
_ROLE_OF: dict[str, Role] = {
    "conv_in": "conv_in",
    "time_embedding.linear_1": "time_mlp",
    "time_embedding.linear_2": "time_mlp",
    "conv1": "res_conv",
    "conv2": "res_conv",
    "time_emb_proj": "res_time",
    "conv_shortcut": "shortcut",
    "downsamplers.0.conv": "down",
    "upsamplers.0.conv": "up",
    "to_q": "attn_qkv",
    "to_k": "attn_qkv",
    "to_v": "attn_qkv",
    "to_out.0": "attn_out",
    "conv_out": "conv_out",
}

FLOAT: dict[Role, Bits] = dict.fromkeys(_ROLE_OF.values(), "float")

# BinaryDM's released code keeps the layers closest to input and output in full precision; all else is binary.
BINARYDM: dict[Role, Bits] = {
    **FLOAT,
    "res_conv": "W1A4",
    "res_time": "W1A4",
    "shortcut": "W1A4",
    "down": "W1A4",
    "up": "W1A4",
    "attn_qkv": "W1A4",
    "attn_out": "W1A4",
}

# BiDM keeps the residual blocks' own 1x1 shortcuts (`skip_connection`) float as well.
BIDM: dict[Role, Bits] = {
    **FLOAT,
    "res_conv": "W1A1",
    "res_time": "W1A1",
    "down": "W1A1",
    "up": "W1A1",
    "attn_qkv": "W1A1",
    "attn_out": "W1A1",
}


def roles(unet: nn.Module) -> dict[str, Role]:
    """Return {module path: role} of every `Conv2d` and `Linear` of a diffusers `UNet2DModel`, in module order.

    Raises `UnsupportedError` for a layer that has no role.
    """
    found: dict[str, Role] = {}
    for path, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found[path] = _role(path)
    return found


def _role(path: str) -> Role:
    parts = path.split(".")
    for length in (1, 2, 3):
        role = _ROLE_OF.get(".".join(parts[-length:]))
        if role is not None:
            return role
    raise UnsupportedError(f"layer '{path}': no role is known for it; edgedm knows the layers of diffusers.UNet2DModel")


def output_blocks(unet: nn.Module) -> list[str]:
    """Return the paths of the modules that end the UNet's output blocks, first one first.

    An output block is that of LDM's UNet: a residual block, its attention if there is one, and the upsampler if
    it is the last of its level (methods.md 0.2).
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
