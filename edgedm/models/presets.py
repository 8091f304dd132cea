"""Architectures by name: a diffusers class and its configuration."""

from typing import Any

NULL_CLASS = 10

DIGITS: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [64, 64, 128],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": 32,
    "num_class_embeds": 11,
    "norm_eps": 1e-5,
}
"""The zoo's class-conditional model: 3.23 M parameters, 156 MMAC at 16x16; class 10 is the null class."""

DIGITS_8: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": 16,
    "num_class_embeds": 11,
    "norm_eps": 1e-5,
}
"""The digits at the 8x8 of the scans, for comparisons of methods: 0.70 M parameters, 16 MMAC."""
