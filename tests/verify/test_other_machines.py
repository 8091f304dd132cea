"""Levels op and layer on other machines' own objects: every method's tiny model on all, the digits models on one each.

Under an emulator a kernel runs some hundred times slower than it would, so the digits models are spread over the
machines, each method and each machine once.
"""

import subprocess

import elsewhere
import pytest
import tiny

import edgedm
from edgedm.lower import compile as compile_graph
from edgedm.targets import command_for, resolve
from edgedm.verify import verify

pytestmark = pytest.mark.slow

DIGITS = {
    "aarch64": "bidm-w1a1",
    "aarch64+dotprod": "efficientdm-w4a4",
    "aarch64+dotprod+i8mm": "dilatequant-w4a4",
    "armv7+neon": "binarydm-w1a4",
    "riscv64": "fp32",
}


@pytest.mark.parametrize("target", elsewhere.TARGETS)
@pytest.mark.parametrize("method", ["bidm", "binarydm", "w4a4"])
def test_kernels_and_layers_are_right_there(deployed, tmp_path, method, target):
    elsewhere.need_machine(target)
    compile_graph(deployed(method), tmp_path / "model.bundle", target=target, steps=10)
    levels = ("op", "layer")
    outcome = verify(tmp_path / "model.bundle", tiny.checkpoint(method), levels=levels, steps=10, timesteps=1)
    assert outcome.ok, outcome.details.get("first_failure")
    assert outcome.figures["op.accumulators"] > 0


@pytest.mark.parametrize("target", elsewhere.TARGETS)
def test_a_digits_model_is_right_there(tmp_path, target):
    elsewhere.need_machine(target)
    name = f"zoo:digits-{DIGITS[target]}"
    edgedm.export(name, tmp_path / "model.onnx")
    edgedm.optimize(tmp_path / "model.onnx", tmp_path / "deploy.onnx")
    edgedm.compile(tmp_path / "deploy.onnx", tmp_path / "model.bundle", target=target)
    command = [*command_for(resolve(target)), str(tmp_path / "model.bundle/bin/edgedm-sample"), "--self-test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self-test passed" in done.stdout
    outcome = verify(tmp_path / "model.bundle", name, levels=("op", "layer"), timesteps=1)
    assert outcome.ok, outcome.details.get("first_failure")
