"""Small low-bit denoisers with random weights: every layer kind that edgedm exports, at a size that traces quickly."""

from edgedm.models import Checkpoint, CheckpointConfig, build
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.quant.policy import policy_of

ROLES = {"fp32": FLOAT, "bidm": policy_of("bidm").bits, "binarydm": policy_of("binarydm", "code").bits}
SIZE, CLASSES = 8, 4
UNET = {
    "sample_size": SIZE,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 24],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "num_class_embeds": CLASSES + 1,
}


def small_checkpoint(method: str) -> Checkpoint:
    """A two-level UNet of 8 and 24 channels under one of ROLES; BiDM's has two taps and three timestep bins."""
    connected = method == "bidm"
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method=method,
        roles=dict(ROLES[method]),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=CLASSES,
        taps=["up_blocks.0.upsamplers.0", "up_blocks.1.resnets.1"] if connected else [],
        timestep_bins=[0, 100, 500] if connected else [],
    )
    return build(config, seed=0)
