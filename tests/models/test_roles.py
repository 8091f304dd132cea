"""Every layer of a UNet has a role, and the policies are those of the papers' releases."""

import pytest
from diffusers import UNet2DModel
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.models.presets import DIGITS
from edgedm.models.roles import block_ends, output_blocks, roles
from edgedm.quant.methods.bidm import BIDM, BiDMOptions
from edgedm.quant.policy import policy_of


@pytest.fixture(scope="module")
def unet():
    return UNet2DModel(**DIGITS)


def test_every_convolution_and_linear_layer_has_a_role(unet):
    found = roles(unet)
    layers = [path for path, module in unet.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert list(found) == layers
    assert found["conv_in"] == "conv_in" and found["conv_out"] == "conv_out"
    assert found["time_embedding.linear_2"] == "time_mlp"
    assert found["down_blocks.0.downsamplers.0.conv"] == "down"
    assert found["up_blocks.0.upsamplers.0.conv"] == "up"
    assert found["mid_block.attentions.0.to_k"] == "attn_qkv"
    assert found["mid_block.attentions.0.to_out.0"] == "attn_out"
    assert found["up_blocks.2.resnets.1.conv_shortcut"] == "shortcut"
    assert found["mid_block.resnets.0.time_emb_proj"] == "res_time"


def test_a_layer_without_a_role_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="0"):
        roles(nn.Sequential(nn.Linear(2, 2)))


def test_policies_keep_the_edges_float_and_bidm_the_shortcuts_too():
    edges = {"conv_in", "time_mlp", "conv_out"}
    binarydm, bidm = policy_of("binarydm", "code").bits, policy_of("bidm").bits
    assert {role for role, bits in binarydm.items() if bits == "float"} == edges
    assert {role for role, bits in bidm.items() if bits == "float"} == edges | {"shortcut", "attn_matmul"}


def test_output_blocks_end_as_in_ldm_and_the_taps_are_their_last_two_thirds(unet):
    ends = output_blocks(unet)
    assert ends == [
        "up_blocks.0.attentions.0",
        "up_blocks.0.upsamplers.0",
        "up_blocks.1.resnets.0",
        "up_blocks.1.upsamplers.0",
        "up_blocks.2.resnets.0",
        "up_blocks.2.resnets.1",
    ]
    assert BIDM.taps(unet, BiDMOptions()) == ends[2:]
    assert len(block_ends(unet)) == 5 + 1 + 6
