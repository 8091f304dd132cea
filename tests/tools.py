"""Tools outside pip that some tests run."""

import os
import shutil

import pytest

REQUIRED = "EDGEDM_TOOLS_REQUIRED"  # set by `scripts/test.sh --full`


def need(tool: str) -> None:
    """Skip the running test if `tool` is missing; fail it where the full suite must run."""
    if shutil.which(tool):
        return
    message = f"needs {tool}: run scripts/tools.sh"
    if os.environ.get(REQUIRED):
        pytest.fail(message)
    pytest.skip(message)
