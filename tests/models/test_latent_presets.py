"""Presets of latent models: a decoder, a text condition or classes, every method on them."""

import diffusers
import pytest
import torch

from edgedm.errors import InvalidModelError
from edgedm.models import Checkpoint, CheckpointConfig, load, save
from edgedm.models.checkpoint import decoder_of
from edgedm.models.decoder import decoded_shape, nearest
from edgedm.quant.integer import QuantLayer
from edgedm.quant.running import RUNNING_LAYERS

METHODS = ("fp32", "bidm", "binarydm", "efficientdm", "dilatequant")
CROSS, FEED_FORWARD = (
    "mid_block.attentions.0.transformer_blocks.0.attn2",
    "mid_block.attentions.0.transformer_blocks.0.ff",
)


def model(name: str, method: str) -> Checkpoint:
    return load(f"preset:{name},method={method},narrow=4")


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_a_text_condition_changes_what_is_predicted(method: str) -> None:
    module = model("latent-text", method).module
    x, timestep = noise(1, 3, 16, 16), torch.tensor([500])
    first, second, none = (
        module.record(x, timestep, None, each) for each in (noise(1, 8, 16), noise(1, 8, 16, seed=2), None)
    )
    assert first.shape == x.shape and 0.01 < first.std() < 10
    assert not torch.allclose(first, second, atol=1e-3) and not torch.allclose(first, none, atol=1e-3)
    assert torch.equal(none, module.record(x, timestep, None, torch.zeros(1, 8, 16)))
    assert module.input_names[:3] == ["x", "timestep", "encoder_hidden_states"]


@pytest.mark.parametrize("method", METHODS)
def test_a_class_changes_what_is_predicted(method: str) -> None:
    module = model("latent-class", method).module
    x, timestep = noise(1, 3, 16, 16), torch.tensor([500])
    first, second = (module.record(x, timestep, torch.tensor([label])) for label in (1, 7))
    assert 0.01 < first.std() < 10 and not torch.allclose(first, second, atol=1e-3)
    assert module.input_names[:3] == ["x", "timestep", "class_labels"]


@pytest.mark.parametrize(("method", "low"), [("bidm", True), ("dilatequant", True), ("fp32", False)])
def test_roles_decide_about_cross_attention_and_feed_forward_layers(method: str, low: bool) -> None:
    unet = model("latent-text", method).module.unet
    for path in (f"{CROSS}.to_q", f"{CROSS}.to_k", f"{CROSS}.to_v", f"{CROSS}.to_out.0", f"{FEED_FORWARD}.net.0.proj"):
        assert isinstance(unet.get_submodule(path), RUNNING_LAYERS) == low, path


def test_the_products_of_cross_attention_are_quantised_a_head() -> None:
    unet = model("latent-text", "dilatequant").module.unet
    tables = unet.get_submodule(CROSS).processor.quantizers
    assert sorted(tables) == ["key", "query", "value", "weight"] and {each.heads for each in tables.values()} == {4}
    assert isinstance(unet.get_submodule(f"{CROSS}.to_k"), QuantLayer)


def test_bidm_carries_what_transformers_leave() -> None:
    checkpoint = model("latent-text", "bidm")
    assert checkpoint.config.taps == ["up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
    x, timestep, text = noise(1, 3, 16, 16), torch.tensor([500]), noise(1, 8, 16)
    module, state = checkpoint.module, checkpoint.module.zero_state(16, 16)
    assert [each.shape for each in state] == [(1, 16, 16, 16)] * 2
    first, *carried = module(x, timestep, text, torch.zeros(1), *state)
    later, *_ = module(x, timestep, text, torch.ones(1), *carried)
    fresh, *_ = module(x, timestep, text, torch.ones(1), *state)
    assert not torch.allclose(later, fresh) and torch.equal(first, module.record(x, timestep, None, text))


@pytest.mark.parametrize("name", ["VQModel", "AutoencoderKL"])
def test_a_decoder_is_that_of_diffusers(name: str) -> None:
    """Its pipelines divide by the scaling factor, decode, and take the sample."""
    torch.manual_seed(0)
    config = {"block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 3}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    whole = getattr(diffusers, name)(**config).eval()
    base = model("latent-class", "fp32").config.model_dump()
    described = CheckpointConfig.model_validate({**base, "decoder": {"class_name": name, "config": config}})
    decoder = decoder_of(described)
    assert decoder is not None
    decoder.load_state_dict({key: value for key, value in whole.state_dict().items() if key in decoder.state_dict()})
    latent = noise(1, 3, 8, 8)
    with torch.no_grad():
        expected = whole.decode(latent / whole.config.scaling_factor).sample
        assert torch.allclose(decoder(latent), expected, atol=1e-5)
    assert decoded_shape(decoder, 8, 8) == (3, 16, 16)


def test_every_pixel_moves_to_the_nearest_row_of_the_codebook() -> None:
    z, codebook = noise(1, 3, 4, 5), noise(20, 3, seed=2)
    moved = nearest(z, codebook)
    pixels = z.permute(0, 2, 3, 1).reshape(-1, 3)
    assert torch.equal(moved.permute(0, 2, 3, 1).reshape(-1, 3), codebook[torch.cdist(pixels, codebook).argmin(1)])


def test_seeded_images_fill_their_range_and_latents_use_the_codebook() -> None:
    decoder = load("preset:latent-text").decoder
    assert decoder is not None and decoder.quantize is not None
    latent = noise(1, 3, 16, 16)
    image, codes = decoder(latent), nearest(latent / decoder.scaling_factor, decoder.quantize.embedding.weight)
    assert image.shape == (1, 3, 64, 64) and 0.3 < image.std() < 0.8
    assert torch.unique(codes.reshape(3, -1), dim=1).shape[1] > 100


def test_a_checkpoint_keeps_its_decoder(tmp_path) -> None:
    checkpoint = model("latent-text", "binarydm")
    save(checkpoint, tmp_path / "ckpt")
    again, latent = load(tmp_path / "ckpt"), noise(1, 3, 16, 16)
    assert again.config == checkpoint.config and again.config.condition_shape == (8, 16)
    assert again.decoder is not None and torch.equal(again.decoder(latent), checkpoint.decoder(latent))
    (tmp_path / "ckpt" / "decoder.safetensors").unlink()
    with pytest.raises(InvalidModelError, match=r"decoder\.safetensors: no such file"):
        load(tmp_path / "ckpt")


def test_a_decoder_of_other_latents_is_refused() -> None:
    config = model("latent-class", "fp32").config.model_dump()
    config["decoder"]["config"]["latent_channels"] = 4
    with pytest.raises(InvalidModelError, match="decodes latents of 4 channels, the denoiser's have 3"):
        decoder_of(CheckpointConfig.model_validate(config))


def test_tokens_without_cross_attention_are_refused() -> None:
    config = model("latent-class", "fp32").config.model_dump()
    with pytest.raises(ValueError, match="no cross_attention_dim"):
        CheckpointConfig.model_validate({**config, "condition_tokens": 8})
