"""Level distribution on a whole model: torch's images against a bundle's, judged by a network of the user's."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.verify import verify
from edgedm.verify.distribution_level import check_features
from edgedm.verify.features import features_for

SHAPE, BATCH, FEATURES = (1, 8, 8), 3, 4


def network(path, shape=(BATCH, *SHAPE), batch: int = BATCH):
    """Four averages of random weights, after a ReLU."""
    weight = np.random.default_rng(0).standard_normal((64, FEATURES)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w"], ["sums"], name="sums"),
        helper.make_node("Relu", ["sums"], ["features"], name="features"),
    ]
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, FEATURES])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path, weight


def test_features_come_from_the_network_in_batches(tmp_path) -> None:
    path, weight = network(tmp_path / "net.onnx")
    images = np.random.default_rng(1).standard_normal((7, *SHAPE)).astype(np.float32)  # no multiple of the batch
    got = features_for(SHAPE, path)(images)
    assert got.shape == (7, FEATURES)
    assert np.allclose(got, np.maximum(images.reshape(7, -1) @ weight, 0), rtol=1e-5, atol=1e-5)


def test_a_network_for_other_images_and_images_without_one_are_refused(tmp_path) -> None:
    path, _ = network(tmp_path / "net.onnx")
    with pytest.raises(InvalidModelError, match=r"net.onnx: expected images f32\[B, 3, 8, 8\]"):
        features_for((3, 8, 8), path)
    with pytest.raises(UnsupportedError, match=r"--features FILE\.onnx"):
        features_for((3, 8, 8), None)
    old = onnx.load(path)
    old.opset_import[0].version = 18
    onnx.save(old, tmp_path / "old.onnx")
    with pytest.raises(UnsupportedError, match="a network that judges images is read as graphs are"):
        features_for(SHAPE, tmp_path / "old.onnx")
    (tmp_path / "other.onnx").write_bytes(b"no graph")
    with pytest.raises(InvalidModelError, match=r"other.onnx"):
        features_for(SHAPE, tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.full((8, FEATURES), 0.5), "net.onnx: all images have the same features"),
        (np.array([[0.0, 1.0], [np.nan, 2.0]]), "net.onnx: expected finite features"),
        (np.array([[0.0, 1.0], [np.inf, 2.0]]), "net.onnx: expected finite features"),
    ],
)
def test_a_network_that_tells_no_images_apart_is_refused_by_name(features, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        check_features(features, Path("net.onnx"))
    check_features(np.eye(3), None)


@pytest.mark.slow
def test_a_right_bundle_draws_from_the_same_distribution(bundle, tmp_path) -> None:
    path, _ = network(tmp_path / "net.onnx")
    (tmp_path / "gate.toml").write_text("steps = 4\n[distribution]\nsamples = 30\nchance = 0.01\n")
    asked = {"gate": tmp_path / "gate.toml", "features": path, "levels": ("distribution",)}
    outcome = verify(bundle("bidm"), tiny.checkpoint("bidm"), **asked)
    assert outcome.ok, outcome.details["first_failure"]
    rows = {row["name"]: row["figures"] for row in outcome.details["levels"][0]["rows"]}
    assert set(rows) == {
        f"{statistic}, {noise} noise"
        for statistic in ("Frechet distance", "precision", "recall")
        for noise in ("same", "independent")
    }
    same, other = (rows[f"Frechet distance, {noise} noise"] for noise in ("same", "independent"))
    assert same["seen"] < 1e-3 * other["seen"]  # nothing but rounding lies between images of the same noise
    assert other["beyond chance low"] <= 0 <= other["beyond chance high"]
    share = rows["precision, independent noise"]
    assert share["low"] <= share["seen"] <= share["high"]
    assert outcome.figures["distribution.samples"] == 30
