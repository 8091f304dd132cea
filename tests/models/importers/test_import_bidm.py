"""BiDM's files: thresholds, filters k, shortcuts and the table of the cross-timestep connection."""

import openai_reference
import pytest
import torch
from authors_files import call, call_exactly, double, inputs, lightning, moved
from openai_reference import Arch, float_layer, float_state, forward, modules
from torch.nn import functional as F

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import load
from edgedm.models.importers import import_checkpoint

CLOSE = 1e-5  # both sides in float64; the sinusoid and the scales start as float32
ARCH = Arch(mult=(1, 2), attention=(1,), repeats=1)
INPUTS = 4  # input blocks of ARCH; the table's column of output block j is INPUTS + 1 + j
FLOAT = ("time_embed.", "input_blocks.0.0", "out.2")


def bidm_state(arch, seed=0):
    """Everything that the release stores, with nothing at its initial value."""
    state = float_state(modules(arch), seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(*shape, low=-0.3, high=0.3):
        return torch.rand(shape, generator=generator) * (high - low) + low

    for path, (kind, out, inside, kernel) in modules(arch).items():
        if kind in ("norm", "embedding") or path.endswith("skip_connection"):
            continue
        state[f"{path}.channel_threshold"] = draw(1, inside, *(1,) * {"conv2d": 2, "conv1d": 1, "linear": 0}[kind])
        if kind == "conv2d":
            state[f"{path}.fliter_k.weight"] = draw(1, 1, kernel, kernel, low=0.05, high=0.2)
            state[f"{path}.fliter_k.bias"] = draw(1)
            state[f"{path}.shortcut_scale"] = draw(1, low=-0.6, high=-0.2)
            if out != inside:
                state[f"{path}.shortcut.weight"] = draw(out, inside, 1, 1)
                state[f"{path}.shortcut.bias"] = draw(out)
    state["cache_coefficients"] = draw(100, 31, low=0.1, high=0.5)
    return state


def bidm_layer(state, k="stored"):
    """As the release computes it."""
    plain = float_layer(state)

    def sign(x):
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    def layer(path, x, stride=1, padding=0):
        if path.startswith(FLOAT) or path.endswith("skip_connection"):
            return plain(path, x, stride, padding)
        weight = state[f"{path}.weight"]
        alpha = weight.abs().mean(tuple(range(1, weight.ndim)), keepdim=True)
        binary = alpha * sign(weight)
        if weight.ndim == 2:
            return sign(x) @ binary.T  # the Linear's threshold is not in its forward
        theta = state[f"{path}.channel_threshold"]
        if weight.ndim == 3:
            return F.conv1d(sign(x + theta), binary)
        size = weight.shape[-1]
        box = torch.full((1, 1, size, size), 1 / size**2, dtype=x.dtype)
        kernel = state[f"{path}.fliter_k.weight"] if k == "stored" else box
        pixel = F.conv2d(x.abs().mean(1, keepdim=True), kernel, state[f"{path}.fliter_k.bias"], stride, padding)
        y = F.conv2d(sign(x + theta), binary, None, stride, padding) * pixel
        short = x
        if f"{path}.shortcut.weight" in state:
            short = F.conv2d(x, state[f"{path}.shortcut.weight"], state[f"{path}.shortcut.bias"], stride)
        elif stride == 2:
            short = F.avg_pool2d(x, 2, 2)
        return y + state[f"{path}.shortcut_scale"].abs() * short

    return layer


class Connection:
    """h = (1 - c) h + c h of the previous step, c = table[timestep // 10][column of the block]."""

    def __init__(self, table, last, blocks):
        self.table, self.first, self.cache = table, blocks - last, {}

    def at(self, timestep):
        def mix(index, h):
            if index < self.first:
                return h
            if index in self.cache:
                c = self.table[timestep // 10][INPUTS + 1 + index]
                h = (1 - c) * h + c * self.cache[index]
            self.cache[index] = h
            return h

        return mix


def write(tmp_path, content):
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def bring_in(path, **options):
    return import_checkpoint(path, "bidm-ldm", **{"head_channels": 16, "image_size": 8, "connections": 3} | options)


@pytest.mark.parametrize("k", ["stored", "box"])
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_three_steps_of_bidm_are_the_releases_formulas(tmp_path, k, weights):
    state = bidm_state(ARCH)
    path = write(tmp_path, lightning(state, ema=moved(state)))
    checkpoint = bring_in(path, k=k, weights=weights).checkpoint
    tensors = double(state if weights == "raw" else moved(state))
    blocks = len(openai_reference.output_blocks(ARCH))
    connection = Connection(tensors["cache_coefficients"], 3, blocks)
    module, rest = checkpoint.module, []
    for step, timestep in enumerate((991, 501, 11)):
        x, t = inputs(ARCH, seed=step, timestep=timestep)
        expected = forward(tensors, ARCH, x.double(), t, bidm_layer(tensors, k), mix=connection.at(timestep))
        rest = [torch.tensor([float(step > 0)]), *(rest or module.zero_state(ARCH.image, ARCH.image))]
        eps, *rest = call_exactly(checkpoint, x, t, *rest)
        assert expected.std() > 0.1
        torch.testing.assert_close(eps, expected, atol=CLOSE, rtol=CLOSE)
        for index, after in enumerate(rest):
            torch.testing.assert_close(after, connection.cache[blocks - 3 + index], atol=CLOSE, rtol=CLOSE)


def test_stored_filters_and_boxes_are_two_functions_and_the_report_says_so(tmp_path):
    path = write(tmp_path, lightning(bidm_state(ARCH)))
    stored, box = (bring_in(path, weights="raw", k=k) for k in ("stored", "box"))
    x, t = inputs(ARCH)
    zero = [torch.zeros(1), *stored.checkpoint.module.zero_state(8, 8)]
    difference = call(stored.checkpoint, x, t, *zero)[0] - call(box.checkpoint, x, t, *zero)[0]
    assert difference.abs().max() > 0.01
    assert stored.outcome.figures["k.largest_difference_from_box"] > 0.01
    assert "k=box" in stored.outcome.details["notes"][0]


def test_the_written_checkpoint_loads_and_keeps_taps_and_bins(tmp_path):
    path = write(tmp_path, lightning(bidm_state(ARCH)))
    bring_in(path, weights="raw", output=tmp_path / "ckpt")
    loaded = load(tmp_path / "ckpt")
    assert loaded.config.method == "bidm" and loaded.config.null_class is None
    assert loaded.config.taps == [
        "up_blocks.0.upsamplers.0",
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1",
    ]
    assert loaded.config.timestep_bins == list(range(0, 1000, 10))
    assert loaded.module.input_names[:3] == ["x", "timestep", "has_state"]


def test_more_connections_than_output_blocks_are_refused(tmp_path):
    path = write(tmp_path, lightning(bidm_state(ARCH)))
    with pytest.raises(UnsupportedError, match="connections=8"):
        bring_in(path, weights="raw", connections=8)


def test_a_table_that_lacks_columns_is_refused_by_name(tmp_path):
    state = bidm_state(ARCH)
    state["cache_coefficients"] = state["cache_coefficients"][:, :7].clone()
    with pytest.raises(InvalidModelError, match="cache_coefficients"):
        bring_in(write(tmp_path, lightning(state)), weights="raw")
