"""Every layer of the published architectures has a role, and their number of weights is the published one."""

from collections import Counter

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.models.presets import DDPM_CIFAR10, LDM4_BEDROOMS
from edgedm.models.roles import roles


def on_meta(kind, config):
    with torch.device("meta"):
        return kind(**config)


def weights(model: nn.Module) -> float:
    return sum(model.get_submodule(path).weight.numel() for path in roles(model)) / 1e6


def test_ddpm_cifar10_has_35_7_million_weights_in_22_residual_blocks():
    unet = on_meta(UNet2DModel, DDPM_CIFAR10)
    found = Counter(roles(unet).values())
    assert found["res_conv"] == 2 * found["res_time"] == 44
    assert (found["attn_qkv"], found["attn_out"], found["shortcut"]) == (18, 6, 13)
    assert (found["down"], found["up"], found["conv_in"], found["conv_out"], found["time_mlp"]) == (3, 3, 1, 1, 2)
    assert weights(unet) == pytest.approx(35.69, abs=0.01)


def test_ldm4_has_273_9_million_weights():
    unet = on_meta(UNet2DModel, LDM4_BEDROOMS)
    found = Counter(roles(unet).values())
    assert (found["attn_qkv"], found["attn_out"], found["shortcut"]) == (48, 16, 15)
    assert weights(unet) == pytest.approx(273.87, abs=0.01)


def test_stable_diffusions_unet_has_cross_attention_and_feed_forward_layers():
    found = Counter(roles(on_meta(UNet2DConditionModel, {"cross_attention_dim": 768})).values())
    assert found["attn_qkv"] == 3 * found["attn_out"] == 96
    assert (found["feed_forward"], found["attn_proj"], found["res_conv"]) == (32, 32, 44)


def test_added_conditions_belong_to_the_time_mlp():
    config = {
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 112,
        "class_embed_type": "timestep",
        "time_cond_proj_dim": 16,
    }
    found = roles(on_meta(UNet2DConditionModel, config))
    names = ("add_embedding.linear_1", "class_embedding.linear_2", "time_embedding.cond_proj")
    assert {found[name] for name in names} == {"time_mlp"}


def test_dits_modulation_is_res_time_and_its_patches_are_the_first_and_last_layer():
    found = roles(on_meta(DiTTransformer2DModel, {}))
    count = Counter(found.values())
    assert (count["attn_qkv"], count["feed_forward"], count["res_time"]) == (84, 56, 29)
    assert found["pos_embed.proj"] == "conv_in" and found["proj_out_2"] == "conv_out"


def test_roles_given_by_path_come_first_and_an_unknown_layer_is_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv1d(4, 4, 1))
    assert roles(net, {"0": "res_conv", "2": "conv_out"}) == {"0": "res_conv", "2": "conv_out"}
    with pytest.raises(UnsupportedError, match=r"'2'.*roles="):
        roles(net, {"0": "res_conv"})
