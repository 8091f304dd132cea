"""Memory and size: the lower bound of an arena by hand, and figures of a compiled bundle."""

import dataclasses
import subprocess

import pytest
import tiny_model
from test_bound import manifest, node, operand

from edgedm.bench import footprint as module
from edgedm.bench.footprint import footprint, high_water, live_bytes, peak_rss
from edgedm.bundle import Manifest, Node, load
from edgedm.inspection import inspect


def test_live_bytes_are_the_most_that_live_at_one_time():
    made = manifest(
        node(0, "a", "", 0, [operand("input", 1)], [operand("arena", 100, offset=0)]),
        node(1, "b", "", 0, [operand("arena", 100, offset=0)], [operand("arena", 50, offset=448)]),
        node(2, "c", "", 0, [operand("arena", 50, offset=448)], [operand("arena", 25, offset=0)]),
        node(3, "d", "", 0, [operand("arena", 25, offset=0)], [operand("output", 1)]),
    )
    assert live_bytes(made) == 4 * (100 + 50)  # calls 1 and 2 need 150 and 75 floats


def test_a_buffer_lives_until_its_last_reader_even_where_others_come_between():
    made = manifest(
        node(0, "a", "", 0, [], [operand("arena", 10, offset=0)]),
        node(1, "b", "", 0, [], [operand("arena", 20, offset=64)]),
        node(2, "c", "", 0, [operand("arena", 20, offset=64)], [operand("arena", 40, offset=192)]),
        node(3, "d", "", 0, [operand("arena", 40, offset=192), operand("arena", 10, offset=0)], []),
    )
    assert live_bytes(made) == 4 * (10 + 20 + 40)


def test_scratch_lives_during_its_call_only():
    call = node(0, "a", "", 0, [], [operand("arena", 10, offset=0)])
    scratch = call.model_copy(update={"scratch": [operand("arena", 1000, offset=64)]})
    after = node(1, "b", "", 0, [operand("arena", 10, offset=0)], [operand("arena", 500, offset=64)])
    assert live_bytes(manifest(scratch, after)) == 4 * 1010


def test_scratch_that_was_not_recorded_gives_no_bound():
    recorded = node(0, "a", "", 0, [], [operand("arena", 10, offset=0)])
    older = Node.model_validate({**recorded.model_dump(), "scratch": None})
    assert Node.model_validate(recorded.model_dump(exclude={"scratch"})).scratch is None
    assert live_bytes(manifest(recorded, older)) is None


def test_figures_leave_out_what_an_older_bundle_does_not_record(monkeypatch):
    bundle = load(tiny_model.folder() / "model.bundle")
    fields = bundle.manifest.model_dump(exclude={"slow": True, "nodes": {"__all__": {"scratch"}}})
    older = dataclasses.replace(bundle, manifest=Manifest.model_validate(fields))
    figures = footprint(older)
    assert "bytes.arena" in figures and not {"bytes.live", "arena.over_live"} & set(figures)
    monkeypatch.setattr("edgedm.bundle.load", lambda _path: older)
    seen = inspect(bundle.path)
    assert "slow" not in seen.figures and "Slow" not in seen.details["tables"]


def test_no_nodes_need_no_memory():
    assert live_bytes(manifest()) == 0


def test_the_high_water_mark_is_read_from_a_status():
    assert high_water("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    5236 kB\n") == 5236 << 10
    assert high_water("Name:\tx\nState:\tZ (zombie)\n") == 0


def test_a_bundles_figures_count_every_file_but_golden_data(monkeypatch):
    bundle = load(tiny_model.folder() / "model.bundle")
    monkeypatch.setattr("edgedm.bench.sizes.float32_bytes", lambda _config, _place: 1000)
    figures = footprint(bundle)
    whole = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    golden = sum(file.stat().st_size for file in (bundle.path / "golden").rglob("*"))
    assert figures["bytes.bundle"] == whole - golden
    assert figures["bytes.shipped"] == bundle.weights.stat().st_size + bundle.library.stat().st_size
    assert figures["size.ratio"] == 1000 / figures["bytes.bundle"]
    assert figures["arena.over_live"] == figures["bytes.arena"] / figures["bytes.live"] >= 1
    assert bundle.sampler.stat().st_size / 8 < figures["bytes.peak_rss"] < 1 << 30


def test_an_interrupted_reading_leaves_no_program_and_draws_few_steps(monkeypatch):
    bundle, started = load(tiny_model.folder() / "model.bundle"), []

    class Recorded(subprocess.Popen):
        def __init__(self, command, **named):
            super().__init__(command, **named)
            started.append(self)

    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.subprocess, "Popen", Recorded)
    monkeypatch.setattr(module.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        peak_rss(bundle)
    assert started and all(program.returncode is not None for program in started)
    assert all(program.args[program.args.index("--steps") + 1] == "4" for program in started)
