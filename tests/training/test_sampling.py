"""Batched sampling against the reference sampler, image by image; the tables of the zoo's page."""

import numpy as np
import torch

from edgedm.diffusion import NoiseSchedule, advance, step_coefficients
from edgedm.models import CheckpointConfig, build
from edgedm.models.config import Architecture
from edgedm.models.sample import Predictor
from edgedm.quant.policy import policy_of
from edgedm.training.figures import quality_table
from edgedm.training.quality import Quality
from edgedm.training.sampling import draw

STEPS = 4
AGREEING = 0.9  # random 1-bit layers amplify one flipped sign, and a batch is summed in another order


def test_a_batch_carries_the_state_of_each_image_as_the_reference_sampler_does():
    config = CheckpointConfig(
        architecture=Architecture(
            class_name="UNet2DModel",
            config={
                "sample_size": 16,
                "in_channels": 1,
                "out_channels": 1,
                "block_out_channels": [8, 16],
                "layers_per_block": 1,
                "down_block_types": ["DownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "UpBlock2D"],
                "norm_num_groups": 4,
                "num_class_embeds": 11,
                "add_attention": False,
            },
        ),
        method="bidm",
        roles=dict(policy_of("bidm").bits),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=10,
        taps=["up_blocks.0.upsamplers.0", "up_blocks.1.resnets.1"],
        timestep_bins=list(range(0, 1000, 100)),
    )
    module, schedule = build(config, 0).module, NoiseSchedule()
    images = draw(module, schedule, torch.tensor([3, 7]), steps=STEPS, seed=5)
    noise = torch.randn((2, 1, 16, 16), generator=torch.Generator().manual_seed(5)).numpy()
    rows, timesteps = step_coefficients(schedule, STEPS), schedule.timesteps(STEPS)
    agreeing = []
    for image, label in enumerate((3, 7)):
        predict, x = Predictor(module, label, 16, 16), noise[image]
        for step, (row, t) in enumerate(zip(rows, timesteps, strict=True)):
            x = advance(row, 1.0, x, predict(x, int(t), step), None)
        agreeing.append(np.abs(images[image].numpy() - x) < 1e-3)
    assert np.mean(agreeing) > AGREEING


def test_a_model_whose_first_layer_is_low_bit_is_drawn_from_too():
    unet = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "num_class_embeds": 11,
        "add_attention": False,
    }
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=unet),
        method="lsq",
        roles=dict(policy_of("lsq").bits),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=10,
    )
    images = draw(build(config, 0).module, NoiseSchedule(), torch.tensor([3, 7]), size=8, steps=2)
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all()


def test_the_tables_have_a_line_for_every_model_and_kind():
    quality = Quality(0.9, [0.1] * 10, 1.5, 0.8, 0.7, 0.95)
    table = quality_table({"a": {"labelled": quality}, "b": {"labelled": quality, "unlabelled": quality}})
    assert len(table.splitlines()) == 5 and "| a | labelled | 90.0% | 95.0% | 1.50 |" in table
