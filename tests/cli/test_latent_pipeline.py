"""A latent text model walks through every verb, as a stranger types them; a method of 1-bit weights, one of 4 bits."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgedm.cli import main
from edgedm.models import CheckpointConfig, build, save
from edgedm.quant.policy import policy_of

pytestmark = pytest.mark.slow


def verb(*arguments: object) -> dict:
    result = CliRunner().invoke(main, [str(each) for each in (*arguments, "--json")])
    assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
    outcome = json.loads(result.stdout)
    assert outcome["ok"]
    return outcome


UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],  # the middle block brings self- and cross-attention
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
DECODER = {
    "latent_channels": 3,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "num_vq_embeddings": 32,
}


def write_checkpoint(folder: Path, method: str) -> Path:
    config = {
        "architecture": {"class_name": "UNet2DConditionModel", "config": UNET},
        "method": method,
        "roles": dict(policy_of(method).bits),
        "noise_schedule": {"num_train_timesteps": 1000, "clip_sample": False},
        "null_class": None,
        "timestep_bins": [0, 400] if method == "dilatequant" else [],
        "decoder": {"class_name": "VQModel", "config": DECODER},
        "condition_tokens": 4,
    }
    save(build(CheckpointConfig.model_validate(config), seed=0), folder / "ckpt")
    return folder / "ckpt"


@pytest.mark.parametrize("method", ["binarydm", "dilatequant"])
def test_a_latent_text_model_goes_through_every_verb(tmp_path: Path, method: str) -> None:
    checkpoint = write_checkpoint(tmp_path, method)
    graph, deployed, bundle = (tmp_path / name for name in ("model.onnx", "deploy.onnx", "model.bundle"))
    assert verb("inspect", checkpoint)["figures"]["bytes.decoder"] > 0
    assert verb("export", checkpoint, "-o", graph)["figures"]["nodes.decoder"] > 20
    optimized = verb("optimize", graph, "-o", deployed, "--check")
    assert any(each["name"] == "decoder: FuseGroupNorm" for each in optimized["details"]["check"])
    names = {value["name"] for value in verb("inspect", deployed)["details"]["tables"]["Inputs and outputs"]}
    assert "encoder_hidden_states" not in names  # keys and values of the text are rows of the prepare graph
    assert verb("compile", deployed, "-o", bundle)["figures"]["calls.decoder"] > 20
    assert verb("inspect", bundle)["figures"]["macs.decoder"] > 0
    levels = [text for level in ("op", "layer", "step") for text in ("--level", level)]
    figures = verb("verify", bundle, "--against", checkpoint, *levels, "--timesteps", 2)["figures"]
    assert figures["step.decoder.ratio"] <= 2

    np.save(tmp_path / "text.npy", np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32))
    chosen = ["-n", 2, "--steps", 5, "--guidance", 2, "--condition", tmp_path / "text.npy"]
    verb("sample", bundle, *chosen, "-o", tmp_path / "python.npy")
    program = [bundle / "bin" / "edgedm-sample", *map(str, chosen), "-o", tmp_path / "native.npy"]
    subprocess.run(program, check=True)
    assert (tmp_path / "native.npy").read_bytes() == (tmp_path / "python.npy").read_bytes()
    images = np.load(tmp_path / "native.npy")
    assert images.shape == (2, 3, 16, 16) and np.isfinite(images).all() and images.std() > 0.1
    subprocess.run([bundle / "bin" / "edgedm-sample", "--self-test"], check=True)
    bench = verb("bench", bundle, "--against", "onnxruntime", "--threads", 1)["figures"]
    assert bench["ratio.onnxruntime_fp32.t1"] > 0 and bench["bytes.peak_rss"] > 0
