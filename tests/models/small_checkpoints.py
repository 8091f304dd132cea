"""A small float UNet and checkpoints of it."""

from edgedm.models import Checkpoint, CheckpointConfig, build
from edgedm.models.config import Architecture
from edgedm.quant.policy import policy_of

UNET = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "num_class_embeds": 11,
}
TAPS = ["up_blocks.0.upsamplers.0", "up_blocks.1.resnets.1"]


def small(method: str, seed: int = 0) -> Checkpoint:
    connected = method == "bidm"
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method=method,
        roles=dict(policy_of(method, "code" if method == "binarydm" else None).bits),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=10,
        taps=TAPS if connected else [],
        timestep_bins=list(range(0, 1000, 100)) if connected else [],
    )
    return build(config, seed)
