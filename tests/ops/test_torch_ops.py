"""The torch functions agree with the ONNX functions that they become, on every hard case."""

import numpy as np
import pytest
import torch

from edgedm import ops

NAN = float("nan")


@pytest.mark.parametrize("channels", [1, 3, 65, 130])
def test_binarize_agrees_with_its_onnx_function(run_op, channels: int) -> None:
    x = np.random.default_rng(channels).standard_normal((1, 5, channels)).astype(np.float32)
    threshold = np.random.default_rng(1).standard_normal(channels).astype(np.float32)
    threshold[0] = 0.0
    x[0, 0], x[0, 1, 0], x[0, 2, 0], x[0, 3, 0] = -threshold, 0.0, -0.0, NAN
    y = ops.binarize(torch.from_numpy(x), torch.from_numpy(threshold))
    assert np.array_equal(y.numpy(), run_op("Binarize", x, threshold)[0])


@pytest.mark.parametrize("channels", [1, 3, 65, 130])
def test_unpack_bits_agrees_with_its_onnx_functions(run_op, channels: int) -> None:
    weight = np.random.default_rng(channels).standard_normal((4, channels, 3, 2))
    bits = ops.packing.pack_signs(weight)
    y = ops.unpack_bits(torch.from_numpy(bits), channels)
    assert np.array_equal(y.numpy(), run_op("UnpackBits", bits, channels=channels)[0])
    rows = np.ascontiguousarray(bits[:, 0, 0])
    y = ops.unpack_bits(torch.from_numpy(rows), channels)
    assert np.array_equal(y.numpy(), run_op("UnpackBitsLinear", rows, channels=channels)[0])


@pytest.mark.parametrize("timestep", [-1, 0, 9, 10, 499, 500, 999])
def test_timestep_lookup_agrees_with_its_onnx_function(run_op, timestep: int) -> None:
    table = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    edges, when = np.array([0, 10, 500]), np.array([timestep])
    y = ops.timestep_lookup(*(torch.from_numpy(each) for each in (table, edges, when)))
    assert np.array_equal(y.numpy(), run_op("TimestepLookup", table, edges, when)[0])


def test_quantize4_is_its_codes_times_the_step(run_op) -> None:
    x = (np.arange(-4000, 4000) * 0.00125).astype(np.float32)
    step = np.array(0.25, np.float32)
    (codes,) = run_op("QuantizeCodes", x, step)
    assert np.array_equal(ops.quantize4(torch.from_numpy(x), torch.from_numpy(step)).numpy(), codes * step)
