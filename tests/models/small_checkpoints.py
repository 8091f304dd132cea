"""A small float UNet and checkpoints of it."""

from architectures import SMALL_UNET

from edgedm.models import Checkpoint, CheckpointConfig, build
from edgedm.models.config import Architecture
from edgedm.quant.policy import policy_of

UNET = {**SMALL_UNET, "sample_size": 16}
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
