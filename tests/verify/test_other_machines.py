"""Levels op and layer on other machines' own objects, through their probe under an emulator.

An emulated kernel runs some hundred times slower than it would, a float one 200 times, and every case compiles a model:
so the digits models have a sample of their kernels and layers examined, one of every kind and more, and their float
layers stand for the float model's. The tiny model of all forms of uniform layers runs where their kernels differ.
"""

import subprocess
import sys
from pathlib import Path

import elsewhere
import pytest
import tiny

import edgedm
from edgedm.bundle import load
from edgedm.lower import compile as compile_graph
from edgedm.runtime import open_runner
from edgedm.targets import command_for, resolve
from edgedm.verify import verify
from edgedm.web import web

sys.path.insert(0, str(Path(__file__).parent.parent / "web"))

import browser

pytestmark = pytest.mark.slow

DIGITS = ("bidm-w1a1", "binarydm-w1a4", "efficientdm-w4a4", "dilatequant-w4a4")

SAMPLE = 24  # kernels at level op, calls of each graph at level layer: one of every kind, and more


@pytest.mark.parametrize("target", ["aarch64+dotprod+i8mm", "armv7+neon", "riscv64", "wasm32+simd128"])
def test_every_form_of_uniform_layer_is_right_there(deployed, tmp_path, target):
    elsewhere.need_machine(target)
    compile_graph(deployed("w4a4"), tmp_path / "model.bundle", target=target, steps=10)
    levels = ("op", "layer")
    outcome = verify(tmp_path / "model.bundle", tiny.checkpoint("w4a4"), levels=levels, steps=10, timesteps=1)
    assert outcome.ok, outcome.details.get("first_failure")
    assert outcome.figures["op.accumulators"] > 0


@pytest.fixture(scope="module")
def deployed_digits(tmp_path_factory):
    """Name of a zoo model -> its deployed graph."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("digits")
            edgedm.export(name, folder / "model.onnx")
            edgedm.optimize(folder / "model.onnx", folder / "deploy.onnx")
            made[name] = folder / "deploy.onnx"
        return made[name]

    return get


@pytest.mark.parametrize(
    ("target", "model"), [("x86-64-v2", DIGITS[0]), *(("android-x86_64", model) for model in DIGITS)]
)
def test_a_program_is_small_where_vectors_are_narrow(deployed_digits, tmp_path, target, model):
    edgedm.compile(deployed_digits(f"zoo:digits-{model}"), tmp_path / "model.bundle", target=target)
    assert load(tmp_path / "model.bundle").sampler.stat().st_size <= elsewhere.MOST_BYTES


@pytest.mark.parametrize("model", DIGITS)
@pytest.mark.parametrize("target", elsewhere.TARGETS)
def test_a_digits_model_is_right_there(deployed_digits, tmp_path, target, model):
    elsewhere.need_machine(target)
    name = f"zoo:digits-{model}"
    edgedm.compile(deployed_digits(name), tmp_path / "model.bundle", target=target)
    program = load(tmp_path / "model.bundle").sampler
    assert program.stat().st_size <= elsewhere.MOST_BYTES
    command = [*command_for(resolve(target)), str(program), "--self-test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self-test passed" in done.stdout
    outcome = verify(tmp_path / "model.bundle", name, levels=("op", "layer"), timesteps=1, sample=SAMPLE)
    assert outcome.ok, outcome.details.get("first_failure")
    if target == "wasm32+simd128":
        a_browser_draws_what_wasmtime_draws(tmp_path / "model.bundle", tmp_path / "page.html")


def a_browser_draws_what_wasmtime_draws(bundle: Path, page: Path) -> None:
    web(bundle, page)
    with browser.browser() as driver:
        browser.open_page(driver, page.as_uri())
        drawn = browser.draw(driver, count=1, steps=2, seed=5, sampler=0, label=7, guidance=1.5)
    with open_runner(bundle) as runner:
        runner.prepare(2, "ddim", label=7, guidance=1.5)
        assert drawn.tobytes() == runner.sample(1, 5).tobytes()
