"""Weight dilation: eq. 10-12 in numpy, what it must leave as it was, and what it may not do."""

from functools import partial

import numpy as np
import pytest
import torch
from architectures import SMALL_CONDITIONAL, SMALL_UNCONDITIONAL
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from edgedm.models.attention import make_attention_explicit
from edgedm.quant.api import quantize_layers
from edgedm.quant.clock import Clock
from edgedm.quant.dilation import Dilated, dilate, dilation, measure_ranges, saturated
from edgedm.quant.uniform_layer import UniformLayer, weight_grid

HALF = 2.0**-10  # relative distance of neighbouring float16 values: s is rounded to one of them
QKV = {"to_q": "attn_qkv", "to_k": "attn_qkv", "to_v": "attn_qkv", "to_out.0": "attn_out"}
SAME = 1e-5  # float32 rounding of s W and x / s, in sums of a few hundred products


# -0.0 and float16's smallest numbers included: zero denominators and quotients beyond any cap
values = st.one_of(st.floats(-2, 2, width=16), st.sampled_from([0.0, -0.0, 6e-8, -6e-8]))
weights = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.just(1)), elements=values
)


def by_the_formulas(w, cap=65504.0):
    """s[I] of a weight [O, I, taps...], entry by entry, float64, unrounded."""
    w = w.reshape(w.shape[0], w.shape[1], -1).astype(np.float64)
    s = np.full(w.shape[1], np.inf)
    for i in range(w.shape[1]):
        for o in range(w.shape[0]):
            top, bottom = w[o].max(), w[o].min()
            for value in w[o, i]:
                if value != 0 and value in (top, bottom):
                    s[i] = min(s[i], 1.0)
                if value > 0:
                    s[i] = min(s[i], top / value)
                if value < 0:
                    s[i] = min(s[i], bottom / value)
    s[np.isinf(s)] = 1
    return s.clip(1, cap)


@settings(deadline=None, max_examples=200)
@given(weights, st.sampled_from([65504.0, 8.0, 1.0]))
def test_s_is_eq_10_to_12_rounded_towards_1_to_a_float16_value(w, cap):
    s = dilation(torch.from_numpy(w), cap=cap).double().numpy()
    expected = by_the_formulas(w, cap)
    assert (s >= 1).all() and (s <= cap).all()
    assert (s <= expected * (1 + 1e-12)).all() and (s > expected * (1 - HALF)).all()
    assert np.array_equal(s, s.astype(np.float16))


@settings(deadline=None, max_examples=200)
@given(weights)
def test_extrema_and_steps_stay_what_they_were_to_the_bit(w):
    w = torch.from_numpy(w)
    s = dilation(w)
    dilated = w * s[None, :, None, None]
    for extremum in (torch.amax, torch.amin):
        assert torch.equal(extremum(dilated, (1, 2, 3)), extremum(w, (1, 2, 3)))
    for bits in (4, 6):
        for before, after in zip(weight_grid(w, bits, False), weight_grid(dilated, bits, False), strict=True):
            assert torch.equal(before, after)
    at_extremum = saturated(w)
    assert (s[at_extremum] == 1).all()
    assert (s[(w == 0).flatten(2).all(2).all(0)] == 1).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["conv2d", "strided", "grouped", "conv1d", "linear"]))
def test_the_layer_computes_what_it_did(seed, kind):
    torch.manual_seed(seed)
    layer, shape = {
        "conv2d": (nn.Conv2d(12, 3, 3, padding=1), (2, 12, 5, 5)),
        "strided": (nn.Conv2d(12, 3, 3, padding=1, stride=2), (2, 12, 6, 6)),
        "grouped": (nn.Conv2d(12, 4, 3, groups=2), (2, 12, 5, 5)),
        "conv1d": (nn.Conv1d(12, 3, 3), (2, 12, 9)),
        "linear": (nn.Linear(12, 3), (2, 7, 12)),
    }[kind]
    float_input = UniformLayer(layer, 4, 32, Clock(), dilate=True)
    dilate(nn.Sequential(float_input))
    x = torch.randn(shape)
    y = float_input.geometry.apply(float_input.quantized_input(x), float_input.weight, float_input.bias)
    assert torch.allclose(y, layer(x), atol=SAME)
    assert (float_input.dilation > 1).any()
    assert torch.equal(float_input.step, weight_grid(float_input.weight.detach(), 4, False)[0])


def test_a_single_output_channel_leaves_two_channels_alone():
    s = dilation(torch.tensor([[0.5, -1.0, 0.25, -0.1, 0.0, 2.0]]))
    # 2.0 and -1.0 are the extrema; -1 / -0.1 in float32 is just below 10, so s is the float16 value below
    assert s.tolist() == [4, 1, 8, pytest.approx(10, rel=HALF), 1, 1]
    assert float(s[3]) <= 10


def test_rows_of_negative_weights_are_bounded_by_their_minimum_alone():
    s = dilation(torch.tensor([[-4.0, -1.0, -2.0, -0.5]]))
    assert s.tolist() == [1, 4, 2, 1]  # the last one is W_max: in A


def test_an_output_channel_of_zeros_saturates_nothing():
    w = torch.tensor([[1.0, 0.5, -1.0], [0.0, 0.0, 0.0]])
    assert saturated(w).tolist() == [True, False, True]
    assert dilation(w).tolist() == [1, 2, 1]


