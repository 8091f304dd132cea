"""EfficientDM's three kinds of files: grids alone, packed integers, integers with a low-rank update and tables."""

import pytest
import torch
from authors_files import call_exactly, double, inputs
from openai_reference import Arch, float_layer, float_state, forward, modules
from torch.nn import functional as F
from uniform_reference import Draw, fake, minmax

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import load
from edgedm.models.importers import import_checkpoint

CLOSE = 1e-5  # both sides in float64; the sinusoid, steps and weights start as float32
ARCH = Arch(mult=(1, 2), attention=(1,))
ROWS, RANK = 20, 4
SPECIAL = ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2")
FINAL = "model.diffusion_model.model."


def kept_float(path, kind):
    """The release quantises Conv2d and Linear whose own name contains neither "skip" nor "op"."""
    return kind in ("norm", "conv1d") or path.endswith(("skip_connection", ".op"))


def pack(codes, bits):
    rows = codes.to(torch.uint8).reshape(-1, 8 // bits, *codes.shape[1:])
    return sum(rows[:, i] << (bits * i) for i in range(8 // bits)).to(torch.uint8)


def efficientdm_state(stage, bits=4, seed=0):
    state = float_state(modules(ARCH), seed)
    draw = Draw(seed + 1)
    for path, (kind, out, inside, kernel) in modules(ARCH).items():
        if kept_float(path, kind):
            continue
        special = path in SPECIAL
        width = 8 if special else bits
        weight = state[f"{path}.weight"]
        step, zero = minmax(weight, width)
        codes = torch.clamp(torch.round(weight / step) + zero, 0, 2**width - 1)
        low, high = (0.01, 0.02) if special else (0.2, 0.4)
        state[f"{path}.act_quantizer.delta"] = draw(low=low, high=high)
        state[f"{path}.act_quantizer.zero_point"] = draw.whole(low=2**width // 2 - 2, high=2**width // 2 + 1)
        state[f"{path}.weight_quantizer.delta"], state[f"{path}.weight_quantizer.zero_point"] = step, zero
        if special or stage == "naive":
            continue
        state[f"{path}.weight"] = pack(codes, bits)
        if stage == "final":
            state[f"{path}.intn_dequantizer.delta"] = step * draw(*step.shape, low=0.9, high=1.1)
            state[f"{path}.intn_dequantizer.zero_point"] = zero
            taps = (kernel, kernel) if kind == "conv2d" else ()
            state[f"{path}.loraA.weight"] = draw(RANK, inside, *taps, low=-0.2, high=0.2)
            state[f"{path}.loraB.weight"] = draw(out, RANK, *(1,) * len(taps), low=-0.2, high=0.2)
            state[f"{path}.act_quantizer.delta_list"] = draw(ROWS, low=0.2, high=0.4)
            state[f"{path}.act_quantizer.zp_list"] = draw.whole(ROWS, low=2**bits // 3, high=2**bits // 3 * 2)
    return state


def reference_layer(state, timestep, bits=4):
    plain = float_layer(state)

    def unpack(packed):
        parts = [(packed.long() >> (bits * i)) % 2**bits for i in range(8 // bits)]
        return torch.stack(parts, 1).flatten(0, 1).double()

    def layer(path, x, stride=1, padding=0):
        if f"{path}.weight_quantizer.delta" not in state:
            return plain(path, x, stride, padding)
        weight = state[f"{path}.weight"]
        width = 8 if path in SPECIAL else bits
        step, zero = state[f"{path}.weight_quantizer.delta"], state[f"{path}.weight_quantizer.zero_point"]
        if weight.dtype != torch.uint8:
            weight = fake(weight, step, zero, width)
        elif f"{path}.loraA.weight" not in state:
            weight = (unpack(weight) - zero) * step
        else:
            delta, start = (state[f"{path}.intn_dequantizer.{name}"] for name in ("delta", "zero_point"))
            base = (unpack(weight) - start) * delta
            a, b = state[f"{path}.loraA.weight"], state[f"{path}.loraB.weight"]
            update = torch.einsum("or,r...->o...", b.reshape(b.shape[:2]), a)
            weight = fake(base + update, step, zero, width)
        x_step, x_zero = state[f"{path}.act_quantizer.delta"], state[f"{path}.act_quantizer.zero_point"]
        if f"{path}.act_quantizer.delta_list" in state:
            row = timestep * ROWS // 1000
            x_step, x_zero = state[f"{path}.act_quantizer.delta_list"][row], state[f"{path}.act_quantizer.zp_list"][row]
        x = fake(x, x_step, x_zero, width)
        bias = state[f"{path}.bias"]
        return F.conv2d(x, weight, bias, stride, padding) if weight.ndim == 4 else x @ weight.T + bias

    return layer


def write(tmp_path, state, stage):
    prefix = FINAL if stage == "final" else "model."
    content = {prefix + name: value for name, value in state.items()}
    if stage == "final":
        content |= {f"{part}.weight": torch.ones(1) for part in ("first_stage_model.encoder", "cond_stage_model.table")}
    torch.save(content, tmp_path / "quant.pth")
    return tmp_path / "quant.pth"


def bring_in(path, **options):
    return import_checkpoint(path, "efficientdm-ldm", **{"head_channels": 16, "image_size": 8} | options)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("stage", ["naive", "packed", "final"])
def test_every_stage_is_the_releases_formulas(tmp_path, stage, bits):
    state = efficientdm_state(stage, bits)
    imported = bring_in(write(tmp_path, state, stage), bits=f"W{bits}A{bits}")
    assert len(imported.checkpoint.config.timestep_bins) == (ROWS if stage == "final" else 0)
    for timestep in (1, 49, 50, 981) if stage == "final" else (421,):
        x, t = inputs(ARCH, timestep=timestep)
        expected = forward(double(state), ARCH, x.double(), t, reference_layer(double(state), timestep, bits))
        assert expected.std() > 0.05
        torch.testing.assert_close(call_exactly(imported.checkpoint, x, t)[0], expected, atol=CLOSE, rtol=CLOSE)
    if stage == "final":
        assert imported.outcome.figures["weights.changed_by_the_update"] > 1000


def test_the_written_checkpoint_loads_with_integer_weights(tmp_path):
    bring_in(write(tmp_path, efficientdm_state("final"), "final"), output=tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert loaded.module.state_dict()["unet.mid_block.resnets.0.conv1.codes"].dtype == torch.uint8
    assert loaded.config.roles["shortcut"] == loaded.config.roles["attn_qkv"] == "float"


def test_fractional_zero_points_are_rounded_and_the_report_says_by_how_much(tmp_path):
    state = efficientdm_state("final")
    state["middle_block.0.in_layers.2.act_quantizer.zp_list"][3] = 6.4
    outcome = bring_in(write(tmp_path, state, "final")).outcome
    assert outcome.figures["zero_points.largest_rounding"] == pytest.approx(0.4, abs=1e-5)


def test_zero_points_outside_the_grid_are_refused_unless_they_may_be_clamped(tmp_path):
    state = efficientdm_state("final")
    state["middle_block.0.in_layers.2.act_quantizer.zp_list"][3] = -2.0
    path = write(tmp_path, state, "final")
    with pytest.raises(UnsupportedError, match=r"middle_block\.0\.in_layers\.2.*clamp_zero_points"):
        bring_in(path)
    assert bring_in(path, clamp_zero_points=True).outcome.figures["zero_points.largest_rounding"] == 2


@pytest.mark.parametrize(
    ("name", "change"),
    {
        "middle_block.0.in_layers.2.weight": lambda v: v[:-1].clone(),
        "middle_block.0.in_layers.2.act_quantizer.delta_list": lambda v: v[:-1].clone(),
        "middle_block.0.in_layers.2.act_quantizer.zp_list": lambda v: v * float("nan"),
        "middle_block.0.in_layers.2.weight_quantizer.delta": lambda v: -v,
        "middle_block.0.in_layers.2.weight_quantizer.zero_point": lambda v: v + 0.5,
        "middle_block.0.in_layers.2.intn_dequantizer.zero_point": lambda v: v + 99,
        "middle_block.0.in_layers.2.loraA.weight": lambda v: v[:, 1:].clone(),
        "middle_block.0.in_layers.2.loraB.weight": lambda v: v[:, 1:].clone(),
        "time_embed.0.act_quantizer.delta": lambda v: v * 0,
    }.items(),
)
def test_an_altered_tensor_is_refused_by_name(tmp_path, name, change):
    state = efficientdm_state("final")
    for altered in (change(state[name]), None):
        changed = {key: value for key, value in state.items() if key != name}
        if altered is not None:
            changed[name] = altered
        elif name.endswith("delta_list"):
            continue  # then the layer's single step is taken, and the list of zero points is left over
        with pytest.raises(InvalidModelError, match=name.rpartition(".")[0].replace(".", r"\.")):
            bring_in(write(tmp_path, changed, "final"))


def test_a_quantised_shortcut_is_another_policy_and_refused_by_name(tmp_path):
    state = efficientdm_state("naive")
    state["output_blocks.0.0.skip_connection.weight_quantizer.delta"] = torch.ones(64, 1, 1, 1)
    with pytest.raises(InvalidModelError, match="skip_connection"):
        bring_in(write(tmp_path, state, "naive"))


def test_widths_that_the_packing_contradicts_are_refused_by_name(tmp_path):
    path = write(tmp_path, efficientdm_state("packed"), "packed")
    with pytest.raises(InvalidModelError, match=r"weight"):
        bring_in(path, bits="W2A4")
    for bits in ("W1A4", "float", "5"):
        with pytest.raises(UnsupportedError, match="bits"):
            bring_in(path, bits=bits)
