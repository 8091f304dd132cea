"""Targets that this machine runs or emulates, two threads to run kernels on, the path of the tests' helpers."""

import os
import sys
from pathlib import Path

import pytest
from tools import need_emulator

from edgedm.targets import resolve, runs_natively, x86

os.environ["TVM_NUM_THREADS"] = "2"  # on any machine, so that a race would show; read when the pool starts
os.environ["TVM_BIND_THREADS"] = "0"  # or the pool would keep this process on one core
sys.path.insert(0, str(Path(__file__).parent))

OTHERS = ("x86-64-v4", "x86-64-v2", "x86-64")
VARIANTS = ("host", "x86-64-v3", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS))
EMULATED = ("aarch64",)  # what later cores add is for test_neon_products.py


@pytest.fixture(params=VARIANTS + EMULATED, scope="module")
def target(request):
    """Each variant of the instruction set whose features are here, and others that an emulator runs."""
    found = resolve(request.param)
    if runs_natively(found):
        return found
    if found.base.emulator is None:
        missing = found.features - x86.detect()
        pytest.skip(f"{found.name}: this machine lacks {', '.join(sorted(missing))}")
    need_emulator(found)
    return found
