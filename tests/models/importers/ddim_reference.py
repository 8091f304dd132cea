"""ermongroup/ddim's UNet by its formulas on a file's own tensors; see `openai_reference`."""

import math
from dataclasses import dataclass

import torch
from openai_reference import silu
from torch.nn import functional as F


@dataclass(frozen=True)
class Arch:
    channels: int = 32
    mult: tuple[int, ...] = (1, 2)
    repeats: int = 1
    attention: tuple[int, ...] = (1,)  # levels
    image: int = 8
    colours: int = 3


def _resnet(path, before, after, width):
    found = {
        f"{path}.norm1": ("norm", before, before, 0),
        f"{path}.conv1": ("conv2d", after, before, 3),
        f"{path}.temb_proj": ("linear", after, width, 0),
        f"{path}.norm2": ("norm", after, after, 0),
        f"{path}.conv2": ("conv2d", after, after, 3),
    }
    if before != after:
        found[f"{path}.nin_shortcut"] = ("conv2d", after, before, 1)
    return found


def _attention(path, channels):
    return {f"{path}.norm": ("norm", channels, channels, 0)} | {
        f"{path}.{name}": ("conv2d", channels, channels, 1) for name in ("q", "k", "v", "proj_out")
    }


def modules(arch):
    """{path: (kind, out, in, kernel)} of every module with tensors."""
    ch, width, levels = arch.channels, 4 * arch.channels, len(arch.mult)
    found = {
        "temb.dense.0": ("linear", width, ch, 0),
        "temb.dense.1": ("linear", width, width, 0),
        "conv_in": ("conv2d", ch, arch.colours, 3),
    }
    now, skips = ch, [ch]
    for level, mult in enumerate(arch.mult):
        for i in range(arch.repeats):
            found |= _resnet(f"down.{level}.block.{i}", now, mult * ch, width)
            now = mult * ch
            if level in arch.attention:
                found |= _attention(f"down.{level}.attn.{i}", now)
            skips.append(now)
        if level != levels - 1:
            found[f"down.{level}.downsample.conv"] = ("conv2d", now, now, 3)
            skips.append(now)
    found |= _resnet("mid.block_1", now, now, width) | _attention("mid.attn_1", now)
    found |= _resnet("mid.block_2", now, now, width)
    for level in reversed(range(levels)):
        for i in range(arch.repeats + 1):
            found |= _resnet(f"up.{level}.block.{i}", now + skips.pop(), arch.mult[level] * ch, width)
            now = arch.mult[level] * ch
            if level in arch.attention:
                found |= _attention(f"up.{level}.attn.{i}", now)
        if level:
            found[f"up.{level}.upsample.conv"] = ("conv2d", now, now, 3)
    return found | {"norm_out": ("norm", now, now, 0), "conv_out": ("conv2d", arch.colours, now, 3)}


def forward(state, arch, x, t, layer, operand=lambda path, name, x: x, mix=lambda path, h: h):
    """eps of x at timesteps t; `mix(path, h)` sees the outputs of up.*.attn.* and up.*.upsample."""

    def norm(path, h):
        groups = h.reshape(h.shape[0], 32, -1)
        mean, variance = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        flat = ((groups - mean) / torch.sqrt(variance + 1e-6)).reshape(h.shape)
        return flat * state[f"{path}.weight"][:, None, None] + state[f"{path}.bias"][:, None, None]

    half = arch.channels // 2
    # 10000^(-i / (half - 1)); ddim divides before it multiplies, which changes 1e-7 of it: enough to flip a sign
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half).float() / (half - 1))
    temb = torch.cat([angles.sin(), angles.cos()], 1).to(x.dtype)
    temb = layer("temb.dense.1", silu(layer("temb.dense.0", temb)))

    def res(path, h):
        inner = layer(f"{path}.conv1", silu(norm(f"{path}.norm1", h)), padding=1)
        inner = inner + layer(f"{path}.temb_proj", silu(temb))[:, :, None, None]
        inner = layer(f"{path}.conv2", silu(norm(f"{path}.norm2", inner)), padding=1)
        return inner + (layer(f"{path}.nin_shortcut", h) if f"{path}.nin_shortcut.weight" in state else h)

    def attention(path, h):
        if f"{path}.q.weight" not in state:
            return h
        n, c, height, width = h.shape
        inner = norm(f"{path}.norm", h)
        q, k, v = (layer(f"{path}.{name}", inner).reshape(n, c, -1) for name in "qkv")
        q, k = operand(path, "q", q * c**-0.25), operand(path, "k", k * c**-0.25)
        weight = operand(path, "w", torch.softmax(torch.bmm(q.transpose(1, 2), k), 2))  # [n, queries, keys]
        out = torch.bmm(operand(path, "v", v), weight.transpose(1, 2)).reshape(n, c, height, width)
        return h + layer(f"{path}.proj_out", out)

    h = layer("conv_in", x, padding=1)
    skips, levels = [h], len(arch.mult)
    for level in range(levels):
        for i in range(arch.repeats):
            h = attention(f"down.{level}.attn.{i}", res(f"down.{level}.block.{i}", h))
            skips.append(h)
        if level != levels - 1:
            h = layer(f"down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
            skips.append(h)
    h = res("mid.block_2", attention("mid.attn_1", res("mid.block_1", h)))
    for level in reversed(range(levels)):
        for i in range(arch.repeats + 1):
            h = res(f"up.{level}.block.{i}", torch.cat([h, skips.pop()], 1))
            h = attention(f"up.{level}.attn.{i}", h)
            if f"up.{level}.attn.{i}.q.weight" in state:
                h = mix(f"up.{level}.attn.{i}", h)
        if level:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            h = mix(f"up.{level}.upsample", layer(f"up.{level}.upsample.conv", h, padding=1))
    return layer("conv_out", silu(norm("norm_out", h)), padding=1)
