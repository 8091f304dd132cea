"""The page of what each pass gives keeps only figures that belong there."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_passes

NAMES = [bench_passes.title(model) for model in [*bench_passes.MODELS, "preset:given-by-hand"]]
HERE, ELSEWHERE = "(target one, Linux)", "(target two, Linux)"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "passes.md"
    parts = [f"## {name}\n\n| {name} |\n" for name in NAMES]
    path.write_text("\n".join([bench_passes.HEAD.format(machine=HERE), *parts]))
    return path


def test_figures_of_the_same_machine_are_kept(page):
    held = bench_passes.sections(page, HERE, NAMES[:1])
    assert list(held) == NAMES
    assert all(part.strip() == f"## {name}\n\n| {name} |" for name, part in held.items())


def test_figures_of_another_machine_are_not_kept_beside_new_ones(page):
    with pytest.raises(SystemExit, match=rf"{NAMES[1]}.*measured elsewhere, not on \(target two"):
        bench_passes.sections(page, ELSEWHERE, [NAMES[0]])


def test_all_may_be_measured_anew_on_another_machine(page):
    assert bench_passes.sections(page, ELSEWHERE, NAMES) == {}  # an interrupted run mixes nothing either


def test_there_may_be_no_page_yet(tmp_path):
    assert bench_passes.sections(tmp_path / "none.md", HERE, NAMES[:1]) == {}


def test_a_graph_is_called_by_its_file():
    assert bench_passes.title("some/where/m.onnx") == "m"
