"""The denoiser with carried state, and explicit attention."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from small_checkpoints import TAPS, UNET, small

from edgedm.models.attention import make_attention_explicit

CLOSE = 2e-5  # another order of float32 operations through a few layers


@pytest.fixture(scope="module")
def bidm():
    return small("bidm").module


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 1, 16, 16, generator=generator), torch.tensor([420]), torch.tensor([3])


@torch.no_grad()
def test_explicit_attention_equals_diffusers_own(inputs):
    torch.manual_seed(0)
    unet = UNet2DModel(**UNET).eval()
    x, t, label = inputs
    before = unet(x, t, class_labels=label).sample
    assert make_attention_explicit(unet)
    assert torch.allclose(unet(x, t, class_labels=label).sample, before, atol=CLOSE)


@torch.no_grad()
def test_names_and_shapes_of_the_state_follow_the_taps(bidm):
    assert bidm.input_names == ["x", "timestep", "class_labels", "has_state", *(f"state.{tap}" for tap in TAPS)]
    assert bidm.output_names == ["eps", *(f"state.{tap}.next" for tap in TAPS)]
    assert bidm.state_shapes(16, 16) == [(1, 16, 16, 16), (1, 8, 16, 16)]


@torch.no_grad()
def test_without_state_nothing_is_mixed(bidm, inputs):
    noise = [torch.randn_like(value) for value in bidm.zero_state(16, 16)]
    first = bidm(*inputs, torch.zeros(1), *noise)
    assert torch.equal(first[0], bidm.record(*inputs))


@torch.no_grad()
def test_the_last_tap_mixes_by_the_row_of_the_timesteps_bin(bidm, inputs):
    state = [torch.randn_like(value) for value in bidm.zero_state(16, 16)]
    plain = bidm(*inputs, torch.ones(1), state[0], torch.zeros_like(state[1]))
    mixed = bidm(*inputs, torch.ones(1), *state)
    c = bidm.cache_coefficients[4, 1]  # timestep 420 lies in the bin of 400..499
    assert torch.allclose(mixed[2] - plain[2], c * state[1], atol=CLOSE)
    assert not torch.equal(mixed[0], plain[0])


@torch.no_grad()
def test_a_copy_has_taps_of_its_own(bidm, inputs):
    twin = copy.deepcopy(bidm)
    expected = bidm.record(*inputs)
    bidm.carry.next = []
    assert torch.equal(twin.record(*inputs), expected)
    assert len(twin.carry.next) == 2 and bidm.carry.next == []
