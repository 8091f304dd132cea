"""A step beside peers: the full-precision twin, the figures' names, and engines that fail."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_model
from architectures import SMALL_UNCONDITIONAL, SMALL_UNET
from rich.console import Console

from edgedm.bench import models, tables
from edgedm.bench.models import _Run, bench_model, step_figures
from edgedm.bench.peers import PEERS
from edgedm.bench.timing import Sample, Timing
from edgedm.bench.twin import CONFIG, FP32, INT8, Twin, feeds, full_precision, read_feeds
from edgedm.errors import ToolchainError, UnsupportedError

INT8_TOLERANCE = 0.15  # of the output's largest value, on seeded weights: that it is the same network, no more
NULL_CLASS = 10  # of SMALL_UNET
THREADS = (1,)


def config(architecture: dict) -> dict:
    return {
        "method": "bidm",
        "architecture": {"class_name": "UNet2DModel", "config": architecture},
        "noise_schedule": {"num_train_timesteps": 1000},
        "taps": ["up_blocks.0.resnets.0"],
        "timestep_bins": [0, 500],
        "roles": {},
        "prediction_type": "epsilon",
        "null_class": NULL_CLASS if architecture.get("num_class_embeds") else None,
    }


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Twin:
    return Twin(config(SMALL_UNET), tmp_path_factory.mktemp("twin"))


@pytest.fixture
def small_bundle(monkeypatch):
    """The tiny bundle, with the twin of a small network for its peers."""
    made = Twin.__init__
    monkeypatch.setattr(Twin, "__init__", lambda self, _config, folder: made(self, config(SMALL_UNCONDITIONAL), folder))
    return tiny_model.folder() / "model.bundle"


def test_the_twin_is_float_and_carries_nothing():
    plain = full_precision(config(SMALL_UNET))
    assert plain["method"] == "fp32"
    assert plain["taps"] == plain["timestep_bins"] == []
    assert plain["architecture"] == config(SMALL_UNET)["architecture"]
    assert "mixes" not in plain


def test_labels_are_fed_only_where_there_are_classes(tmp_path):
    assert list(next(feeds(config(SMALL_UNET), 1))) == ["x", "timestep", "class_labels"]
    assert list(next(feeds(config(SMALL_UNCONDITIONAL), 1))) == ["x", "timestep"]


def test_files_are_made_once_when_they_are_needed(twin):
    first = twin.need(FP32)
    stamp = first.stat().st_mtime_ns
    assert twin.need(FP32) == first
    assert first.stat().st_mtime_ns == stamp
    assert json.loads((twin.folder / CONFIG).read_text())["method"] == "fp32"


def test_the_int8_twin_is_the_same_network_with_quantised_weights(twin):
    inputs = read_feeds(twin.folder)
    exact, rounded = (
        onnxruntime.InferenceSession(twin.need(name)).run(None, inputs)[0].astype(np.float64) for name in (FP32, INT8)
    )
    assert 0 < np.abs(rounded - exact).max() < INT8_TOLERANCE * np.abs(exact).max()
    graph = onnx.load(twin.need(INT8)).graph
    narrow = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1}
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(sources.get(node.input[1]) in narrow for node in convolutions)


def test_a_class_without_a_twin_is_refused_by_name(tmp_path):
    other = {**config({}), "architecture": {"class_name": "DiT", "config": {}}}
    with pytest.raises(UnsupportedError, match="DiT"):
        Twin(other, tmp_path)


def test_an_engine_asked_for_by_name_gets_its_time_unless_the_time_is_given():
    bound_to = frozenset({"edgedm", "torch_compile"})
    assert _Run(bound_to).patience("torch_compile") is _Run(bound_to).patience("edgedm") is None
    assert _Run(bound_to).patience("torch_eager") == models.SETUP_SECONDS
    assert _Run(bound_to, 7.0).patience("torch_compile") == 7.0
    assert _Run(bound_to, 7.0).patience("edgedm") is None


def test_an_engine_of_all_that_takes_too_long_is_left_out_and_named(small_bundle, monkeypatch):
    monkeypatch.setattr(models, "resolve_peers", lambda _: ([PEERS["onnxruntime_fp32"]], []))
    outcome = bench_model(small_bundle, ("all",), THREADS, seconds=0.1, setup_seconds=0.01)
    [row] = outcome.details["absent"]
    assert (row["engine"], row["why"]) == ("onnxruntime_fp32", "left out: took more than 0.01 s to set up")
    assert "step_ms.edgedm.t1" in outcome.figures and "step_ms.onnxruntime_fp32.t1" not in outcome.figures


def test_figures_are_named_by_engine_and_threads():
    timing = {"edgedm": Timing(0.002, 0.001, 0.003, 5), "openvino_fp32": Timing(0.010, 0.009, 0.02, 5)}
    figures = step_figures(timing, {"edgedm": 0.002, "openvino_fp32": 0.011}, 1)
    assert figures["step_ms.edgedm.t1"] == 2.0
    assert figures["step_ms.openvino_fp32.t1.decile1"] == 9.0
    assert figures["step_ms.openvino_fp32.t1.decile9"] == 20.0
    assert figures["processor_ms.edgedm.t1"] == 2.0
    assert figures["ratio.openvino_fp32.t1"] == 5.0
    assert figures["processor_ratio.openvino_fp32.t1"] == 5.5
    assert "processor_ratio.openvino_fp32.t2" not in step_figures(timing, dict.fromkeys(timing, 0.1), 2)


def test_a_bundle_alone_is_timed_and_measured():
    outcome = bench_model(tiny_model.folder() / "model.bundle", ("none",), THREADS, seconds=0.1)
    assert {"step_ms.edgedm.t1", "processor_ms.edgedm.t1", "bytes.arena", "bytes.peak_rss"} <= set(outcome.figures)
    assert not any(name.startswith("ratio.") for name in outcome.figures)


def test_a_bundle_stands_beside_peers_in_one_run(small_bundle):
    outcome = bench_model(small_bundle, ("onnxruntime", "onnxruntime_int8"), THREADS, seconds=0.1)
    figures = outcome.figures
    for engine in ("onnxruntime_fp32", "onnxruntime_int8"):
        expected = figures[f"step_ms.{engine}.t1"] / figures["step_ms.edgedm.t1"]
        assert figures[f"ratio.{engine}.t1"] == pytest.approx(expected)
        assert outcome.details["timings"]["t1"][engine]["threads"] < 1.25
    console = Console(record=True, width=160)
    tables.show(outcome, console)
    text = console.export_text()
    assert "onnxruntime_int8" in text
    assert "most resident while sampling" in text


def test_more_threads_than_cores_are_refused():
    with pytest.raises(UnsupportedError, match="4096 threads on"):
        bench_model(tiny_model.folder() / "model.bundle", ("none",), (4096,))


def test_an_engine_that_fails_stops_the_run_if_it_was_asked_for_and_is_listed_by_all(small_bundle, monkeypatch):
    real = models._worker

    def broken(engine, *rest):
        if engine == "torch_eager":
            raise ToolchainError("bench: torch_eager failed (exit code 1): OSError: libfoo.so")
        return real("edgedm", *rest) if engine == "edgedm" else real(engine, *rest)

    monkeypatch.setattr(models, "_worker", broken)
    with pytest.raises(ToolchainError, match="libfoo"):
        bench_model(small_bundle, ("torch_eager",), THREADS, seconds=0.1)
    only = [models.resolve_peers(("onnxruntime",))[0][0], models.resolve_peers(("torch_eager",))[0][0]]
    monkeypatch.setattr(models, "resolve_peers", lambda _names: (only, []))
    outcome = bench_model(small_bundle, ("all",), THREADS, seconds=0.1)
    [row] = outcome.details["absent"]
    assert row["engine"] == "torch_eager"
    assert "libfoo" in row["why"]
    assert "ratio.onnxruntime_fp32.t1" in outcome.figures


class Engine:
    """Stands for a process: every call takes a millisecond; one dies in its turn, one uses a thread too many."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        pass

    def turn(self, _calls: int) -> Sample:
        if self.name == "torch_eager":
            raise ToolchainError("bench: torch_eager failed (exit code -9): Killed")
        return Sample(1e-3, 2e-3 if self.name == "onnxruntime_fp32" else 1e-3, 1e-3)


