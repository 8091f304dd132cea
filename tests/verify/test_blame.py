"""What is blamed where a trajectory is off and every single step holds: no pass, and no search for one."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgedm.verify import blame
from edgedm.verify.blame import ADDS_UP, blame_bundle, blame_graph
from edgedm.verify.report import Level, Row
from edgedm.verify.run_level import Runs
from edgedm.verify.torch_reference import Moment, Trajectories

ROW = Row("after step 50", False, note="off")


@pytest.fixture
def examination(monkeypatch):
    """Of an artefact whose single steps hold as `holds` says; a search through the passes is told by its name."""

    def make(holds: bool) -> SimpleNamespace:
        monkeypatch.setattr(blame._Search, "holds", lambda *_: holds)
        monkeypatch.setattr(blame._Search, "_chain", lambda *_: None)
        monkeypatch.setattr(blame._Search, "_through", lambda *_: ("pass Searched", ""))
        return SimpleNamespace(
            request=SimpleNamespace(bisect=True),
            reference=SimpleNamespace(null_class=0),
            runs=Runs([0], Trajectories([], []), Trajectories([], [])),
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


def test_torch_is_asked_once_for_all_the_graphs_of_a_search() -> None:
    asked: list[tuple[int, int]] = []

    def predict(bits: int, moment: Moment):
        asked.append((bits, moment.step))
        return np.full(1, 10 * moment.step + bits), []

    remembered = blame._Remembered(SimpleNamespace(null_class=3, predict=predict))
    moments = [Moment(step, 0, np.zeros(1, np.int64), np.zeros(1, np.float32), (), False) for step in (0, 4)]
    for _ in range(3):
        found = [remembered.predict(bits, moment)[0].item() for bits in (32, 64) for moment in moments]
        assert found == [32, 72, 64, 104]
    assert asked == [(32, 0), (32, 4), (64, 0), (64, 4)] and remembered.null_class == 3
