"""The published networks at their real size, by shapes alone: all tensors are views of one that is never written."""

import math

import ddim_reference
import openai_reference
import torch
from openai_reference import weight_shape

from edgedm.models.config import Architecture, CheckpointConfig
from edgedm.models.importers.assemble import check_weights, float_shapes
from edgedm.models.importers.ddim_unet import DDIMOptions, ddim_naming
from edgedm.models.importers.openai_unet import OpenAIOptions, openai_naming
from edgedm.models.importers.tensors import Tensors
from edgedm.models.roles import FLOAT


def shapes_of(modules):
    shapes = {}
    for path, (kind, out, inside, kernel) in modules.items():
        shapes[f"{path}.weight"], shapes[f"{path}.bias"] = weight_shape(kind, out, inside, kernel), (out,)
    memory = torch.empty(max(math.prod(shape) for shape in shapes.values()))
    values = {name: memory[: math.prod(shape)].view(shape) for name, shape in shapes.items()}
    return Tensors("file", values)


def weights(tensors, naming):
    """Convolution and linear weights of the architecture, after every shape was compared with the file's."""
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=naming.architecture),
        method="fp32",
        roles=FLOAT,
        noise_schedule={},
        null_class=None,
    )
    check_weights(tensors, naming, config)
    return sum(math.prod(shape) for shape in float_shapes(config).values() if len(shape) > 1)


def test_ddims_cifar_network_is_ddpm_cifar10_32():
    arch = ddim_reference.Arch(channels=128, mult=(1, 2, 2, 2), repeats=2, attention=(1,), image=32)
    tensors = shapes_of(ddim_reference.modules(arch))
    naming = ddim_naming(tensors, DDIMOptions())
    published = {  # the config of google/ddpm-cifar10-32
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "layers_per_block": 2,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
    }
    assert naming.architecture | published == naming.architecture
    assert abs(weights(tensors, naming) / 1e6 - 35.69) < 0.02


def test_ldm_4_of_lsun_bedrooms_has_its_274_million_weights():
    arch = openai_reference.Arch(channels=224, mult=(1, 2, 3, 4), repeats=2, attention=(1, 2, 3), image=64)
    tensors = shapes_of(openai_reference.modules(arch))
    naming = openai_naming(tensors, OpenAIOptions(head_channels=32))
    assert naming.inputs == 12
    assert naming.architecture["block_out_channels"] == [224, 448, 672, 896]
    assert abs(weights(tensors, naming) / 1e6 - 273.87) < 0.01
