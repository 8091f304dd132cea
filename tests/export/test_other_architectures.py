"""Architectures that can be quantised but not exported yet are refused by name, before anything is written."""

import pytest
from architectures import SMALL_CONDITIONAL, SMALL_DIT
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.export import export
from edgedm.models import Checkpoint, CheckpointConfig, load, save
from edgedm.models.checkpoint import skeleton
from edgedm.models.config import Architecture
from edgedm.quant.policy import policy_of


@pytest.mark.parametrize(
    ("name", "config", "complaint"),
    [
        ("UNet2DConditionModel", SMALL_CONDITIONAL, "does not say how many vectors it reads"),
        ("DiTTransformer2DModel", SMALL_DIT, "DiTTransformer2DModel cannot be exported yet"),
    ],
)
@pytest.mark.parametrize("method", ["fp32", "dilatequant"])
def test_a_checkpoint_is_kept_and_its_export_refused(tmp_path, name, config, complaint, method):
    described = CheckpointConfig(
        architecture=Architecture(class_name=name, config=config),
        method=method,
        roles=dict(policy_of(method).bits),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=10 if name == "DiTTransformer2DModel" else None,
        timestep_bins=[0, 500] if method == "dilatequant" else [],
    )
    save(Checkpoint(described, skeleton(described)), tmp_path / "ckpt")
    assert load(tmp_path / "ckpt").config == described
    with pytest.raises(UnsupportedError, match=complaint):
        export(tmp_path / "ckpt", tmp_path / "model.onnx")
    assert not list(tmp_path.glob("model*"))


def test_a_module_is_no_checkpoint_and_is_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedError, match=r"Linear: export takes a checkpoint"):
        export(nn.Linear(2, 2), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
