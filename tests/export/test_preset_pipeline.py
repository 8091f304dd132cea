"""Presets go the whole way: a narrow twin with the depth, the attention and the padding of the published model."""

import re
import subprocess

import pytest

import edgedm
from edgedm.bench.footprint import ALLOWED_ARENA, live_bytes
from edgedm.bundle import Manifest

pytestmark = pytest.mark.slow

# An activation at its threshold that two runtimes decide differently changes an untrained network of this depth by
# half; most often some recorded step has none, and there the error is that of float32.
WITHOUT_A_FLIP = 1e-4


@pytest.mark.parametrize("method", ["bidm", "binarydm"])
def test_a_narrow_cifar_preset_compiles_and_repeats_its_golden_data(method: str, tmp_path) -> None:
    edgedm.export(f"preset:ddpm-cifar10,method={method},narrow=8", tmp_path / "model.onnx")
    assert edgedm.optimize(tmp_path / "model.onnx", tmp_path / "deploy.onnx").ok
    outcome = edgedm.compile(tmp_path / "deploy.onnx", tmp_path / "model.bundle", cache=False)
    assert outcome.figures["calls.step"] > 100
    manifest = Manifest.model_validate_json((tmp_path / "model.bundle" / "manifest.json").read_text())
    live = live_bytes(manifest)
    assert live is not None and live <= manifest.arena_bytes <= ALLOWED_ARENA * live
    sampler = tmp_path / "model.bundle" / "bin" / "edgedm-sample"
    text = subprocess.run([sampler, "--self-test"], capture_output=True, text=True, check=False).stdout
    errors = [float(each) for each in re.findall(r"relative error\s+(\S+)", text)]
    assert len(errors) == 8 and min(errors) < WITHOUT_A_FLIP, text
