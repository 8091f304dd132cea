"""Single-layer benchmarks: what they time is right, and what they report is complete."""

import math

import numpy as np
import pytest
from click.testing import CliRunner

from edgedm.bench import peers
from edgedm.bench.layers import Layer, bench_layer
from edgedm.bench.limits import family_limit, limit
from edgedm.cli.bench import command
from edgedm.cli.common import BAD_INPUT
from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.targets import resolve

# The prototype of the W1A1 convolution reached 11 times ONNX Runtime's float32 on one core.
REQUIRED_RATIO = 8.0


def test_a_layer_is_read_from_its_name():
    layer = Layer.parse("bconv:256x128x16")
    assert (layer.kind, layer.channels, layer.out_channels, layer.height) == ("bconv", 256, 128, 16)
    assert layer.macs == 256 * 128 * 9 * 16 * 16


@pytest.mark.parametrize("name", ["bconv", "bconv:1x2", "xconv:1x2x3", "bconv:0x2x3", "bconv:-1x2x3"])
def test_a_name_that_is_no_layer_says_what_is_expected(name):
    with pytest.raises(UnsupportedError, match="KIND:INxOUTxHEIGHT"):
        bench_layer(name)


def test_unknown_peers_and_too_many_threads_are_refused():
    with pytest.raises(UnsupportedError, match="onnxruntime, torch"):
        bench_layer("bconv:64x64x4", against=("abacus",))
    with pytest.raises(UnsupportedError, match="threads"):
        bench_layer("bconv:64x64x4", against=(), threads=(resolve("host").cores + 1,))


def test_all_are_the_layers_own_peers_that_are_installed_and_none_is_none(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "torch" else object())
    outcome = bench_layer("bconv:64x64x4", against=("all",), threads=(1,), seconds=0.01)
    assert {name for name in outcome.figures if name.startswith("us.")} == {"us.edgedm.t1", "us.onnxruntime_fp32.t1"}
    [row] = outcome.details["absent"]
    assert row["engine"] == "torch" and "pip install" in row["install"]
    with pytest.raises(ToolchainError, match="torch needs torch: pip install"):
        bench_layer("bconv:64x64x4", against=("torch",))
    alone = bench_layer("bconv:64x64x4", against=("none",), threads=(1,), seconds=0.01)
    assert not any(name.startswith("ratio.") for name in alone.figures)


@pytest.mark.parametrize("given", [("--against", "none"), ("--threads", "1")])
def test_the_machine_takes_neither_peers_nor_threads(given):
    done = CliRunner().invoke(command, ["--machine", *given])
    assert done.exit_code == BAD_INPUT
    assert "leave out --against and --threads" in done.stderr


@pytest.mark.parametrize("kind", ["bconv", "wconv", "qconv", "fconv"])
def test_figures_cover_engines_ratios_and_the_limit(kind):
    outcome = bench_layer(f"{kind}:64x64x4", threads=(1,), seconds=0.05)
    if kind == "qconv":
        assert outcome.figures.pop("ratio.onnxruntime_int8.t1") > 0
        assert outcome.figures.pop("us.onnxruntime_int8.t1") > 0
    names = {"us.edgedm.t1", "us.onnxruntime_fp32.t1", "ratio.onnxruntime_fp32.t1"}
    assert names | {"gmacs.edgedm.t1", "gmacs.limit.t1", "fraction.t1"} == set(outcome.figures)
    assert all(math.isfinite(value) and value > 0 for value in outcome.figures.values())
    ours, theirs = outcome.figures["us.edgedm.t1"], outcome.figures["us.onnxruntime_fp32.t1"]
    assert np.isclose(outcome.figures["ratio.onnxruntime_fp32.t1"], theirs / ours)


@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
def test_limits_exist_for_every_kind(target):
    for kind in ("bconv", "wconv", "qconv", "fconv"):
        found = limit(kind, resolve(target))
        found.run()
        assert found.macs > 1e5


def test_a_target_without_byte_products_has_no_limit_for_them():
    with pytest.raises(UnsupportedError, match="multiplies bytes"):
        family_limit("dot", resolve("x86-64"), 4, 4)
    with pytest.raises(UnsupportedError, match="lookup products of W1A4"):
        family_limit("lookup", resolve("x86-64"), 1, 4)


def test_the_limit_is_that_of_the_family_that_serves_the_layer():
    target = resolve("x86-64-v4+vnni")
    dots = limit("qconv", target, "dot-vnni 4x4 16 8x2").macs
    assert limit("qconv", target, "winograd-vnni 4x4 16 8x2").macs == round(dots * 36 / 16)
    with pytest.raises(UnsupportedError, match="generic products of W4A4"):
        limit("qconv", target, "generic 4x4")


@pytest.mark.slow
def test_the_binary_convolution_beats_the_float_one_by_the_required_ratio():
    if "vpopcntdq" not in resolve("host").features:
        pytest.skip("the ratio is required of AVX-512 with VPOPCNTDQ")
    figures = bench_layer("bconv:256x256x16", threads=(1,)).figures
    assert figures["ratio.onnxruntime_fp32.t1"] >= REQUIRED_RATIO
