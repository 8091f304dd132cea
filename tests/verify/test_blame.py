"""What is blamed where a trajectory is off and every single step holds: no pass, and no search for one."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgedm.verify import blame
from edgedm.verify.bisect import Dumped, Rerun
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


def test_torch_is_asked_once_for_all_the_graphs_of_a_search_as_far_as_memory_goes() -> None:
    asked: list[tuple[int, int]] = []

    def predict(bits: int, moment: Moment):
        asked.append((bits, moment.step))
        return np.full(1, 10 * moment.step + bits), [np.zeros(3)]  # 32 bytes

    moments = [Moment(step, 0, np.zeros(1, np.int64), np.zeros(1, np.float32), (), False) for step in (0, 4)]
    each = [(32, 0), (32, 4), (64, 0), (64, 4)]
    for most, again in ((128, []), (127, each[3:]), (64, each[2:]), (0, each)):
        remembered = blame._Remembered(SimpleNamespace(null_class=3, predict=predict), most)
        asked.clear()
        for _ in range(3):
            found = [remembered.predict(bits, moment)[0].item() for bits in (32, 64) for moment in moments]
            assert found == [32, 72, 64, 104]
        assert asked == each + 2 * again and remembered.null_class == 3


def test_a_fault_of_a_label_is_looked_at_on_an_image_of_that_label_with_its_state(monkeypatch) -> None:
    labels, shape = [4, 0, 3], (3, 1, 2, 2)
    images = np.arange(12, dtype=np.float32).reshape(shape)
    first = Moment(0, 99, np.array(labels), images - 1, (), False, images[:, 0])
    moment = Moment(1, 9, np.array(labels), images, (images + 100,), True, images[:, 0])
    examination = SimpleNamespace(
        reference=SimpleNamespace(null_class=4),
        runs=Runs(labels, Trajectories([], [first, moment]), Trajectories([], [])),
    )
    roles = {"x": "x", "class_labels": "class_labels", "text": "encoder_hidden_states", "state.a": "state"}
    graph = SimpleNamespace(states=["state.a"], inputs=list(roles), info=SimpleNamespace(inputs=roles))
    monkeypatch.setattr(blame, "WholeGraph", lambda _: graph)
    for name, image in (("eps, label 3", 2), ("eps, step 0 (timestep 9)", 0), ("after step 50", 0)):
        fed = blame._Search(examination, Row(name, False))._feeds(Path("model.onnx"))
        assert fed["class_labels"].tolist() == [labels[image]]
        assert np.array_equal(fed["x"][0], images[image]) and np.array_equal(fed["text"][0], images[image, 0])
        assert np.array_equal(fed["state.a"][0], images[image] + 100)


def test_only_a_graph_that_was_dumped_may_be_of_another_checkpoint(monkeypatch) -> None:
    off = SimpleNamespace(first_failure=Row("conv1.weight", False, note="1 of 9 numbers differ"))
    monkeypatch.setattr(blame, "WholeGraph", lambda path: path)
    monkeypatch.setattr(blame, "contents_level", lambda *_: off)
    reference = SimpleNamespace(
        null_class=0, modules={32: None}, schedule=SimpleNamespace(num_train_timesteps=1000), predict=None
    )
    runs = Runs([0], Trajectories([], []), Trajectories([], []))
    search = blame._Search(SimpleNamespace(reference=reference, runs=runs), ROW)
    for kind, words in ((Dumped, ", or of another checkpoint: "), (Rerun, ": ")):
        chain = object.__new__(kind)
        monkeypatch.setattr(kind, "graph", lambda *_: Path("00-exported.onnx"))
        assert search._other_weights(chain) == f"{words}conv1.weight: 1 of 9 numbers differ"
