"""BinaryDM's files: two bases on head and tail, stored or recomputed scales, stored or dynamic activation steps."""

import pytest
import torch
from authors_files import call_exactly, double, inputs, lightning, moved
from openai_reference import Arch, float_layer, float_state, forward, modules
from torch.nn import functional as F

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.importers import import_checkpoint

CLOSE = 1e-5  # both sides in float64; the sinusoid and the scales start as float32
# three levels: input_blocks 0..3 and output_blocks 2..5 are levels 0 and 1, the head and tail
ARCH = Arch(mult=(1, 2, 2), attention=(1,), head_channels=16)
HEAD_AND_TAIL = tuple(f"input_blocks.{i}." for i in (1, 2, 3)) + tuple(f"output_blocks.{i}." for i in (2, 3, 4, 5))
FLOAT = ("time_embed.", "input_blocks.0.0", "out.2")


def binarydm_state(arch, seed=0):
    state = float_state(modules(arch), seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(*shape, low, high):
        return torch.rand(shape, generator=generator) * (high - low) + low

    for path, (kind, out, _, _) in modules(arch).items():
        if kind == "norm":
            continue
        ones = (1,) * {"conv2d": 3, "conv1d": 2, "linear": 1}[kind]
        mean = state[f"{path}.weight"].abs().mean()
        state[f"{path}.scaling_first_order"] = draw(out, *ones, low=0.5, high=1.5) * mean
        state[f"{path}.scaling_second_order"] = draw(out, *ones, low=0.2, high=0.8) * mean
        state[f"{path}.quantizer_a.alpha"] = draw(1, low=0.2, high=0.4)
        if path.endswith(".qkv"):
            for name, low in (("q", 0.2), ("k", 0.2), ("w", 0.01), ("v", 0.2)):
                alpha = draw(1, low=low, high=2 * low)
                state[f"{path.removesuffix('.qkv')}.attention.act_quantizer_{name}.alpha"] = alpha
    return state


def grid(x, alpha, bits, dynamic):
    top = 2 ** (bits - 1) - 1
    if dynamic:
        alpha = 2 * x.abs().mean() / top**0.5
    return torch.clamp(torch.round(x / alpha), -top - 1, top) * alpha


def binarydm_layer(state, scales="stored", bits=4, dynamic=False, bases="lmb"):
    """As the release computes it."""
    plain = float_layer(state)

    def sign(x):
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    def layer(path, x, stride=1, padding=0):
        if path.startswith(FLOAT):
            return plain(path, x, stride, padding)
        weight, bias = state[f"{path}.weight"], state[f"{path}.bias"]
        axes = tuple(range(1, weight.ndim))
        s1 = weight.abs().mean(axes, keepdim=True) if scales == "meanabs" else state[f"{path}.scaling_first_order"]
        residual = weight - s1 * sign(weight)
        s2 = residual.abs().mean(axes, keepdim=True) if scales == "meanabs" else state[f"{path}.scaling_second_order"]
        binary = s1 * sign(weight)
        if bases == "lmb" and path.startswith(HEAD_AND_TAIL):
            binary = binary + s2 * sign(residual)
        x = grid(x, state[f"{path}.quantizer_a.alpha"], bits, dynamic)
        if weight.ndim == 2:
            return x @ binary.T + bias
        return F.conv2d(x, binary, bias, stride, padding) if weight.ndim == 4 else F.conv1d(x, binary, bias)

    def operand(path, name, x):
        return grid(x, state[f"{path}.attention.act_quantizer_{name}.alpha"], bits, dynamic)

    return layer, operand


def write(tmp_path, content):
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def bring_in(path, **options):
    return import_checkpoint(path, "binarydm-ldm", **{"head_channels": 16, "image_size": 8, "weights": "raw"} | options)


CASES = {
    "stored": {},
    "mean absolute values": {"scales": "meanabs"},
    "8 bits": {"bits": "W1A8"},
    "dynamic steps, the release": {"activation": "dynamic", "scales": "meanabs", "bits": "W1A8"},
    "one basis": {"bases": "none"},
    "the averaged copy": {"weights": "ema"},
}


@pytest.mark.parametrize("chosen", CASES.values(), ids=CASES)
def test_binarydm_is_the_releases_formulas(tmp_path, chosen):
    state = binarydm_state(ARCH)
    path = write(tmp_path, lightning(state, ema=moved(state)))
    checkpoint = bring_in(path, **chosen).checkpoint
    tensors = double(moved(state) if "weights" in chosen else state)
    layer, operand = binarydm_layer(
        tensors,
        chosen.get("scales", "stored"),
        int(chosen.get("bits", "W1A4")[-1]),
        chosen.get("activation") == "dynamic",
        chosen.get("bases", "lmb"),
    )
    x, t = inputs(ARCH)
    expected = forward(tensors, ARCH, x.double(), t, layer, operand)
    assert expected.std() > 0.1
    torch.testing.assert_close(call_exactly(checkpoint, x, t)[0], expected, atol=CLOSE, rtol=CLOSE)


def test_the_report_tells_stored_scales_from_recomputed_ones(tmp_path):
    outcome = bring_in(write(tmp_path, lightning(binarydm_state(ARCH)))).outcome
    assert outcome.figures["scales.first.largest_difference_from_meanabs"] > 0.3
    assert outcome.figures["scales.second.largest_difference_from_meanabs"] > 0.1
    assert outcome.figures["weights.zero"] == 0
    assert any("scales=meanabs" in note for note in outcome.details["notes"])


@pytest.mark.parametrize("suffix", ["scaling_first_order", "scaling_second_order", "quantizer_a.alpha"])
def test_a_missing_or_misshapen_scale_is_refused_by_name(tmp_path, suffix):
    name = f"output_blocks.5.0.in_layers.2.{suffix}"
    state = binarydm_state(ARCH)
    for altered in (None, state[name][None].clone(), state[name] * float("nan")):
        changed = {key: value for key, value in state.items() if key != name}
        if altered is not None:
            changed[name] = altered
        with pytest.raises(InvalidModelError, match=name.replace(".", r"\.")):
            bring_in(write(tmp_path, lightning(changed)))


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1e-9])
def test_a_step_that_is_not_positive_is_refused_by_name(tmp_path, alpha):
    name = "middle_block.1.attention.act_quantizer_v.alpha"
    state = binarydm_state(ARCH) | {name: torch.tensor([alpha])}
    with pytest.raises(InvalidModelError, match=r"act_quantizer_v\.alpha"):
        bring_in(write(tmp_path, lightning(state)))


def test_widths_are_those_of_one_bit_weights(tmp_path):
    path = write(tmp_path, lightning(binarydm_state(ARCH)))
    for bits in ("W4A4", "four", "A4"):
        with pytest.raises(UnsupportedError, match="bits"):
            bring_in(path, bits=bits)
