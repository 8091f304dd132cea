"""Golden data for the native self-test: checked before it is flattened."""

import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgedm.bundle import Port
from edgedm.errors import InvalidModelError
from edgedm.lower.golden import ALLOWED_ERROR, flat_golden

STATE = [Port(name="state.mid", role="state", shape=(1, 8, 8, 8), dtype="float32")]
SHAPE, LABELS = (1, 8, 8), 3


def test_it_holds_every_step_in_the_order_that_the_self_test_reads(tiny_folder):
    path = tiny_folder / "deploy.golden.safetensors"
    data, tensors = flat_golden(path, SHAPE, STATE, LABELS), load_file(path)
    magic, steps, states, allowed, _ = struct.unpack("<8sIIfI", data[:24])
    assert (magic, steps, states) == (b"EDMGOLD1", 3, 1)
    assert allowed == np.float32(ALLOWED_ERROR)
    record = 24 + 4 * (64 + 512 + 64)
    assert len(data) == 24 + 3 * record
    for step in range(3):
        at = 24 + step * record
        timestep, label, has_state, _ = struct.unpack("<qqII", data[at : at + 24])
        assert (timestep, label, has_state) == ((900, 500, 60)[step], 1, int(step > 0))
        floats = np.frombuffer(data[at + 24 : at + record], "<f4")
        assert np.array_equal(floats[:64], tensors[f"step.{step}.x"].ravel())
        state = np.moveaxis(tensors[f"step.{step}.state.mid"], 1, -1)
        assert np.array_equal(floats[64:576], state.ravel())
        assert np.array_equal(floats[576:], tensors[f"step.{step}.eps"].ravel())


@pytest.mark.parametrize(("noise", "expected"), [("[0.01, 0.04]", 0.1), ("[1e-7, 0.2]", 0.4), ("[0.8]", 0.9)])
def test_a_network_that_amplifies_rounding_is_allowed_more(tiny_folder, tmp_path, noise, expected):
    tensors, path = load_file(tiny_folder / "deploy.golden.safetensors"), tmp_path / "g.safetensors"
    save_file(tensors, path, {"golden_steps": "[0, 1, 2]", "rounding_noise": noise})
    assert struct.unpack("<8sIIfI", flat_golden(path, SHAPE, STATE, LABELS)[:24])[3] == np.float32(expected)


def test_a_wrong_shape_a_missing_tensor_and_a_broken_file_are_named(tiny_folder, tmp_path):
    tensors = load_file(tiny_folder / "deploy.golden.safetensors")
    path = tmp_path / "g.safetensors"
    steps = {"golden_steps": "[0, 1, 2]"}
    save_file({**tensors, "step.1.eps": np.zeros((1, 1, 4, 4), np.float32)}, path, steps)
    with pytest.raises(InvalidModelError, match=r"step\.1\.eps"):
        flat_golden(path, SHAPE, STATE, LABELS)
    del tensors["step.2.state.mid"]
    save_file(tensors, path, steps)
    with pytest.raises(InvalidModelError, match=r"step\.2\.state\.mid"):
        flat_golden(path, SHAPE, STATE, LABELS)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidModelError, match=r"g\.safetensors"):
        flat_golden(path, SHAPE, STATE, LABELS)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("class_labels", np.zeros(0, np.int64), r"expected one number of 0\.\."),
        ("class_labels", np.array(1), r"expected one number of 0\.\."),
        ("class_labels", np.array([[1]]), r"expected one number of 0\.\."),
        ("class_labels", np.array([2**62]), r"expected one number of 0\.\."),
        ("class_labels", np.array([-1]), r"expected one number of 0\.\."),
        ("class_labels", np.array([LABELS]), r"expected one of 3 labels, got 3"),
        ("class_labels", np.array([1], np.uint64), "is uint64, expected int64"),
        ("class_labels", np.array([1], np.float32), "is float32, expected int64"),
        ("timestep", np.array([2**40]), r"expected one number of 0\.\."),
        ("timestep", np.array([2.5], np.float32), "is float32, expected int64"),
        ("has_state", np.array([17], np.float32), r"expected one number of 0\.\.1"),
        ("has_state", np.zeros(0, np.float32), r"expected one number of 0\.\.1"),
        ("x", np.zeros((1, 1, 8, 8)), "is float64, expected float32"),
        ("x", np.zeros(64, np.float32), r"is \[64\], the model's \[1, 1, 8, 8\]"),
        ("state.mid", np.zeros(512, np.float32), r"is \[512\], the model's \[1, 8, 8, 8\]"),
    ],
)
def test_an_input_that_is_none_of_the_models_is_refused_by_file_and_name(tiny_folder, tmp_path, name, array, said):
    path = tmp_path / "g.safetensors"
    tensors = load_file(tiny_folder / "deploy.golden.safetensors")
    save_file({**tensors, f"step.1.{name}": array}, path, {"golden_steps": "[0, 1, 2]"})
    with pytest.raises(InvalidModelError, match=rf"g\.safetensors: .*step\.1\.{name}'.*{said}"):
        flat_golden(path, SHAPE, STATE, LABELS)
