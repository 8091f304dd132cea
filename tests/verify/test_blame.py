"""What is blamed where a trajectory is off and every single step holds: no pass, and no search for one."""

from types import SimpleNamespace

import pytest

from edgedm.verify import blame
from edgedm.verify.blame import ADDS_UP, blame_bundle, blame_graph
from edgedm.verify.report import Level, Row

ROW = Row("after step 50", False, note="off")


@pytest.fixture
def examination(monkeypatch):
    """Of an artefact whose single steps hold as `holds` says; a search through the passes is told by its name."""

    def make(holds: bool) -> SimpleNamespace:
        search = SimpleNamespace(holds=lambda *_: holds)
        monkeypatch.setattr(blame, "_Search", lambda *_: search)
        monkeypatch.setattr(blame, "_search", lambda *_: ("pass Searched", ""))
        return SimpleNamespace(
            request=SimpleNamespace(bisect=True),
            reference=None,
            runs=None,
            checkpoint=None,
            graphs={},
            runner=SimpleNamespace(undecided=None),
            tables=SimpleNamespace(step=SimpleNamespace(ratio=2.0)),
            probe=SimpleNamespace(manifest=SimpleNamespace(states=list)),
            graph=SimpleNamespace(info=SimpleNamespace(level="optimized"), states=[]),
        )

    return make


def test_where_single_steps_hold_a_trajectory_that_is_off_blames_no_pass(examination) -> None:
    level = Level("trajectory", "", (ROW,))
    assert blame_bundle(examination(True), level, ROW) == blame_graph(examination(True), ROW) == ADDS_UP
    assert "single steps hold" in ADDS_UP and "adds up over the trajectory" in ADDS_UP


def test_where_single_steps_are_off_the_passes_are_searched(examination) -> None:
    level = Level("trajectory", "", (ROW,))
    assert blame_bundle(examination(False), level, ROW) == blame_graph(examination(False), ROW) == "pass Searched"
