"""One tiny bundle a method, compiled once a session."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tiny.py and faults.py


@pytest.fixture(scope="session")
def deployed(tmp_path_factory):
    """method -> path of its deployed graph."""
    import tiny

    made: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in made:
            made[method] = tiny.deploy(method, tmp_path_factory.mktemp(method.replace("/", "-")))
        return made[method]

    return get


@pytest.fixture(scope="session")
def bundle(deployed):
    """method -> path of its bundle."""
    import tiny

    made: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in made:
            made[method] = tiny.bundle(deployed(method))
        return made[method]

    return get
