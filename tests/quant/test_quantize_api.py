"""`edgedm.quantize` on modules: any architecture, any module, policies, options, and nothing half done."""

import copy

import pytest
import torch
from architectures import SMALL_CONDITIONAL, SMALL_DIT
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

import edgedm
from edgedm.errors import UnsupportedError
from edgedm.models.attention import ExplicitAttention, make_attention_explicit
from edgedm.models.roles import ROLES, roles
from edgedm.quant.api import make_inference, method_options, quantize_layers
from edgedm.quant.methods import METHODS
from edgedm.quant.methods.bidm import BiDMOptions
from edgedm.quant.policy import POLICIES, policy_of
from edgedm.quant.uniform_layer import UniformLayer

CLOSE = 2e-5  # another order of float32 operations through a few layers


def conditional():
    torch.manual_seed(0)
    model = UNet2DConditionModel(**SMALL_CONDITIONAL).eval()
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 5, 12))
    return model, lambda m: m(*inputs).sample


def transformer():
    torch.manual_seed(0)
    model = DiTTransformer2DModel(**SMALL_DIT).eval()
    x, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([1, 7])
    return model, lambda m: m(x, t, class_labels=labels).sample


MODELS = {"UNet2DConditionModel": conditional, "DiTTransformer2DModel": transformer}


@torch.no_grad()
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_explicit_attention_equals_diffusers_own_on_tokens_and_across(make):
    model, run = make()
    before = run(model)
    assert make_attention_explicit(model)
    assert torch.allclose(run(model), before, atol=CLOSE)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_quantises_and_trains_every_architecture(make, method):
    model, run = make()
    before = roles(model)
    assert edgedm.quantize(model, method) is model
    policy = policy_of(method)
    for path, role in before.items():
        is_float = isinstance(model.get_submodule(path), nn.Linear | nn.Conv2d)
        assert is_float == (policy.bits[role] == "float"), path
    quantised = any(isinstance(m, ExplicitAttention) and len(m.quantizers) for m in model.modules())
    assert quantised == (policy.bits["attn_matmul"] != "float")
    output = run(model)
    assert output.isfinite().all()
    torch.autograd.backward(output.square().mean())
    trained = [p for path in before for p in model.get_submodule(path).parameters() if p.grad is not None]
    assert any(p.grad.abs().sum() > 0 for p in trained)


def test_any_module_can_be_quantised_with_roles_of_its_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1, groups=2))
    own = {"0": "conv_in", "2": "res_conv"}
    edgedm.quantize(net, "binarydm", {"conv_in": "float", "res_conv": "W1A4"}, roles=own)
    assert isinstance(net[0], nn.Conv1d) and not isinstance(net[2], nn.Conv1d)
    assert net(torch.randn(2, 4, 10)).shape == (2, 8, 10)


def test_a_refusal_changes_nothing():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = copy.deepcopy(net)
    with pytest.raises(UnsupportedError, match="'1'"):
        edgedm.quantize(net, "bidm", roles={"0": "res_conv"})
    with pytest.raises(UnsupportedError, match="xnor"):
        edgedm.quantize(net, "magic")
    with pytest.raises(UnsupportedError, match="nonsense"):
        edgedm.quantize(net, "binarydm", options={"nonsense": 1})
    assert [type(m) for m in net.modules()] == [type(m) for m in before.modules()]


def test_a_late_refusal_leaves_no_hook_and_no_other_processor():
    model, run = conditional()
    layers, before = [type(m) for m in model.modules()], run(model)
    with pytest.raises(UnsupportedError):
        quantize_layers(model, "bidm", {"attn_matmul": "A4"})
    assert [type(m) for m in model.modules()] == layers
    assert not model._forward_pre_hooks
    assert not any(isinstance(p, ExplicitAttention) for p in model.attn_processors.values())
    assert torch.equal(run(model), before)


def test_attention_is_made_explicit_everywhere_or_nowhere():
    model, _ = conditional()
    *_, last = (m for m in model.modules() if isinstance(m, Attention))
    last.norm_q = nn.LayerNorm(8)
    with pytest.raises(UnsupportedError, match="norm_q"):
        make_attention_explicit(model)
    assert not any(isinstance(p, ExplicitAttention) for p in model.attn_processors.values())


