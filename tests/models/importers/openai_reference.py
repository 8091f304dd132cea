"""latent-diffusion's UNet by its formulas, block by block, on a file's own tensors: what importers are held against.

Nothing of edgedm or diffusers is used. `layer(path, x)` computes one convolution or linear layer, `operand(path,
name, x)` what a method does to q, k, w, v, `mix(index, h)` what it does to an output block's result.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Arch:
    channels: int = 32
    mult: tuple[int, ...] = (1, 2)
    repeats: int = 1
    attention: tuple[int, ...] = (1,)  # levels
    head_channels: int = 16
    image: int = 8
    colours: int = 3
    updown: bool = False
    scale_shift: bool = False
    order: str = "legacy"
    classes: int = 0


def input_blocks(arch):
    """[[(kind, channels in, channels out), ...], ...] in the order of the authors' constructor, and the skips."""
    now = arch.channels
    blocks, skips = [[("conv", arch.colours, now)]], [now]
    for level, mult in enumerate(arch.mult):
        for _ in range(arch.repeats):
            block = [("res", now, mult * arch.channels)]
            now = mult * arch.channels
            if level in arch.attention:
                block.append(("attn", now, now))
            blocks.append(block)
            skips.append(now)
        if level != len(arch.mult) - 1:
            blocks.append([("res.down" if arch.updown else "down", now, now)])
            skips.append(now)
    return blocks, skips


def output_blocks(arch):
    _, skips = input_blocks(arch)
    now, blocks = arch.mult[-1] * arch.channels, []
    for level, mult in reversed(list(enumerate(arch.mult))):
        for i in range(arch.repeats + 1):
            block = [("res", now + skips.pop(), mult * arch.channels)]
            now = mult * arch.channels
            if level in arch.attention:
                block.append(("attn", now, now))
            if level and i == arch.repeats:
                block.append(("res.up" if arch.updown else "up", now, now))
            blocks.append(block)
    return blocks


def middle(arch):
    now = arch.mult[-1] * arch.channels
    return [("res", now, now), ("attn", now, now), ("res", now, now)]


def modules(arch):
    """{path: (kind, out, in, kernel)} of every module with tensors; kinds: conv2d, conv1d, linear, norm, embedding."""
    width = 4 * arch.channels
    found = {"time_embed.0": ("linear", width, arch.channels, 0), "time_embed.2": ("linear", width, width, 0)}
    if arch.classes:
        found["label_emb"] = ("embedding", arch.classes, width, 0)
    parts = [(f"input_blocks.{i}", block) for i, block in enumerate(input_blocks(arch)[0])]
    parts += [("middle_block", middle(arch))]
    parts += [(f"output_blocks.{i}", block) for i, block in enumerate(output_blocks(arch))]
    for prefix, block in parts:
        for j, (kind, before, after) in enumerate(block):
            path = f"{prefix}.{j}"
            if kind == "conv":
                found[path] = ("conv2d", after, before, 3)
            elif kind == "down":
                found[f"{path}.op"] = ("conv2d", after, before, 3)
            elif kind == "up":
                found[f"{path}.conv"] = ("conv2d", after, before, 3)
            elif kind == "attn":
                found[f"{path}.norm"] = ("norm", after, after, 0)
                found[f"{path}.qkv"] = ("conv1d", 3 * after, after, 1)
                found[f"{path}.proj_out"] = ("conv1d", after, after, 1)
            else:
                found[f"{path}.in_layers.0"] = ("norm", before, before, 0)
                found[f"{path}.in_layers.2"] = ("conv2d", after, before, 3)
                found[f"{path}.emb_layers.1"] = ("linear", after * (1 + arch.scale_shift), width, 0)
                found[f"{path}.out_layers.0"] = ("norm", after, after, 0)
                found[f"{path}.out_layers.3"] = ("conv2d", after, after, 3)
                if before != after:
                    found[f"{path}.skip_connection"] = ("conv2d", after, before, 1)
    found["out.0"] = ("norm", arch.channels, arch.channels, 0)
    found["out.2"] = ("conv2d", arch.colours, arch.channels, 3)
    return found


def weight_shape(kind, out, inside, kernel):
    return {
        "conv2d": (out, inside, kernel, kernel),
        "conv1d": (out, inside, kernel),
        "linear": (out, inside),
        "embedding": (out, inside),
        "norm": (out,),
    }[kind]


