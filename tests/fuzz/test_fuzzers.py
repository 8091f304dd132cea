"""Every fuzzer runs for some seconds and finds nothing; `python fuzz/run.py --seconds 600` runs them for longer."""

import sys
from pathlib import Path

import pytest
from tools import need

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

import run

SECONDS = 4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(run.SEEDS))
def test_a_python_loader_stands_seconds_of_fuzzing(tmp_path, name):
    result = run.fuzz(name, SECONDS, tmp_path)
    assert result.ok and result.coverage > 0, (result.findings, result.log[-2000:])


@pytest.mark.slow
def test_the_c_loader_stands_seconds_of_fuzzing(tmp_path):
    need("clang")
    result = run.fuzz(run.C, SECONDS, tmp_path)
    assert result.ok and result.coverage > 0, (result.findings, result.log[-2000:])
