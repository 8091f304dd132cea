"""What no kernel of its bits serves still compiles, is right, and is named."""

import pytest
from w4a4_model import w4a4_checkpoint

from edgedm.export import export
from edgedm.lower import compile as compile_graph
from edgedm.passes import optimize
from edgedm.verify import verify

FLOAT_ACTIVATION = "mid_block.resnets.1.conv2"
FLOAT_LINEAR = "mid_block.resnets.0.time_emb_proj"
FLOAT_KEY = "mid_block.attentions.0.processor"


@pytest.mark.slow
def test_layers_quantised_on_one_side_run_as_floats(tmp_path) -> None:
    checkpoint = w4a4_checkpoint()
    unet = checkpoint.module.unet
    for path in (FLOAT_ACTIVATION, FLOAT_LINEAR):
        unet.get_submodule(path).activation = None
    del unet.mid_block.attentions[0].processor.quantizers["key"]
    export(checkpoint, tmp_path / "model.onnx")
    optimize(tmp_path / "model.onnx", tmp_path / "deploy.onnx")
    compiled = compile_graph(tmp_path / "deploy.onnx", tmp_path / "model.bundle")
    for path in (FLOAT_ACTIVATION, FLOAT_LINEAR, FLOAT_KEY):
        assert any(path in line and "float32" in line for line in compiled.details["slow"]), path
    outcome = verify(tmp_path / "model.bundle", checkpoint, steps=10)
    assert outcome.ok, outcome.details["first_failure"]
