"""One guard for all hostile files of a process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from guard import Guard


@pytest.fixture(scope="session")
def guard() -> Iterator[Guard]:
    made = Guard()
    yield made
    made.close()