@pytest.mark.parametrize("method", ["lsq", "binarydm"])
def test_a_module_whose_blocks_are_plain_convolutions_is_quantised(method):
    net = nn.Module()
    net.down_blocks = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)])
    net.up_blocks = nn.ModuleList([nn.Conv2d(4, 4, 3)])
    own = {f"{side}.{i}": "res_conv" for side, count in (("down_blocks", 2), ("up_blocks", 1)) for i in range(count)}
    quantize_layers(net, method, roles=own)
    assert not any(isinstance(net.get_submodule(path), nn.Conv2d) for path in own)


def test_every_policy_has_a_reason_for_every_role_that_it_decides():
    for variants in POLICIES.values():
        for policy in variants.values():
            rows = policy.rows()
            assert [role for role, _, _ in rows] == list(ROLES)
            assert all(reason for _, bits, reason in rows if bits != "float"), policy.name


@pytest.mark.parametrize("method", ["dorefa", "reactnet"])
def test_baselines_have_the_bits_of_bidm_without_the_reasons_of_its_release(method):
    ours, theirs = policy_of(method), policy_of("bidm")
    assert ours.bits == theirs.bits
    assert ours.reasons["res_conv"] == "as BiDM's comparison has it"
    assert not any(word in why for why in ours.reasons.values() for word in ("filter", "threshold", "release"))


def test_every_option_says_what_it_means():
    for method in METHODS.values():
        silent = [name for name, field in method.options.model_fields.items() if not field.description]
        assert not silent, f"{method.name}: {silent}"


def test_a_policy_at_other_bits_keeps_its_edges():
    wide = policy_of("dilatequant", nominal="W6A6").bits
    assert (wide["res_conv"], wide["attn_matmul"], wide["conv_in"]) == ("W6A6", "A6", "W8A8")
    with pytest.raises(ValueError, match="W5A5"):
        policy_of("lsq", nominal="W5A5")
    with pytest.raises(UnsupportedError, match="paper, code"):
        policy_of("efficientdm", "vibes")


def test_a_policy_implies_options_that_are_not_given():
    int8 = policy_of("bidm", "int8")
    assert method_options("bidm", None, int8).shortcut_bits == "W8A8"
    assert method_options("bidm", BiDMOptions(filter="fixed"), int8).shortcut_bits == "W8A8"
    assert method_options("bidm", {"shortcut_bits": "float"}, int8).shortcut_bits == "float"
    assert method_options("bidm", BiDMOptions(shortcut_bits="float"), int8).shortcut_bits == "float"
    assert method_options("bidm").shortcut_bits == method_options("bidm", None, policy_of("bidm")).shortcut_bits
    settled = method_options("bidm", {"filter": "fixed"}, int8)
    assert method_options("bidm", settled, int8) == settled


def test_implied_options_are_the_methods_own_and_only_of_unpublished_policies():
    for method, variants in POLICIES.items():
        for variant, policy in variants.items():
            assert not policy.options or (method == "bidm" and variant in ("int8", "int4", "binary"))
            if policy.options:
                method_options(method, None, policy)


def test_implied_options_reach_the_layers():
    def quantised(options: dict) -> nn.Module:
        net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1))
        quantize_layers(net, "bidm", policy_of("bidm", "int8"), roles={"0": "res_conv"}, options=options)
        return net[0].shortcut

    assert isinstance(quantised({}), UniformLayer)
    assert isinstance(quantised({"shortcut_bits": "float"}), nn.Conv2d)


@pytest.mark.parametrize("value", ["nan", "inf", float("nan")])
def test_an_option_is_a_finite_number(value):
    with pytest.raises(UnsupportedError, match="gain_init"):
        method_options("bidm", {"gain_init": value})


def test_per_timestep_layers_read_the_clock_of_their_own_model():
    model, run = conditional()
    quantize_layers(model, "lsq")
    twin = copy.deepcopy(model)
    run(model)
    assert torch.equal(run(twin), run(model))
    make_inference(twin)
    assert run(twin).isfinite().all()
