"""The mutation test: every mutant is shown to change something, and `verify` finds every one."""

from pathlib import Path

import mutants
import numpy as np
import onnx
import pytest
import tiny
import workshop
from mutants import MUTANTS, Mutant
from workshop import Workshop

from edgedm.export.graph_io import load_graph, save_graph
from edgedm.outcome import Outcome
from edgedm.verify import verify
from edgedm.verify.whole_graph import GraphRunner, WholeGraph

STEPS = 6
TIMESTEPS = (980, 500, 29)  # 500 begins a bin of W4A4's tables

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(bundle, tmp_path_factory):
    """model -> the workshop of its bundle, and how the right one behaves."""
    made = {}

    def get(model: str):
        if model not in made:
            built = Workshop(bundle(model), tmp_path_factory.mktemp(model) / "shop")
            made[model] = built, workshop.behaviour_of(built.bundle)
        return made[model]

    return get


def verified(path: Path, mutant: Mutant) -> Outcome:
    """The level that has to find it; a run of all levels then fails too."""
    asked = {"levels": (mutant.level,), "steps": STEPS, "timesteps": 2}
    return verify(path, tiny.checkpoint(mutant.model), bisect=False, **asked)


def check_killed(path: Path, mutant: Mutant) -> None:
    outcome = verified(path, mutant)
    assert not outcome.ok
    failure = outcome.details["first_failure"]
    assert failure["level"] == mutant.level and failure["where"] and failure["what"]
    assert failure["introduced_by"]


def of(part: str):
    return pytest.mark.parametrize(
        "mutant", [each for each in MUTANTS if each.part == part], ids=lambda each: each.name
    )


@of("weights")
def test_mutants_of_what_kernels_read_are_killed(shop, tmp_path, mutant: Mutant) -> None:
    built, _ = shop(mutant.model)
    changed = []
    broken = built.broken_weights(tmp_path / "b", lambda *arguments: changed.append(mutant.plant(*arguments)))
    if changed[0] is None:  # a table that the prepare graph reads: rows, and so the images, change
        assert not workshop.same(workshop.behaviour_of(broken)["ddim"], shop(mutant.model)[1]["ddim"])
    else:
        assert workshop.changes(built.bundle, broken, changed[0])
    check_killed(broken, mutant)


@of("kernel")
def test_mutants_of_kernels_are_killed(shop, tmp_path, mutant: Mutant) -> None:
    built, _ = shop(mutant.model)
    broken, node = built.broken_kernel(tmp_path / "b", mutant.op, mutant.plant, mutant.module)
    assert node.op == mutant.op
    assert workshop.results_of(broken, node) != workshop.results_of(built.bundle, node)  # the op's result changed
    outcome = verified(broken, mutant)
    off = [row for level in outcome.details["levels"] for row in level["rows"] if not row["ok"]]
    assert off and all(row["name"].startswith(mutant.op) for row in off), off
    assert all("expected" in row["note"] and "got" in row["note"] for row in off)
    assert outcome.details["first_failure"]["introduced_by"].startswith(f"the kernel of {mutant.op} ")


@of("runtime")
def test_mutants_of_the_runtime_are_killed(shop, tmp_path, mutant: Mutant) -> None:
    built, right = shop(mutant.model)
    broken = built.broken_source(tmp_path / "b", mutant.source, mutant.old, mutant.new)
    behaviour = workshop.behaviour_of(broken)
    assert any(not workshop.same(behaviour[name], array) for name, array in right.items())
    check_killed(broken, mutant)


@of("graph")
def test_mutants_of_the_graph_are_killed(graph, tmp_path, mutant: Mutant) -> None:
    path = graph(mutant.model)
    proto = onnx.load(path)
    mutants.write_back(proto, mutant.plant)
    broken = tmp_path / "broken.onnx"
    onnx.save(proto, broken)
    save_graph(load_graph(broken), broken)
    right, wrong = (_outputs(each, tiny.checkpoint(mutant.model).config.null_class) for each in (path, broken))
    assert not all(workshop.same(left, other) for left, other in zip(right, wrong, strict=True))
    check_killed(broken, mutant)


@pytest.fixture(scope="module")
def graph(deployed, tmp_path_factory):
    """model -> its exported graph."""
    return lambda model: deployed(model).with_name("model.onnx")


def _outputs(path: Path, null: int) -> list[np.ndarray]:
    whole = WholeGraph(path)
    runner, found = GraphRunner(whole, null), []
    for timestep in TIMESTEPS:
        x = np.random.default_rng(timestep).standard_normal(whole.shape(whole.inputs[0])[1:]).astype(np.float32)
        state = {name: np.ones(whole.shape(name), np.float32) for name in whole.states}
        eps, after = runner.step(timestep, x, 1, state or None)
        found += [eps, *after.values()]
    return found


def test_the_documentation_lists_every_mutant() -> None:
    text = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    assert len(MUTANTS) >= 25 and len({each.name for each in MUTANTS}) == len(MUTANTS)
    for each in MUTANTS:
        assert f"| {each.name} | {each.part} | {each.level} |" in text, "run scripts/mutants.py"
