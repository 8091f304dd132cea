"""One bundle serves every schedule: what depends on the timestep is computed when a schedule is chosen, once."""

import itertools

import numpy as np
import pytest

import edgedm
from edgedm.export.graph_io import load_graph
from edgedm.passes import optimize

TIME_PATHS = ("time_proj", "time_embedding", "time_emb_proj", "class_embedding")
STEPS = (10, 50, 1000)
SAMPLERS = ("ddim", "ddpm")


@pytest.mark.parametrize("method", [pytest.param("fp32", marks=pytest.mark.slow), "bidm", "binarydm", "w4a4"])
def test_no_time_mlp_is_left_in_the_step_graph(method, exports, tmp_path):
    optimize(exports[method], tmp_path / "deploy.onnx")
    step, prepare = load_graph(tmp_path / "deploy.onnx"), load_graph(tmp_path / "deploy.prepare.onnx")
    assert not {"timestep", "class_labels"} & {value.name for value in step.graph.inputs}
    paths = {each: {node.metadata_props["edgedm.module"] for node in each.graph} for each in (step, prepare)}
    of_time = {path for path in paths[prepare] if any(part in path for part in TIME_PATHS)}
    assert any("time_emb_proj" in path for path in of_time) and any("time_embedding" in path for path in of_time)
    assert not of_time & paths[step]
    assert not {"Sin", "Cos", "TimestepLookup"} & {node.op_type for node in step.graph}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bidm", "w4a4"])
def test_one_bundle_samples_with_10_50_and_1000_steps_of_different_samplers(method, exports, tmp_path):
    optimize(exports[method], tmp_path / "deploy.onnx")
    edgedm.compile(tmp_path / "deploy.onnx", tmp_path / "model.bundle")
    images = {}
    for steps, sampler in itertools.product(STEPS, SAMPLERS):
        drawn = tmp_path / f"{sampler}-{steps}.npy"
        edgedm.sample(tmp_path / "model.bundle", drawn, n=2, steps=steps, sampler=sampler, seed=3)
        images[sampler, steps] = np.load(drawn)
        again = tmp_path / "again.npy"
        edgedm.sample(tmp_path / "model.bundle", again, n=2, steps=steps, sampler=sampler, seed=3)
        assert drawn.read_bytes() == again.read_bytes()
    assert all(np.isfinite(each).all() for each in images.values())
    assert len({each.tobytes() for each in images.values()}) == len(images)
