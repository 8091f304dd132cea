"""Codes by fused multiply-adds are those by division: every significand of a step is tried at every bound of a code."""

import subprocess
from pathlib import Path

import pytest

from edgedm.lower.toolchain import zig_cc
from edgedm.targets import resolve, runs_natively


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not runs_natively(resolve("x86-64-v3")):
        pytest.skip("a processor without fused multiply-adds would take hours")
    source, made = Path(__file__).with_name("quotients.c"), tmp_path_factory.mktemp("quotients") / "quotients"
    flags = ["-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
    zig_cc([*flags, str(source), "-o", str(made), "-lm"], made.parent)
    return made


@pytest.mark.parametrize("codes", [(0, 16), pytest.param((16, 256), marks=pytest.mark.slow)])
def test_no_step_moves_a_code(program, codes):
    said = subprocess.run([program, *map(str, codes)], check=True, capture_output=True, text=True).stdout
    stepped, plain = map(int, said.split())
    assert stepped == 0 and plain > 1_000_000 * (codes[1] - codes[0])
