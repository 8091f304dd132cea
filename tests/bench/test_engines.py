"""Every installed engine runs the same network: outputs agree with ONNX Runtime's on the twin."""

import shutil

import numpy as np
import onnxruntime
import pytest
from architectures import SMALL_UNET
from test_whole_step import INT8_TOLERANCE, config

from edgedm.bench.engines import Job, _only_ncnn_operators, make
from edgedm.bench.peers import PEERS
from edgedm.bench.twin import FP32, Twin, read_feeds

FLOAT_TOLERANCE = 1e-3  # of the output's largest value: Winograd convolutions and reassociated sums
TARGET = "host"


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Twin:
    return Twin(config(SMALL_UNET), tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def expected(twin) -> np.ndarray:
    return onnxruntime.InferenceSession(twin.need(FP32)).run(None, read_feeds(twin.folder))[0]


def output(result) -> np.ndarray:
    """The first output, whatever an engine wraps it in, with its batch axis."""
    if isinstance(result, tuple | list):
        result = result[0]
    elif hasattr(result, "values"):
        result = next(iter(result.values()))
    array = np.asarray(result.numpy() if hasattr(result, "numpy") else result)
    return array if array.ndim == 4 else array[None]


@pytest.mark.parametrize("engine", [name for name in PEERS if name not in ("torch_compile", "openvino_int8")])
def test_an_engine_computes_what_onnx_runtime_does(engine, twin, expected):
    peer = PEERS[engine]
    if peer.missing():
        pytest.skip(f"{engine} is not installed: {peer.install}")
    for file in peer.files:
        twin.need(file)
    result = output(make(Job(engine, twin.folder, 1, TARGET))())
    tolerance = INT8_TOLERANCE if engine.endswith("int8") else FLOAT_TOLERANCE
    assert np.abs(result - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch_compile", "openvino_int8"])
def test_an_engine_that_takes_long_to_set_up_does_too(engine, twin, expected):
    peer = PEERS[engine]
    if peer.missing() or (engine == "torch_compile" and not shutil.which("g++")):
        pytest.skip(f"{engine} is not installed: {peer.install}")
    for file in peer.files:
        twin.need(file)
    result = output(make(Job(engine, twin.folder, 1, TARGET))())
    tolerance = INT8_TOLERANCE if engine.endswith("int8") else FLOAT_TOLERANCE
    assert np.abs(result - expected).max() <= tolerance * np.abs(expected).max()


def test_operators_that_ncnn_lacks_are_replaced_and_counted():
    text = (
        "7767517\n4 4\nInput in0 0 1 in0\nTensor.to to_1 1 1 in0 5 copy=False\n"
        "MemoryData table 0 1 19 0=256 1=11\nGather Gather_14 2 1 19 in2 20 0=0\n"
    )
    assert _only_ncnn_operators(text).splitlines() == [
        "7767517",
        "5 5",
        "Input in0 0 1 in0",
        "Noop to_1 1 1 in0 5",
        "MemoryData table 0 1 19 0=256 1=11",
        "Crop Gather_14 1 1 19 20_0 -23309=1,0 -23310=1,1 -23311=1,0",
        "Reshape Gather_14_0 1 1 20_0 20 0=-1",
    ]
