"""Four small real models, exported once: every kind of layer that the pipeline meets."""

from pathlib import Path

import pytest
from w4a4_model import w4a4_checkpoint

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 24],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "num_class_embeds": 5,
}


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> dict[str, Path]:
    """Method -> exported graph of a two-level UNet with seeded weights, golden data beside it."""
    from edgedm.export import export
    from edgedm.models import CheckpointConfig, build
    from edgedm.models.config import Architecture
    from edgedm.models.roles import FLOAT
    from edgedm.quant.policy import policy_of

    folder = tmp_path_factory.mktemp("passes")
    for method, roles in {
        "fp32": FLOAT,
        "bidm": policy_of("bidm").bits,
        "binarydm": policy_of("binarydm", "code").bits,
    }.items():
        connected = method == "bidm"
        config = CheckpointConfig(
            architecture=Architecture(class_name="UNet2DModel", config=UNET),
            method=method,
            roles=roles,
            noise_schedule={"num_train_timesteps": 1000},
            null_class=4,
            taps=["up_blocks.0.upsamplers.0", "up_blocks.1.resnets.1"] if connected else [],
            timestep_bins=[0, 100, 500] if connected else [],
        )
        export(build(config, seed=0), folder / f"{method}.onnx")
    export(w4a4_checkpoint(), folder / "w4a4.onnx")
    return {path.stem: path for path in folder.glob("*.onnx")}
