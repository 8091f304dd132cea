"""The shim, compiled once, and a process that runs verbs under it."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from server import Server


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: these tests wait for hundreds of fsyncs, which a busy disk makes long."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="edgedm-faults-", dir=place if place.is_dir() else None) as made:
        yield Path(made)


@pytest.fixture
def folder(memory) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def server(memory) -> Iterator[Server]:
    (memory / "room").mkdir()
    made = Server(memory / "room")
    yield made
    made.process.communicate()
