"""What ONNX Runtime refuses, when a model is opened or when it is run, is an error of the model."""

import numpy as np
import onnx
import pytest

from edgedm.errors import InvalidModelError
from edgedm.onnx_session import OnnxSession

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Concat <axis = 9> (x, x)", "axis must be in"),
        ("y = Conv <group = 0> (x, x)", "group: 0"),
        ("y = Unknown (x)", "Unknown"),
    ],
)
def test_a_refusal_is_an_error_of_the_model(body, reason):
    model = onnx.parser.parse_model(f"{HEAD} g (float[1,3,4,4] x) => (float[1,3,4,4] y) {{ {body} }}")
    with pytest.raises(InvalidModelError, match=f"ONNX Runtime cannot run the graph: .*{reason}"):
        OnnxSession(model).run({"x": np.zeros((1, 3, 4, 4), np.float32)})


def test_outputs_have_their_names_or_others():
    model = onnx.parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Neg (x) }}")
    feeds = {"x": np.array([1, 2], np.float32), "other": np.zeros(1)}
    assert OnnxSession(model).run(feeds)["y"].tolist() == [-1, -2]
    assert list(OnnxSession(model, ["z"]).run(feeds)) == ["z"]
