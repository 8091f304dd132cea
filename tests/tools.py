"""Tools outside pip that some tests run."""

import os
import shutil

import pytest

from edgedm.targets import Target

REQUIRED = "EDGEDM_TOOLS_REQUIRED"  # set by `scripts/test.sh --full`


def need(tool: str) -> None:
    """Skip the running test if `tool` is missing; fail it where the full suite must run."""
    if not shutil.which(tool):
        _refuse(f"needs {tool}: run scripts/tools.sh")


def need_emulator(target: Target) -> None:
    """The same for what runs the target's programs here, where it has something that does."""
    emulator = target.base.emulator
    if emulator is not None and not emulator.is_here:
        _refuse(f"needs {emulator.program}: {emulator.source}")


def _refuse(message: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(message)
    pytest.skip(message)
