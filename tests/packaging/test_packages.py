"""The wheel and the sdist install and run outside the checkout, with the base dependencies alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def call(*command, cwd):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    done = call(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def base_install(built):
    """A fresh environment with the wheel and nothing but its base dependencies."""
    (wheel,) = built.glob("*.whl")
    environment = built / "venv"
    assert call(sys.executable, "-m", "venv", environment, cwd=built).returncode == 0
    done = call(environment / "bin" / "pip", "install", "--quiet", wheel, cwd=built)
    assert done.returncode == 0, done.stderr
    return environment / "bin"


def test_the_sdist_builds_the_same_package(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    install = (sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", tmp_path)
    done = call(*install, sdist, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("passes/pipeline.py", "targets/kernels/__init__.py", "models/zoo", "runtime/templates"):
        assert (tmp_path / "edgedm" / part).exists(), part


def test_the_base_install_answers_help_and_runs_a_bundle(base_install, digits_bundle, tmp_path):
    assert "sample" in call(base_install / "edgedm", "--help", cwd=tmp_path).stdout
    options = ("-n", 1, "--steps", 2, "-o", "a.npy", "--json")
    done = call(base_install / "edgedm", "sample", digits_bundle, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    assert (tmp_path / "a.npy").exists()


def test_the_base_install_says_which_extra_a_verb_needs(base_install, tmp_path):
    done = call(base_install / "edgedm", "export", "zoo:digits-fp32", "-o", "m.onnx", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'edgedm[" in done.stderr
