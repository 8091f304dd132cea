"""The tiny model, compiled once a session."""

from pathlib import Path

import pytest
import tiny_model


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    return tiny_model.folder()


@pytest.fixture(scope="session")
def tiny_bundle(tiny_folder) -> Path:
    return tiny_folder / "model.bundle"
