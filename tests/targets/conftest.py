"""Targets that this machine can run, and the path of the helpers beside the tests."""

import sys
from pathlib import Path

import pytest

from edgedm.targets import resolve, x86

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
