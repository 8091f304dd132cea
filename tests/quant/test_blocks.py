"""Blocks of a UNet by LDM's numbering, on the shape of LDM-4: four levels, two residual blocks a level."""

import pytest
from diffusers import UNet2DModel
from torch import nn

from edgedm.models.roles import roles
from edgedm.quant.blocks import head_and_tail, input_parts, inside, output_parts, outwards

LDM4 = {
    "sample_size": 16,
    "block_out_channels": [4, 4, 4, 4],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 2,
    "attention_head_dim": 2,
}


@pytest.fixture(scope="module")
def unet():
    return UNet2DModel(**LDM4)


def layers_inside(unet, prefixes):
    return [path for path in roles(unet) if inside(path, prefixes)]


def test_there_are_twelve_input_and_twelve_output_blocks(unet):
    first, last = input_parts(unet), output_parts(unet)
    assert len(first) == len(last) == 12
    assert first[0] == ["conv_in"] and first[3] == ["down_blocks.0.downsamplers"]
    assert first[4] == ["down_blocks.1.resnets.0", "down_blocks.1.attentions.0"]
    assert last[2] == ["up_blocks.0.resnets.2", "up_blocks.0.attentions.2", "up_blocks.0.upsamplers"]


def test_half_resolution_is_the_first_and_last_six_blocks(unet):
    paths = head_and_tail(unet)
    assert paths == head_and_tail(unet, 6)
    assert "down_blocks.1.downsamplers" not in paths and "up_blocks.2.upsamplers" in paths
    assert not any(path.startswith(("down_blocks.2", "mid_block", "up_blocks.1")) for path in paths)


def test_a_prefix_ends_at_a_dot():
    assert inside("up_blocks.1.conv", ["up_blocks.1"]) and inside("conv_in", ["conv_in"])
    assert not inside("up_blocks.10.conv", ["up_blocks.1"])


def test_the_warm_up_takes_every_layer_of_every_block_once_from_the_middle_outwards(unet):
    groups = outwards(unet)
    assert len(groups) == 5 and groups[0] == ["mid_block"]
    assert groups[1] == [
        "down_blocks.3.resnets",
        "down_blocks.3.attentions",
        "down_blocks.2.downsamplers",
        "up_blocks.0",
    ]
    found = [path for group in groups for path in layers_inside(unet, group)]
    blocks = [path for path in roles(unet) if path.startswith(("down_blocks", "mid_block", "up_blocks"))]
    assert sorted(found) == sorted(blocks) and len(set(found)) == len(found)


def test_a_model_that_is_no_unet_has_neither():
    other = nn.Module()
    other.down_blocks = nn.ModuleList([nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)])
    other.up_blocks = nn.ModuleList([nn.Conv2d(2, 2, 3)])
    for net in (nn.Sequential(nn.Linear(2, 2)), other):
        assert head_and_tail(net) == head_and_tail(net, 3) == outwards(net) == []