def float_state(arch_modules, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for path, (kind, out, inside, kernel) in arch_modules.items():
        shape = weight_shape(kind, out, inside, kernel)
        spread = 1.0 if kind in ("norm", "embedding") else 1.5 / math.sqrt(math.prod(shape[1:]))
        state[f"{path}.weight"] = torch.randn(shape, generator=generator) * spread + (kind == "norm")
        if kind != "embedding":
            state[f"{path}.bias"] = torch.randn(out, generator=generator) * 0.2
    return state


def float_layer(state):
    """The layer function of a model in full precision."""

    def layer(path, x, stride=1, padding=0):
        weight, bias = state[f"{path}.weight"], state[f"{path}.bias"]
        if weight.ndim == 4:
            return F.conv2d(x, weight, bias, stride, padding)
        return F.conv1d(x, weight, bias) if weight.ndim == 3 else x @ weight.T + bias

    return layer


def sinusoid(t, channels):
    half = channels // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([angles.cos(), angles.sin()], 1)


def silu(x):
    return x * torch.sigmoid(x)


def forward(state, arch, x, t, layer, operand=lambda path, name, x: x, mix=lambda index, h: h, labels=None):
    """eps of x [N, C, H, W] at timesteps t [N]."""

    def norm(path, h):
        groups = h.reshape(h.shape[0], 32, -1)
        mean, variance = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        flat = ((groups - mean) / torch.sqrt(variance + 1e-5)).reshape(h.shape)
        each = (1, -1, *(1,) * (h.ndim - 2))
        return flat * state[f"{path}.weight"].reshape(each) + state[f"{path}.bias"].reshape(each)

    emb = layer("time_embed.2", silu(layer("time_embed.0", sinusoid(t, arch.channels).to(x.dtype))))
    if labels is not None:
        emb = emb + state["label_emb.weight"][labels]

    def twice(h):
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def halve(h):
        return F.avg_pool2d(h, 2)

    def res(path, h, resize=lambda h: h):
        inner = layer(f"{path}.in_layers.2", resize(silu(norm(f"{path}.in_layers.0", h))), padding=1)
        h = resize(h)
        shift = layer(f"{path}.emb_layers.1", silu(emb))[:, :, None, None]
        if arch.scale_shift:
            scale, shift = shift.chunk(2, 1)
            inner = norm(f"{path}.out_layers.0", inner) * (1 + scale) + shift
        else:
            inner = norm(f"{path}.out_layers.0", inner + shift)
        inner = layer(f"{path}.out_layers.3", silu(inner), padding=1)
        if f"{path}.skip_connection.weight" in state:
            h = layer(f"{path}.skip_connection", h)
        return h + inner

    def attention(path, h):
        n, c, height, width = h.shape
        flat = h.reshape(n, c, -1)
        heads = c // arch.head_channels
        qkv = layer(f"{path}.qkv", norm(f"{path}.norm", flat))
        if arch.order == "legacy":
            q, k, v = qkv.reshape(n * heads, 3 * arch.head_channels, -1).split(arch.head_channels, 1)
        else:
            q, k, v = (each.reshape(n * heads, arch.head_channels, -1) for each in qkv.chunk(3, 1))
        scale = 1 / math.sqrt(math.sqrt(arch.head_channels))
        q, k = operand(path, "q", q * scale), operand(path, "k", k * scale)
        weight = operand(path, "w", torch.softmax(torch.einsum("bct,bcs->bts", q, k), -1))
        out = torch.einsum("bts,bcs->bct", weight, operand(path, "v", v)).reshape(n, c, -1)
        return (flat + layer(f"{path}.proj_out", out)).reshape(n, c, height, width)

    def run(prefix, block, h):
        for j, (kind, _, _) in enumerate(block):
            path = f"{prefix}.{j}"
            if kind == "conv":
                h = layer(path, h, padding=1)
            elif kind == "down":
                h = layer(f"{path}.op", h, stride=2, padding=1)
            elif kind == "up":
                h = layer(f"{path}.conv", twice(h), padding=1)
            elif kind == "attn":
                h = attention(path, h)
            else:
                h = res(path, h, {"res": lambda h: h, "res.down": halve, "res.up": twice}[kind])
        return h

    skips, h = [], x
    for i, block in enumerate(input_blocks(arch)[0]):
        h = run(f"input_blocks.{i}", block, h)
        skips.append(h)
    h = run("middle_block", middle(arch), h)
    for i, block in enumerate(output_blocks(arch)):
        h = mix(i, run(f"output_blocks.{i}", block, torch.cat([h, skips.pop()], 1)))
    return layer("out.2", silu(norm("out.0", h)), padding=1)
