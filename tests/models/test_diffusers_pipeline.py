"""A pipeline's folder of diffusers as a checkpoint: UNet with cross-attention, autoencoder, scheduler."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from architectures import SMALL_CONDITIONAL

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import load, save
from edgedm.models.diffusers_dir import load_diffusers

AUTOENCODER = {
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
KINDS = {"vqvae": diffusers.VQModel, "vae": diffusers.AutoencoderKL}


def write(folder: Path, autoencoder: str = "vqvae", tokens: int | None = 6) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**SMALL_CONDITIONAL).eval()
    whole = KINDS[autoencoder](**AUTOENCODER).eval()
    unet.save_pretrained(folder / "unet")
    whole.save_pretrained(folder / autoencoder)
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    if tokens is not None:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokens}))
    return unet, whole


@pytest.mark.parametrize("autoencoder", KINDS)
def test_a_pipeline_predicts_and_decodes_as_diffusers_does(tmp_path: Path, autoencoder: str) -> None:
    unet, whole = write(tmp_path, autoencoder)
    checkpoint = load(tmp_path)
    assert checkpoint.config.condition_shape == (6, 12) and checkpoint.decoder is not None
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 6, 12, generator=generator)
    with torch.no_grad():
        expected = unet(x, torch.tensor([700]), text).sample
        assert torch.allclose(checkpoint.module(x, torch.tensor([700]), text)[0], expected, atol=1e-5)
        image = whole.decode(x / whole.config.scaling_factor).sample
        assert torch.allclose(checkpoint.decoder(x), image, atol=1e-5)


def test_it_becomes_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "pipeline")
    checkpoint = load(tmp_path / "pipeline")
    save(checkpoint, tmp_path / "ckpt")
    assert load(tmp_path / "ckpt").config == checkpoint.config
    assert not any(name.startswith("encoder.") for name in checkpoint.decoder.state_dict())


def test_the_number_of_tokens_must_be_known(tmp_path: Path) -> None:
    write(tmp_path, tokens=None)
    with pytest.raises(UnsupportedError, match="says how many tokens it has"):
        load(tmp_path)
    assert load_diffusers(tmp_path, condition_tokens=9).config.condition_shape == (9, 12)
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({"max_position_embeddings": 77}))
    assert load(tmp_path).config.condition_tokens == 77


def test_another_autoencoder_and_missing_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    weights = tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidModelError, match=r"vqvae.*no such file"):
        load(tmp_path)
    config = tmp_path / "vqvae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "AutoencoderTiny"}))
    with pytest.raises(UnsupportedError, match="expected a VQModel or an AutoencoderKL, got 'AutoencoderTiny'"):
        load(tmp_path)


DECODER_ATTACKS = [
    ({"num_vq_embeddings": 10**9}, r"safetensors: tensor 'quantize\.embedding\.weight'"),  # hundreds of gigabytes
    ({"in_channels": 10**9}, None),  # of the encoder, which is not built
    ({"out_channels": 10**9}, r"safetensors: tensor 'decoder\.conv_out\."),
    ({"block_out_channels": [8, 1 << 22]}, "safetensors: "),
    ({"block_out_channels": [8, 10**30]}, r"block_out_channels: expected .* got 10{30}$"),
    ({"block_out_channels": None}, "refuses it"),
    ({"layers_per_block": 10**7}, r"config\.json: layers_per_block: 10000000 layers"),
    ({"layers_per_block": 1.5}, "refuses it"),
    ({"norm_num_groups": 0}, r"norm_num_groups: expected a number of 1\.\.65536, got 0"),
    ({"act_fn": 5}, r"act_fn: expected a value like 'silu', got 5"),
    ({"scaling_factor": 0}, "scaling_factor: expected a number other than 0, got 0"),
    ({"scaling_factor": "x"}, r"scaling_factor: expected a value like 0\.18215, got 'x'"),
    ({"scaling_factor": None}, "scaling_factor"),
    ({"scaling_factor": float("inf")}, "scaling_factor"),
    ({"scaling_factor": True}, "scaling_factor"),
    ({"down_block_types": [5]}, "down_block_types: expected a list of names"),
    ({"up_block_types": None}, "up_block_types: expected a list of names"),
]


@pytest.mark.parametrize(("change", "complaint"), DECODER_ATTACKS, ids=[str(change) for change, _ in DECODER_ATTACKS])
def test_an_autoencoder_is_refused_by_file_before_it_is_allocated(tmp_path: Path, change, complaint) -> None:
    write(tmp_path)
    config = tmp_path / "vqvae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    if complaint is None:
        assert load(tmp_path).decoder is not None
        return
    with pytest.raises(InvalidModelError, match=rf"vqvae/.*{complaint}"):
        load(tmp_path)


def test_a_shift_that_is_no_number_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": "x"}))
    with pytest.raises(InvalidModelError, match=r"vae/config\.json: .*shift_factor: expected a number, got 'x'"):
        load(tmp_path)


def test_a_saved_decoder_is_refused_by_file_before_it_is_allocated_too(tmp_path: Path) -> None:
    write(tmp_path / "pipeline")
    save(load(tmp_path / "pipeline"), tmp_path / "ckpt")
    config = tmp_path / "ckpt" / "config.json"
    values = json.loads(config.read_text())
    for change, complaint in (
        ({"num_vq_embeddings": 10**9}, "embedding"),
        ({"act_fn": 5}, r"config\.json: decoder\.config\.act_fn"),
    ):
        decoder = {**values["decoder"], "config": values["decoder"]["config"] | change}
        config.write_text(json.dumps({**values, "decoder": decoder}))
        with pytest.raises(InvalidModelError, match=complaint):
            load(tmp_path / "ckpt")


def test_a_latent_that_the_decoder_cannot_hold_is_refused_by_file(tmp_path: Path, monkeypatch) -> None:
    """128 KB a tensor are enough for the denoiser's attention, not for a decoder that draws 256 times the pixels."""
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        monkeypatch.setitem(AUTOENCODER, name, AUTOENCODER[name][:1] * 5)
    write(tmp_path)
    monkeypatch.setattr("edgedm.models.trial.MOST_BYTES", 128 << 10)
    with pytest.raises(InvalidModelError, match=r"vqvae/config\.json: latents of 8 x 8 .* too large"):
        load(tmp_path)


def test_a_loaded_decoder_is_whole_and_fixed(tmp_path: Path) -> None:
    write(tmp_path, "vae")
    decoder = load(tmp_path).decoder
    tensors = [*decoder.parameters(), *decoder.buffers()]
    assert {(each.device.type, each.dtype, each.requires_grad) for each in tensors} == {("cpu", torch.float32, False)}
    assert not decoder.training


def test_a_model_that_takes_more_inputs_is_left_to_export(tmp_path: Path) -> None:
    """Stable Diffusion XL's UNet adds other texts and sizes; nothing is wrong with its images."""
    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
    }
    diffusers.UNet2DConditionModel(**{**SMALL_CONDITIONAL, **more}).save_pretrained(tmp_path)
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    assert load_diffusers(tmp_path, condition_tokens=6).config.sample_size == 8