@pytest.fixture
def failing(small_bundle, monkeypatch):
    """Three peers that fail: in their turn, by their threads, and because a file cannot be made."""
    three = [models.PEERS[name] for name in ("torch_eager", "onnxruntime_fp32", "onnxruntime_int8")]
    monkeypatch.setattr(models, "_worker", lambda engine, *_: Engine(engine))
    monkeypatch.setattr(models, "resolve_peers", lambda _names: (three, []))
    monkeypatch.setattr(models, "footprint", lambda *_: {})
    monkeypatch.setattr(Twin, "_export", lambda _self, path: path.write_bytes(b"x"))

    def broken(_self, path):
        path.write_bytes(b"half")
        raise ValueError("no such shape")

    monkeypatch.setattr(Twin, "_quantize", broken)
    return small_bundle


def test_all_goes_on_without_the_engines_that_fail_and_says_why(failing):
    outcome = bench_model(failing, ("all",), THREADS, seconds=0.01)
    why = {row["engine"]: row["why"] for row in outcome.details["absent"]}
    assert "Killed" in why["torch_eager"]
    assert "2.00 threads" in why["onnxruntime_fp32"]
    assert "int8.onnx" in why["onnxruntime_int8"] and "ValueError: no such shape" in why["onnxruntime_int8"]
    assert {name.split(".")[1] for name in outcome.figures} == {"edgedm"}


@pytest.mark.parametrize(
    ("name", "why"), [("torch", "Killed"), ("onnxruntime", r"2\.00 threads"), ("onnxruntime_int8", "no such shape")]
)
def test_an_engine_asked_for_beside_all_stops_the_run_where_it_fails(failing, name, why):
    with pytest.raises(ToolchainError, match=why):
        bench_model(failing, ("all", name), THREADS, seconds=0.01)


def test_a_file_that_cannot_be_made_is_not_left_half_written(failing, tmp_path):
    made = Twin({}, tmp_path)
    for _ in range(2):
        with pytest.raises(ToolchainError, match="no such shape"):
            made.need(INT8)
