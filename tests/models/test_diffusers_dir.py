"""A folder that diffusers wrote, as a base: the same outputs, and everything that is not one refused by name."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import load, save
from edgedm.models.diffusers_dir import is_diffusers, load_diffusers
from edgedm.training import quantize
from edgedm.training.base_model import load_base

UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
CLOSE = 1e-5  # attention is written out: another order of sums


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DModel(**UNET).eval()


@pytest.fixture
def pipeline(unet, tmp_path):
    unet.save_pretrained(tmp_path / "model" / "unet")
    DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1).save_pretrained(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


def same_output(unet, checkpoint):
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    with torch.no_grad():
        expected = unet(x, t, return_dict=False)[0]
        torch.testing.assert_close(
            checkpoint.module.record(x, t, torch.zeros(2, dtype=torch.int64)), expected, atol=CLOSE, rtol=CLOSE
        )


def test_a_pipeline_folder_gives_the_same_outputs_and_its_schedule(unet, pipeline):
    checkpoint = load_base(pipeline)
    same_output(unet, checkpoint)
    schedule = checkpoint.config.noise_schedule
    assert schedule["beta_schedule"] == "scaled_linear" and schedule["steps_offset"] == 1
    assert checkpoint.config.method == "fp32" and checkpoint.config.null_class is None


def test_the_unet_folder_and_a_flat_folder_do_too(unet, pipeline, tmp_path):
    same_output(unet, load_base(pipeline / "unet"))
    unet.save_pretrained(tmp_path / "flat")
    DDIMScheduler().save_pretrained(tmp_path / "flat")
    same_output(unet, load_base(tmp_path / "flat"))


def test_the_former_names_of_attention_layers_are_read(unet, pipeline):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for former, name in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        tensors = {key.replace(f".{name}.", f".{former}."): value for key, value in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path)
    same_output(unet, load_base(pipeline))


def test_a_checkpoint_of_edgedm_is_not_taken_for_one(pipeline, tmp_path):
    save(load_diffusers(pipeline), tmp_path / "ckpt")
    assert is_diffusers(pipeline) and not is_diffusers(tmp_path / "ckpt") and not is_diffusers("zoo:digits-fp32")
    assert load_base(tmp_path / "ckpt").config == load_diffusers(pipeline).config


def test_it_is_quantised_from_a_folder_of_images(pipeline, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (12, 9), (80 * index, 10, 200)).save(tmp_path / "images" / f"{index}.png")
    data = f"folder:{tmp_path / 'images'}"
    quantize(str(pipeline), "xnor", data=data, output=str(tmp_path / "low"), iterations=1, batch=2)
    assert load(tmp_path / "low").config.method == "xnor"


def test_missing_or_broken_files_are_named(pipeline):
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    content, tensors = weights.read_bytes(), load_file(weights)
    weights.write_bytes(content[:-100])
    with pytest.raises(InvalidModelError, match="not a whole safetensors file"):
        load_base(pipeline)
    save_file({**tensors, "more": torch.zeros(1)}, weights)
    with pytest.raises(InvalidModelError, match=r"unknown tensors \['more'\]"):
        load_base(pipeline)
    save_file({name: value for name, value in tensors.items() if name != "conv_in.bias"}, weights)
    with pytest.raises(InvalidModelError, match=r"conv_in\.bias"):
        load_base(pipeline)
    save_file({**tensors, "conv_in.bias": torch.zeros(3)}, weights)
    with pytest.raises(InvalidModelError, match=r"conv_in\.bias.*\[8\].*\[3\]"):
        load_base(pipeline)
    weights.unlink()
    with pytest.raises(InvalidModelError, match="safe_serialization"):
        load_base(pipeline)


def test_a_tensor_under_both_its_names_is_refused(pipeline):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".to_q.weight"))
    save_file({**tensors, name.replace("to_q", "query"): tensors[name].clone()}, path)
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.") + ".*stand twice"):
        load_base(pipeline)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"block_out_channels": [8, 1 << 22]}, "missing tensors|expected F16"),  # a terabyte of weights
        ({"in_channels": 10**9}, r"conv_in\.weight"),
        ({"layers_per_block": 10**8}, "layers_per_block"),
        ({"act_fn": 5}, r"config\.json: architecture\.config\.act_fn: expected a value like 'silu', got 5"),
        ({"norm_eps": -1}, r"config\.json: architecture\.config\.norm_eps: expected a number of 0\.\.1, got -1"),
        ({"norm_eps": float("inf")}, r"norm_eps: .* got inf"),
        ({"norm_eps": None}, r"norm_eps: expected a value like 1e-05, got None"),
        ({"norm_eps": []}, r"norm_eps: expected one value like 1e-05, got \[\]"),
        ({"norm_num_groups": -1}, r"norm_num_groups: expected a number of 1\.\.65536, got -1"),
        ({"attention_head_dim": -1}, r"attention_head_dim: expected a number of 1\.\.65536, got -1"),
        ({"mid_block_scale_factor": "x"}, r"mid_block_scale_factor: expected a value like 1, got 'x'"),
        ({"downsample_padding": 10**9}, r"downsample_padding: expected a number of 0\.\.1"),
        ({"freq_shift": 10**400}, r"freq_shift: .* got a number of 401 digits"),
        ({"center_input_sample": "no"}, r"center_input_sample: expected a value like False"),
        ({"down_block_types": [5]}, r"config\.json: down_block_types: expected a list of names"),
        ({"up_block_types": None}, r"config\.json: up_block_types: expected a list of names"),
    ],
)
def test_a_huge_or_senseless_architecture_is_refused_before_it_is_allocated(pipeline, change, complaint):
    path = pipeline / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidModelError, match=complaint):
        load_base(pipeline)


def test_a_missing_or_foreign_scheduler_is_refused(pipeline):
    EulerDiscreteScheduler().save_pretrained(pipeline / "scheduler")
    with pytest.raises(UnsupportedError, match="EulerDiscreteScheduler"):
        load_base(pipeline)
    (pipeline / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(InvalidModelError, match="noise schedule is unknown"):
        load_base(pipeline)


@pytest.mark.parametrize(
    ("change", "kind", "complaint"),
    [
        ({"_class_name": "VQModel"}, UnsupportedError, "VQModel"),
        ({"sample_size": None}, UnsupportedError, "sample_size"),
        ({"colour": 1}, InvalidModelError, "colour"),
        ({"num_class_embeds": 11}, UnsupportedError, "null_class"),
        ({"class_embed_type": "timestep"}, InvalidModelError, r"unet/config\.json: .*null_class"),
    ],
)
def test_a_config_of_another_kind_is_refused(pipeline, change, kind, complaint):
    path = pipeline / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(kind, match=complaint):
        load_base(pipeline)


@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_a_part_of_a_pipeline_that_is_a_link_out_of_it_is_refused(pipeline, tmp_path, name):
    (pipeline / name).rename(tmp_path / "elsewhere")
    (pipeline / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidModelError, match=f"{name}: a link that leaves"):
        load_diffusers(pipeline)
    if name == "scheduler":
        with pytest.raises(InvalidModelError, match="scheduler: a link that leaves"):
            load_diffusers(pipeline / "unet")


def test_a_pipeline_that_is_a_link_itself_is_read(pipeline, tmp_path):
    (tmp_path / "named").symlink_to(pipeline)
    assert load_diffusers(tmp_path / "named").config == load_diffusers(pipeline).config
