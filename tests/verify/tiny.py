"""Tiny low-bit models for whole pipelines in seconds: 8x8 images, 16 and 32 channels, random weights."""

from pathlib import Path

import numpy as np
from w4a4_model import w4a4_checkpoint

from edgedm.export import export
from edgedm.lower import compile as compile_graph
from edgedm.models import Checkpoint, CheckpointConfig, build
from edgedm.models.config import Architecture
from edgedm.passes import optimize
from edgedm.quant.policy import policy_of

CLASSES = 4
ROLES = {"bidm": policy_of("bidm").bits, "binarydm": policy_of("binarydm", "code").bits}
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],  # the middle block brings attention
    "norm_num_groups": 4,
    "attention_head_dim": 16,
    "num_class_embeds": CLASSES + 1,
}


def checkpoint(method: str) -> Checkpoint:
    """A random model; BiDM's has two taps and bins of 100 timesteps, so that neighbouring rows differ.

    "w4a4" is the one of `w4a4_model`: every form of uniform layers. "bidm/binary" and "bidm/int4" are policies.
    """
    if method == "w4a4":
        return w4a4_checkpoint()
    policy = policy_of(*method.split("/")) if "/" in method else None
    method = method.split("/")[0]
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method=method,
        roles=dict(ROLES[method] if policy is None else policy.bits),
        options={} if policy is None else dict(policy.options),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=CLASSES,
        taps=["up_blocks.0.upsamplers.0", "up_blocks.1.resnets.1"] if method == "bidm" else [],
        timestep_bins=list(range(0, 1000, 100)) if method == "bidm" else [],
    )
    return build(config, seed=0)


def column_of(steps: np.ndarray, tables: np.ndarray) -> int:
    """Which column of the joined tables holds these steps; that of the joined bytes then holds the zero points."""
    (found,) = np.flatnonzero((tables == steps[:, None]).all(axis=0))
    return int(found)


def deploy(method: str, folder: Path) -> Path:
    """Export and optimise; returns the deployed graph in `folder`."""
    export(checkpoint(method), folder / "model.onnx")
    optimize(folder / "model.onnx", folder / "deploy.onnx")
    return folder / "deploy.onnx"


def bundle(graph: Path, name: str = "model.bundle") -> Path:
    """Compile `graph` into a bundle beside it."""
    compile_graph(graph, graph.parent / name, cache=False)  # tests break kernels on purpose
    return graph.parent / name
