"""The float parts that are timed as layers: ours, ONNX Runtime's and PyTorch's compute the same."""

import numpy as np
import pytest

from edgedm.bench.float_layers import KINDS, WITHOUT_PRODUCTS, form, in_torch
from edgedm.bench.layers import Layer, _onnxruntime, _Ours, bench_layer
from edgedm.errors import UnsupportedError
from edgedm.targets import resolve

CLOSE = 1e-4  # of the largest value: 64 products, or the mean and variance of a group, in float32


@pytest.mark.parametrize("kind", KINDS)
def test_all_engines_compute_the_same(kind):
    layer = Layer.parse(f"{kind}:64x64x6")
    ours = _Ours(layer, resolve("host"))
    ours.run()
    (expected,) = _onnxruntime(layer, 1)()
    torch_result = in_torch(kind, layer.form)().numpy()
    got = ours.result.numpy()
    if kind != "attention":
        got = got.transpose(0, 3, 1, 2)
    allowed = CLOSE * np.abs(expected).max()
    assert np.abs(got - expected).max() <= allowed
    assert np.abs(torch_result - expected).max() <= allowed


@pytest.mark.parametrize("kind", ["attention", "norm"])
def test_figures_have_a_limit_where_there_are_products(kind):
    figures = bench_layer(f"{kind}:32x32x4", threads=(1,), seconds=0.05).figures
    assert {"us.edgedm.t1", "us.onnxruntime_fp32.t1", "ratio.onnxruntime_fp32.t1"} <= set(figures)
    assert ("fraction.t1" in figures) == ("gmacs.limit.t1" in figures) == (kind not in WITHOUT_PRODUCTS)


@pytest.mark.parametrize(("name", "reason"), [("norm:48x48x4", "multiple of 32"), ("attention:8x16x4", "equal")])
def test_layers_that_do_not_exist_are_refused(name, reason):
    with pytest.raises(UnsupportedError, match=reason):
        bench_layer(name)


def test_multiply_accumulates_are_those_of_the_products():
    assert Layer.parse("attention:64x64x8").macs == 2 * 64 * 64 * 64
    assert Layer.parse("pconv:3x5x7").macs == 3 * 5 * 49
    assert form("pconv", 3, 5, 7).calls[0].op == "FloatConv"
