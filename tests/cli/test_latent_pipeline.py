"""A latent text model walks through every verb, as a stranger types them; a method of 1-bit weights, one of 4 bits."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgedm.cli import main

pytestmark = pytest.mark.slow


def verb(*arguments: object) -> dict:
    result = CliRunner().invoke(main, [str(each) for each in (*arguments, "--json")])
    assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
    outcome = json.loads(result.stdout)
    assert outcome["ok"]
    return outcome


@pytest.mark.parametrize("method", ["binarydm", "dilatequant"])
def test_a_latent_text_model_goes_through_every_verb(tmp_path: Path, method: str) -> None:
    checkpoint = f"preset:latent-text,method={method},narrow=8"
    graph, deployed, bundle = (tmp_path / name for name in ("model.onnx", "deploy.onnx", "model.bundle"))
    assert verb("inspect", checkpoint)["figures"]["bytes.decoder"] > 0
    assert verb("export", checkpoint, "-o", graph)["figures"]["nodes.decoder"] > 50
    optimized = verb("optimize", graph, "-o", deployed, "--check")
    assert any(each["name"] == "decoder: FuseGroupNorm" for each in optimized["details"]["check"])
    names = {value["name"] for value in verb("inspect", deployed)["details"]["tables"]["Inputs and outputs"]}
    assert "encoder_hidden_states" not in names  # keys and values of the text are rows of the prepare graph
    assert verb("compile", deployed, "-o", bundle)["figures"]["calls.decoder"] > 20
    assert verb("inspect", bundle)["figures"]["macs.decoder"] > 0
    levels = [text for level in ("op", "layer", "step") for text in ("--level", level)]
    figures = verb("verify", bundle, "--against", checkpoint, *levels, "--timesteps", 2)["figures"]
    assert figures["step.decoder.ratio"] <= 2

    np.save(tmp_path / "text.npy", np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32))
    chosen = ["-n", 2, "--steps", 5, "--guidance", 2, "--condition", tmp_path / "text.npy"]
    verb("sample", bundle, *chosen, "-o", tmp_path / "python.npy")
    program = [bundle / "bin" / "edgedm-sample", *map(str, chosen), "-o", tmp_path / "native.npy"]
    subprocess.run(program, check=True)
    assert (tmp_path / "native.npy").read_bytes() == (tmp_path / "python.npy").read_bytes()
    images = np.load(tmp_path / "native.npy")
    assert images.shape == (2, 3, 64, 64) and np.isfinite(images).all() and images.std() > 0.1
    subprocess.run([bundle / "bin" / "edgedm-sample", "--self-test"], check=True)
    bench = verb("bench", bundle, "--against", "onnxruntime", "--threads", 1)["figures"]
    assert bench["ratio.onnxruntime_fp32.t1"] > 0 and bench["bytes.peak_rss"] > 0
