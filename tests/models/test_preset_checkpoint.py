"""`preset:NAME`: published sizes, every method on them, and weights that hide no mistake."""

import pytest
import torch
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.models import load
from edgedm.models.checkpoint import skeleton
from edgedm.models.preset_checkpoint import preset_config, read_reference
from edgedm.models.preset_reference import with_method
from edgedm.quant.inference import (
    ActivationQuantizer,
    BinaryConv2d,
    BinaryLinear,
    BinaryWeightConv2d,
    BinaryWeightLinear,
)
from edgedm.quant.integer import QuantLayer, UniformQuantizer

# (parameters, those of convolutions and linear layers, multiply-accumulates of these for one image)
PUBLISHED = {
    "ddpm-cifar10": (35_746_307, 35_690_000, 6_053_953_536),
    "ldm4-bedrooms": (274_056_163, 273_870_000, 96_017_969_152),
}
MOST = 12  # of 16 codes


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_architecture_has_the_published_size(name: str) -> None:
    parameters, weights, macs = PUBLISHED[name]
    with torch.device("meta"):
        unet = preset_config(read_reference(f"preset:{name}")).float_unet()
    layers = [each for each in unet.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    counted: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda each, _inputs, y: counted.append(y.numel() * each.weight[0].numel()))
    size = unet.config["sample_size"]
    unet(torch.zeros(1, 3, size, size, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"))
    assert sum(each.numel() for each in unet.parameters()) == parameters
    assert sum(each.weight.numel() for each in layers) == pytest.approx(weights, rel=1e-4)
    assert sum(counted) == macs


@pytest.mark.parametrize(
    ("name", "heads"), [("ddpm-cifar10", {1}), ("ldm4-bedrooms", {14, 21, 28})], ids=["ddpm", "ldm"]
)
def test_attention_has_the_published_heads(name: str, heads: set[int]) -> None:
    with torch.device("meta"):
        unet = preset_config(read_reference(f"preset:{name}")).float_unet()
    assert {each.heads for each in unet.modules() if hasattr(each, "heads")} == heads


@pytest.mark.parametrize("text", ["preset:ddpm-cifar10", "preset:ldm4-bedrooms"])
@pytest.mark.parametrize("method", ["fp32", "bidm", "binarydm", "efficientdm", "dilatequant"])
def test_every_method_makes_a_model_that_runs(text: str, method: str) -> None:
    checkpoint = load(f"{text},method={method},narrow=16")
    size = checkpoint.config.architecture.config["sample_size"]
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    eps = checkpoint.module.record(x, torch.tensor([500]), None)
    assert eps.shape == x.shape and 0.01 < eps.std() < 10


def test_the_same_text_gives_the_same_weights_on_any_number_of_threads() -> None:
    text, threads = "preset:ddpm-cifar10,method=binarydm,narrow=16", torch.get_num_threads()
    first = load(text).module.state_dict()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        second = load(text).module.state_dict()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_two_bases_stand_where_the_release_has_them() -> None:
    module = skeleton(preset_config(read_reference("preset:ldm4-bedrooms,method=binarydm,bases=lmb,narrow=16")))
    two = {path for path, each in module.unet.named_modules() if getattr(each, "bits2", None) is not None}
    blocks = {".".join(path.split(".")[:2]) for path in two}
    assert blocks == {"down_blocks.0", "down_blocks.1", "up_blocks.2", "up_blocks.3"}


def test_bidm_carries_the_last_two_thirds_of_the_output_blocks() -> None:
    with torch.device("meta"):
        config = preset_config(read_reference("preset:ldm4-bedrooms,method=bidm"))
    assert len(config.taps) == 8 and config.taps[-1] == "up_blocks.3.resnets.2"
    assert len(config.timestep_bins) == 100


def test_binary_weights_hide_no_mistake() -> None:
    module = load("preset:ddpm-cifar10,method=bidm,narrow=4").module
    layers = [each for each in module.modules() if isinstance(each, BinaryConv2d | BinaryLinear)]
    assert len(layers) > 90
    for layer in layers:
        assert len(torch.unique(layer.threshold)) > 0.9 * len(layer.threshold)
        assert (layer.threshold != 0).all() and (layer.scale < 0).float().mean() >= 0.1
    filters = [layer.mean_filter for layer in layers if layer.mean_filter is not None]
    assert filters and all(len(torch.unique(each)) == each.numel() for each in filters)
    mix = module.cache_coefficients
    assert (mix != 0).all() and len(torch.unique(mix, dim=0)) == len(mix)
    _norms_are_spread(module)


def test_signs_are_balanced() -> None:
    """A threshold of the input's own size lets both signs occur."""
    module, shares = load("preset:ddpm-cifar10,method=bidm,narrow=4").module, []
    for layer in module.modules():
        if isinstance(layer, BinaryConv2d):
            layer.register_forward_pre_hook(
                lambda each, inputs: shares.append(
                    float((inputs[0] + each.threshold[None, :, None, None] >= 0).float().mean())
                )
            )
    module.record(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([500]), None)
    assert len(shares) == 50 and min(shares) > 0.2 and max(shares) < 0.8


@pytest.mark.parametrize("method", ["binarydm", "efficientdm", "dilatequant"])
def test_activations_use_most_of_their_codes(method: str) -> None:
    module = load(f"preset:ddpm-cifar10,method={method},narrow=4").module
    used: dict[str, int] = {}
    for path, each in module.unet.named_modules():
        if path.endswith(".weight"):
            continue  # softmax: a signed grid has 8 codes that are not negative, and a flat row uses few
        if isinstance(each, UniformQuantizer | ActivationQuantizer) and each.bits == 4:
            each.register_forward_hook(
                lambda _, inputs, y, path=path: used.__setitem__(path, _codes(y)) if y.numel() > 4000 else None
            )
        if isinstance(each, BinaryWeightConv2d | BinaryWeightLinear):
            each.register_forward_pre_hook(
                lambda layer, inputs, path=path: (
                    used.__setitem__(path, _codes((inputs[0] / layer.step).round().clamp(-8, 7)))
                    if inputs[0].numel() > 4000
                    else None
                )
            )
    module.record(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([500]), None)
    assert len(used) > 40
    assert sorted(used.values())[len(used) // 20] >= MOST, sorted(used.items(), key=lambda item: item[1])[:5]


@pytest.mark.parametrize("method", ["efficientdm", "dilatequant"])
def test_uniform_weights_and_tables_hide_no_mistake(method: str) -> None:
    module = load(f"preset:ddpm-cifar10,method={method},narrow=4").module
    for path, each in module.unet.named_modules():
        if isinstance(each, UniformQuantizer):
            assert len(torch.unique(each.table, dim=0)) == len(each.table), path
    layers = [each for each in module.modules() if isinstance(each, QuantLayer)]
    zeros = torch.cat([each.zero.float() for each in layers if each.weight_bits == 4])
    assert len(torch.unique(zeros)) >= 4
    dilations = [each.dilation for each in layers if each.dilation is not None]
    assert (method == "dilatequant") == bool(dilations)
    assert all((each != 1).float().mean() >= 0.1 for each in dilations)
    _norms_are_spread(module)


def test_query_key_and_value_share_their_dilation() -> None:
    unet = load("preset:ddpm-cifar10,method=dilatequant,narrow=8").module.unet
    block = unet.get_submodule("mid_block.attentions.0")
    shared = block.to_q.dilation
    assert torch.equal(shared, block.to_k.dilation) and torch.equal(shared, block.to_v.dilation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset:ddpm", "expected one of preset:ddpm-cifar10, preset:ldm4-bedrooms"),
        ("preset:ddpm-cifar10,bidm", "'bidm': expected KEY=VALUE"),
        ("preset:ddpm-cifar10,method=bidm,method=xnor", "each key once"),
        ("preset:ddpm-cifar10,narrow=3", "narrow: expected 1, 2, 4, 8 or 16"),
        ("preset:ddpm-cifar10,method=onebit", "method: expected one of"),
        ("preset:ddpm-cifar10,method=bidm,policy=code", "policy: bidm has paper"),
        ("preset:ddpm-cifar10,method=bidm,bases=lmb", "option 'bases': bidm has none"),
        ("preset:ddpm-cifar10,policy=code", "no method; add method=NAME"),
    ],
)
def test_an_unknown_name_key_or_value_is_named(text: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        load(text)


def test_a_policy_implies_options_unless_they_are_given() -> None:
    def bits(text: str) -> object:
        return preset_config(read_reference(text)).options["shortcut_bits"]

    assert bits("preset:ddpm-cifar10,method=bidm") == "float"
    assert bits("preset:ddpm-cifar10,method=bidm,policy=int8") == "W8A8"
    assert bits("preset:ddpm-cifar10,method=bidm,policy=int8,shortcut_bits=float") == "float"


def test_the_command_lines_options_become_part_of_the_text() -> None:
    text = with_method("preset:ddpm-cifar10", "binarydm", "code", ["bases=lmb"])
    assert text == "preset:ddpm-cifar10,method=binarydm,policy=code,bases=lmb"
    assert with_method("zoo:digits-fp32", None) == "zoo:digits-fp32"
    with pytest.raises(UnsupportedError, match="a checkpoint has its own"):
        with_method("zoo:digits-fp32", "bidm")


def _codes(values: torch.Tensor) -> int:
    return len(torch.unique(values))


def _norms_are_spread(module: nn.Module) -> None:
    norms = [each for each in module.modules() if isinstance(each, nn.GroupNorm)]
    assert norms and all((each.weight < 0).any() and len(torch.unique(each.bias)) > 4 for each in norms)
