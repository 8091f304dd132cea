"""Policies that leave nothing of BiDM in float but the norms: what they give, and that the whole model runs."""

import pytest
import torch

from edgedm.models import load
from edgedm.quant.inference import BinaryConv2d, BinaryWeightConv2d
from edgedm.quant.integer import QuantLayer
from edgedm.quant.policy import policy_of

KINDS = {"int4": QuantLayer, "binary": BinaryWeightConv2d}


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return request.param, load(f"preset:ddpm-cifar10,method=bidm,policy={request.param},narrow=16").module


def test_every_1x1_shortcut_has_the_policys_layer_and_the_edges_have_8_bits(model):
    policy, module = model
    beside = [path for path, _ in module.unet.named_modules() if path.endswith(".conv_shortcut")]
    inside = [each.shortcut for each in module.unet.modules() if isinstance(each, BinaryConv2d)]
    projections = [each for each in inside if hasattr(each, "in_channels")]
    assert beside and projections
    assert all(isinstance(module.unet.get_submodule(path), KINDS[policy]) for path in beside)
    assert all(isinstance(each, KINDS[policy]) for each in projections)
    edges = [module.unet.conv_in, module.unet.conv_out, module.unet.time_embedding.linear_1]
    assert all(isinstance(each, QuantLayer) and each.weight_bits == 8 for each in edges)


def test_the_carried_state_has_a_shape_where_the_first_layer_is_quantised(model):
    _, module = model
    state = module.zero_state(32, 32)
    assert len(state) == 8
    with torch.no_grad():
        output, *after = module(torch.randn(1, 3, 32, 32), torch.tensor([500]), torch.ones(1), *state)
    assert output.isfinite().all() and [each.shape for each in after] == [each.shape for each in state]


def test_binarydms_small_policy_has_8_bits_in_the_time_mlp():
    small, paper = policy_of("binarydm", "int8").bits, policy_of("binarydm").bits
    assert {role for role in small if small[role] != paper[role]} == {"time_mlp"} and small["time_mlp"] == "W8A8"
