"""BiDM's files for CIFAR-10: attention as 1x1 convolutions, signed gains, a connection between two modules."""

import copy

import pytest
import torch
from authors_files import call_exactly, double, inputs, moved
from ddim_reference import Arch, forward, modules
from openai_reference import float_layer, float_state
from torch.nn import functional as F

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import load
from edgedm.models.importers import import_checkpoint

CLOSE = 1e-5  # both sides in float64; the sinusoid and the scales start as float32
ARCH = Arch(mult=(1, 2, 2, 2), attention=(1,))
FLOAT = ("temb.", "conv_in", "conv_out")


def bidm_state(arch, seed=0):
    state = float_state(modules(arch), seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(*shape, low=-0.3, high=0.3):
        return torch.rand(shape, generator=generator) * (high - low) + low

    for path, (kind, out, inside, kernel) in modules(arch).items():
        if kind == "norm" or path.endswith("nin_shortcut"):
            continue
        state[f"{path}.channel_threshold"] = draw(1, inside, *(1,) * (2 if kind == "conv2d" else 0))
        if kind == "conv2d":
            state[f"{path}.fliter_k.weight"] = draw(1, 1, kernel, kernel, low=0.05, high=0.2)
            state[f"{path}.fliter_k.bias"] = draw(1)
            state[f"{path}.shortcut_scale"] = draw(1, low=-0.6, high=0.6)
            if out != inside:
                state[f"{path}.shortcut.weight"] = draw(out, inside, 1, 1)
                state[f"{path}.shortcut.bias"] = draw(out)
    state["cache_coefficients"] = draw(100, 4, low=0.1, high=0.5)
    return state


def bidm_layer(state, k="stored"):
    plain = float_layer(state)

    def sign(x):
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    def layer(path, x, stride=1, padding=0):
        if path.startswith(FLOAT) or path.endswith("nin_shortcut"):
            return plain(path, x, stride, padding)
        weight = state[f"{path}.weight"]
        binary = weight.abs().mean(tuple(range(1, weight.ndim)), keepdim=True) * sign(weight)
        if weight.ndim == 2:
            return sign(x) @ binary.T
        size = weight.shape[-1]
        box = torch.full((1, 1, size, size), 1 / size**2, dtype=x.dtype)
        kernel = state[f"{path}.fliter_k.weight"] if k == "stored" else box
        pixel = F.conv2d(x.abs().mean(1, keepdim=True), kernel, state[f"{path}.fliter_k.bias"], stride, padding)
        y = F.conv2d(sign(x + state[f"{path}.channel_threshold"]), binary, None, stride, padding) * pixel
        short = F.avg_pool2d(x, 2, 2) if stride == 2 else x
        if f"{path}.shortcut.weight" in state:
            short = F.conv2d(x, state[f"{path}.shortcut.weight"], state[f"{path}.shortcut.bias"], stride)
        return y + state[f"{path}.shortcut_scale"] * short

    return layer


class Connection:
    """cache[-2] = up.2.upsample, mixed into up.1.attn.*; cache[-1] = up.1.upsample, mixed into itself."""

    def __init__(self, table):
        self.table, self.old, self.new = table, {}, {}

    def at(self, timestep):
        self.old, self.new = self.new, {}
        c = self.table[timestep // 10][1]

        def mix(path, h):
            source = "up.2.upsample" if path.startswith("up.1.attn") else path
            if source in self.old and path != "up.2.upsample" and path.startswith("up.1."):
                h = (1 - c) * h + c * self.old[source]
            if path in ("up.1.upsample", "up.2.upsample"):
                self.new[path] = h
            return h

        return mix


def write(tmp_path, content):
    torch.save(content, tmp_path / "ckpt.pth")
    return tmp_path / "ckpt.pth"


def listed(state):
    return [{f"module.{name}": value for name, value in state.items()}, {"state": {}}, 4, 999, moved(state)]


@pytest.mark.parametrize("k", ["stored", "box"])
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_three_steps_are_the_releases_formulas(tmp_path, k, weights):
    state = bidm_state(ARCH)
    path = write(tmp_path, listed(state))
    checkpoint = import_checkpoint(path, "bidm-cifar", k=k, weights=weights, image_size=8).checkpoint
    tensors = double(state if weights == "raw" else moved(state))
    connection, rest = Connection(tensors["cache_coefficients"]), []
    for step, timestep in enumerate((991, 501, 11)):
        x, t = inputs(ARCH, seed=step, timestep=timestep)
        mix = connection.at(timestep)
        expected = forward(tensors, ARCH, x.double(), t, bidm_layer(tensors, k), mix=mix)
        rest = [torch.tensor([float(step > 0)]), *(rest or checkpoint.module.zero_state(8, 8))]
        eps, *rest = call_exactly(checkpoint, x, t, *rest)
        torch.testing.assert_close(eps, expected, atol=CLOSE, rtol=CLOSE)
        for name, after in zip(("up.2.upsample", "up.1.upsample"), rest, strict=True):
            torch.testing.assert_close(after, connection.new[name], atol=CLOSE, rtol=CLOSE)
    assert expected.std() > 0.1


def test_the_checkpoint_carries_two_features_and_mixes_four(tmp_path):
    path = write(tmp_path, listed(bidm_state(ARCH)))
    import_checkpoint(path, "bidm-cifar", tmp_path / "out", image_size=8)
    loaded = load(tmp_path / "out")
    assert loaded.config.taps == ["up_blocks.1.upsamplers.0", "up_blocks.2.upsamplers.0"]
    assert list(loaded.config.mixes) == [
        "up_blocks.2.attentions.0",
        "up_blocks.2.attentions.1",
        "up_blocks.2.upsamplers.0",
    ]
    assert loaded.module.cache_coefficients.shape == (100, 3)
    assert loaded.config.options["attention"] == "conv2d" and loaded.config.options["gain"] == "raw"


def test_a_copy_of_the_model_mixes_its_own_state(tmp_path):
    checkpoint = import_checkpoint(write(tmp_path, listed(bidm_state(ARCH))), "bidm-cifar", image_size=8).checkpoint
    twin = copy.deepcopy(checkpoint.module)
    x, t = inputs(ARCH, timestep=40)
    state = [torch.ones_like(each) for each in checkpoint.module.zero_state(8, 8)]
    with torch.no_grad():
        ours, theirs = (module(x, t, torch.ones(1), *state) for module in (checkpoint.module, twin))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_unet_without_such_levels_is_refused_by_name(tmp_path):
    for mult, attention in (((1, 2), (1,)), ((1, 1, 2, 2), (1,)), ((1, 2, 2, 2), ())):
        arch = Arch(mult=mult, attention=attention)
        path = write(tmp_path, listed(bidm_state(arch)))
        with pytest.raises(UnsupportedError, match=r"up\.2\.upsample"):
            import_checkpoint(path, "bidm-cifar", image_size=8)


def test_a_table_of_one_column_is_refused_by_name(tmp_path):
    state = bidm_state(ARCH)
    state["cache_coefficients"] = torch.zeros(100, 1)
    with pytest.raises(InvalidModelError, match="cache_coefficients"):
        import_checkpoint(write(tmp_path, [state]), "bidm-cifar", weights="raw", image_size=8)
