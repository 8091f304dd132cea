"""A graph whose functions other runtimes read otherwise than edgedm does is found, though edgedm runs its own."""

import shutil

import onnx
import pytest
import tiny

from edgedm.verify import verify


@pytest.mark.parametrize("name", ["model", "deploy"])
def test_an_altered_body_fails_level_weights_and_names_the_op(deployed, tmp_path, name) -> None:
    folder = deployed("bidm").parent
    for file in folder.glob(f"{name}.*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / f"{name}.onnx"
    assert verify(path, tiny.checkpoint("bidm"), levels=("weights",), bisect=False).ok
    proto = onnx.load(path)
    function, node = next(
        (each, node) for each in proto.functions for node in each.node if node.op_type in ("GreaterOrEqual", "Mul")
    )
    node.op_type = "Less" if node.op_type == "GreaterOrEqual" else "Div"
    onnx.save(proto, path)
    outcome = verify(path, tiny.checkpoint("bidm"), levels=("weights",), bisect=False)
    assert not outcome.ok
    failure = outcome.details["first_failure"]
    assert (failure["level"], failure["where"]) == ("weights", "functions of the ops")
    assert function.name in failure["what"] and failure["introduced_by"]