def test_all_taps_of_a_channel_count():
    w = torch.tensor([[[[4.0, 1.0]], [[0.5, 2.0]], [[-1.0, -0.5]], [[0.25, -0.25]]]])
    assert dilation(w).tolist() == [1, 2, 1, 4]


def test_groups_are_dilated_on_their_own():
    torch.manual_seed(0)
    w = torch.randn(6, 4, 3, 3)
    apart = torch.cat([dilation(w[:3]), dilation(w[3:])])
    assert torch.equal(dilation(w, groups=2), apart)


def test_a_cap_bounds_s_and_a_wrong_cap_is_refused():
    w = torch.tensor([[1.0, -1.0, 1e-3]])
    assert dilation(w, cap=16).tolist() == [1, 1, 16]
    assert dilation(w)[2] > 900
    for cap in (0.5, 1e6):
        with pytest.raises(ValueError, match="cap"):
            dilation(w, cap=cap)


def unet(**options):
    torch.manual_seed(0)
    model = UNet2DModel(**SMALL_UNCONDITIONAL).eval()
    make_attention_explicit(model)
    return quantize_layers(model, "dilatequant", options=options)


def test_query_key_and_value_share_one_s_from_their_joint_extrema():
    model = unet()
    block = "mid_block.attentions.0."
    before = [model.get_submodule(block + name).weight.detach().clone() for name in ("to_q", "to_k", "to_v")]
    done = dilate(model)
    expected = dilation(torch.cat(before))
    for name, weight in zip(("to_q", "to_k", "to_v"), before, strict=True):
        layer = model.get_submodule(block + name)
        assert torch.equal(layer.dilation, expected)
        assert torch.equal(layer.weight, weight * expected)
        assert done[block + name] == done[block + "to_q"]


@torch.no_grad()
def test_across_key_and_value_share_the_s_of_the_context_and_the_output_stays_the_same():
    torch.manual_seed(0)
    model = UNet2DConditionModel(**SMALL_CONDITIONAL).eval()
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 5, 12))
    quantize_layers(model, "dilatequant")
    for layer in (module for module in model.modules() if isinstance(module, UniformLayer)):
        layer.quantized_weight = partial(getattr, layer, "weight")  # tables pass their input until calibrated
    before = model(*inputs).sample
    dilate(model)
    block = model.get_submodule("mid_block.attentions.0.transformer_blocks.0")
    assert len(block.attn2.to_q.dilation) == 32 and len(block.attn2.to_k.dilation) == 12
    assert torch.equal(block.attn2.to_k.dilation, block.attn2.to_v.dilation)
    assert torch.equal(block.attn1.to_q.dilation, block.attn1.to_k.dilation)
    assert any((m.dilation > 1).any() for m in model.modules() if isinstance(m, UniformLayer))
    torch.testing.assert_close(model(*inputs).sample, before, rtol=0, atol=SAME)


def test_an_attention_block_may_be_the_model_itself():
    torch.manual_seed(0)
    attention = quantize_layers(Attention(8, heads=2, dim_head=4), "dilatequant", roles=QKV)
    dilate(attention)
    assert torch.equal(attention.to_q.dilation, attention.to_v.dilation)


def test_layers_that_only_share_a_name_with_attentions_have_an_s_of_their_own():
    torch.manual_seed(0)
    layers = {
        name: UniformLayer(nn.Linear(size, 4), 4, 32, Clock(), dilate=True) for name, size in (("to_q", 3), ("to_k", 5))
    }
    assert set(dilate(nn.ModuleDict(layers))) == {"to_q", "to_k"}


def test_every_layer_is_dilated_and_reported():
    model = unet()
    layers = {path: module for path, module in model.named_modules() if isinstance(module, UniformLayer)}
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 300, 600, 999])
    done = dilate(model)
    measured = measure_ranges(model, done, lambda: model(x, t))
    assert measured.keys() == done.keys() == layers.keys()
    for path, layer in layers.items():
        assert measured[path].mean == pytest.approx(float(layer.dilation.mean()))
        # s may be 1 outside A too: a quotient just above 1 is rounded down
        assert float((layer.dilation > 1).double().mean()) <= measured[path].share
        assert 0 < measured[path].range_ratio <= 1
    assert any(report.range_ratio < 1 for report in measured.values())
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_the_range_ratio_is_that_of_the_divided_input():
    torch.manual_seed(0)
    layer = UniformLayer(nn.Linear(6, 1), 4, 32, Clock(), dilate=True)
    model = nn.Sequential(layer)
    x = torch.randn(50, 6)
    (report,) = measure_ranges(model, dilate(model), lambda: model(x)).values()
    divided = (x / layer.dilation).numpy()
    assert report == Dilated(4 / 6, float(layer.dilation.mean()), pytest.approx(np.ptp(divided) / np.ptp(x.numpy())))


def test_a_constant_input_has_no_range_to_compare():
    model = nn.Sequential(UniformLayer(nn.Linear(6, 1), 4, 32, Clock(), dilate=True))
    (report,) = measure_ranges(model, dilate(model), lambda: model(torch.zeros(50, 6))).values()
    assert report.range_ratio is None


def test_layers_without_a_dilation_are_left_alone():
    model = unet(dilate=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert dilate(model) == {}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(name.endswith("dilation") for name in before)
