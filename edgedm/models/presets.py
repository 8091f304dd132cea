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

DDPM_CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
"""google/ddpm-cifar10-32, the model of DDPM (arXiv 2006.11239): 35.75 M parameters, 6.05 GMAC at 32x32; attention
at 16x16 and in the middle, with one head."""

DDPM_NOISE: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}

LDM4_BEDROOMS: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "attention_head_dim": 32,
}
"""LDM-4 of LSUN bedrooms (arXiv 2112.10752) as diffusers converts it: 274.06 M parameters, 96.02 GMAC on a latent of
3x64x64; attention at 32x32, 16x16 and 8x8, heads of 32 channels."""

LDM_NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}

LATENT_TEXT: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": [2, 4],
    "norm_num_groups": 16,
}
"""A small UNet2DConditionModel with the parts of latent text-to-image models: 4.19 M parameters on a latent of 3x16x16,
self-attention, cross-attention and a feed-forward layer in each of its seven transformers."""

LATENT_TEXT_TOKENS = 8

LATENT_CLASS: dict[str, Any] = {
    **{name: value for name, value in LATENT_TEXT.items() if name not in ("cross_attention_dim", "attention_head_dim")},
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "num_class_embeds": 11,
}
"""The same without transformers, with class labels; class 10 is the null class."""

LATENT_DECODER: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 3,
    "block_out_channels": [32, 32, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 16,
    "num_vq_embeddings": 256,
    "scaling_factor": 0.18215,
}
"""A VQModel whose decoder makes images of 3x64x64 from latents of 3x16x16."""
