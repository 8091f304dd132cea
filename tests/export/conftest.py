"""Small low-bit denoisers with random weights: every layer kind that edgedm exports, at a size that traces quickly."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from edgedm.models.attention import OPERANDS, make_attention_explicit
from edgedm.models.denoiser import Denoiser
from edgedm.models.roles import BIDM, BINARYDM, FLOAT, output_blocks, roles
from edgedm.quant.inference import (
    ActivationQuantizer4,
    BinaryConv2d,
    BinaryLinear,
    BinaryWeightConv2d,
    BinaryWeightLinear,
    pack_signs,
)

POLICIES = {"float": FLOAT, "bidm": BIDM, "binarydm": BINARYDM}
SIZE, CLASSES = 8, 4


def small_denoiser(method: str) -> Denoiser:
    """A two-level UNet of 8 and 24 channels under one of POLICIES, random and not degenerate."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 24),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
            num_class_embeds=CLASSES + 1,
        )
        processors = make_attention_explicit(unet)
        for parameter in unet.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # no two norms or biases alike
        for path, role in roles(unet).items():
            if POLICIES[method][role] != "float":
                unet.set_submodule(path, _low_bit(unet.get_submodule(path), POLICIES[method][role]))
        if method == "binarydm":
            for processor in processors.values():
                for operand in OPERANDS:
                    processor.quantizers[operand] = ActivationQuantizer4(torch.rand(()) * 0.1 + 0.1)
        taps = output_blocks(unet)[-2:] if method == "bidm" else []
        denoiser = Denoiser(unet, taps, [0, 100, 500])
        if taps:
            nn.init.uniform_(denoiser.cache_coefficients, 0.2, 0.6)
    return denoiser.eval().requires_grad_(False)


def _low_bit(layer: Any, bits: str) -> nn.Module:
    weight = layer.weight.detach()
    out, channels = weight.shape[:2]
    packed, scale = pack_signs(weight), weight.abs().flatten(1).mean(1) * (torch.randint(0, 2, (out,)) * 2 - 1)
    threshold, step = 0.1 * torch.randn(channels), torch.rand(()) * 0.2 + 0.1
    if isinstance(layer, nn.Linear):
        if bits == "W1A1":
            return BinaryLinear(packed, channels, scale, threshold)
        return BinaryWeightLinear(packed, channels, scale, layer.bias.detach(), step)
    if bits == "W1A4":
        return BinaryWeightConv2d(packed, channels, scale, layer.bias.detach(), step, layer.stride, layer.padding)
    shortcut: Any = nn.Conv2d(channels, out, 1, stride=layer.stride)
    if out == channels:
        shortcut = "identity" if layer.stride == (1, 1) else "avgpool"
    mean_filter, bias, gain = torch.rand(1, 1, *layer.kernel_size), torch.randn(1), torch.randn(1)
    return BinaryConv2d(
        packed, channels, scale, threshold, mean_filter, bias, gain, shortcut, layer.stride, layer.padding
    )


def small_checkpoint(method: str) -> Any:
    """What `edgedm.models.load` returns, as far as export reads it."""
    content = {"method": method, "null_class": CLASSES, "noise_schedule": {"num_train_timesteps": 1000}}
    config = SimpleNamespace(
        null_class=CLASSES,
        noise_schedule=content["noise_schedule"],
        architecture=SimpleNamespace(config={"sample_size": SIZE, "in_channels": 1}),
        model_dump=lambda mode: content,
    )
    return SimpleNamespace(config=config, module=small_denoiser(method))


@pytest.fixture(scope="session", params=sorted(POLICIES))
def exported(request, tmp_path_factory) -> SimpleNamespace:
    """One export per method: .method, .path, .outcome, .module (the torch model)."""
    from edgedm.export import export

    checkpoint = small_checkpoint(request.param)
    path = tmp_path_factory.mktemp("export") / f"{request.param}.onnx"
    outcome = export(checkpoint, path, layer_golden=True)
    return SimpleNamespace(method=request.param, path=path, outcome=outcome, module=checkpoint.module)


def as_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
