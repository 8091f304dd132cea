"""Targets that this machine can run, two threads to run kernels on, and the path of the helpers beside the tests."""

import os
import sys
from pathlib import Path

import pytest

from edgedm.targets import resolve, x86

os.environ["TVM_NUM_THREADS"] = "2"  # on any machine, so that a race would show; read when the pool starts
os.environ["TVM_BIND_THREADS"] = "0"  # or the pool would keep this process on one core
sys.path.insert(0, str(Path(__file__).parent))

VARIANTS = ("host", "x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")


@pytest.fixture(params=VARIANTS, scope="module")
def target(request):
    """Each variant of the instruction set whose features are here."""
    found = resolve(request.param)
    missing = found.features - x86.detect()
    if missing:
        pytest.skip(f"{found.name}: this machine lacks {', '.join(sorted(missing))}")
    return found
