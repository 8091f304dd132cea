"""DilateQuant's files in EDA-DM's layout: tables a timestep and head, zero points beside the file, both UNets."""

import ddim_reference
import openai_reference
import pytest
import torch
from authors_files import call_exactly, double, inputs
from openai_reference import float_state
from torch.nn import functional as F
from uniform_reference import Draw, fake, minmax

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import load
from edgedm.models.importers import import_checkpoint

CLOSE = 1e-5  # both sides in float64; the sinusoid, steps and weights start as float32
ROWS, HEADS = 10, 4
LDM = openai_reference.Arch(mult=(1, 2), attention=(1,), head_channels=16)
CIFAR = ddim_reference.Arch(mult=(1, 2), attention=(1,))
FIRST_AND_LAST = ("input_blocks.0.0", "out.2", "conv_in", "conv_out")
OPTIONS = {"dilatequant-ldm": {"head_channels": 16, "image_size": 8}, "dilatequant-cifar": {"image_size": 8}}


def arch_of(layout):
    return (LDM, openai_reference) if layout == "dilatequant-ldm" else (CIFAR, ddim_reference)


def dilatequant_files(layout, seed=0, bits=4, dilation=True, adaround=False):
    """(state dict, what has to be dumped beside it)."""
    arch, reference = arch_of(layout)
    found, draw, beside = reference.modules(arch), Draw(seed + 1), {}
    state = float_state(found, seed)
    heads = HEADS if layout == "dilatequant-ldm" else 1
    for path, (kind, _, inside, _) in found.items():
        if kind == "norm":
            if path.endswith((".norm", "attn.norm")):
                block = path.removesuffix(".norm")
                inner = f"{block}.attention" if layout == "dilatequant-ldm" else block
                for name in "qkwv":
                    low = 1 / 255 / 2 if name == "w" else 0.3
                    state[f"{inner}.act_quantizer_{name}.delta"] = draw(ROWS * heads, low=low, high=2 * low)
                    if name != "w":
                        beside[f"{inner}.act_quantizer_{name}.zero_point"] = draw.whole(ROWS * heads, low=5, high=9)
            continue
        ends = path in FIRST_AND_LAST
        width, rows = (8, 1) if ends else (bits, ROWS)
        weight = state[f"{path}.weight"]
        step, zero = minmax(weight, width)
        state[f"{path}.weight_quantizer.delta"] = step * 0.9
        (beside if dilation else state)[f"{path}.weight_quantizer.zero_point"] = zero
        if adaround:
            state[f"{path}.weight_quantizer.alpha"] = draw(*weight.shape, low=-1, high=1)
        low = 0.01 if ends else 0.2
        middle, shape = 2**width // 2, [rows] if rows > 1 else []
        state[f"{path}.act_quantizer.delta"] = draw(*shape, low=low, high=2 * low)
        beside[f"{path}.act_quantizer.zero_point"] = draw.whole(*shape, low=middle - 2, high=middle)
        if dilation and not ends:
            beside[f"{path}.dilation"] = draw(inside, low=1, high=2)
    return state, beside


def reference_layer(state, beside, timestep, bits=4, by_head=False, scaled=True):
    row = timestep * ROWS // 1000

    def at(values):
        return values if values.numel() == 1 else values[row]

    def layer(path, x, stride=1, padding=0):
        weight, width = state[f"{path}.weight"], 8 if path in FIRST_AND_LAST else bits
        step = state[f"{path}.weight_quantizer.delta"]
        zero = (state | beside)[f"{path}.weight_quantizer.zero_point"]
        if f"{path}.weight_quantizer.alpha" in state:
            up = (state[f"{path}.weight_quantizer.alpha"] >= 0).double()
            weight = (torch.clamp(torch.floor(weight / step) + up + zero, 0, 2**width - 1) - zero) * step
        else:
            weight = fake(weight, step, zero, width)
        if f"{path}.dilation" in beside:
            x = x / beside[f"{path}.dilation"].reshape(-1, *(1,) * (x.ndim - 2))
        x = fake(x, at(state[f"{path}.act_quantizer.delta"]), at(beside[f"{path}.act_quantizer.zero_point"]), width)
        bias = state[f"{path}.bias"]
        if weight.ndim == 2:
            return x @ weight.T + bias
        return F.conv2d(x, weight, bias, stride, padding) if weight.ndim == 4 else F.conv1d(x, weight, bias)

    def operand(path, name, x):
        inner = f"{path}.attention" if f"{path}.attention.act_quantizer_q.delta" in state else path
        step = state[f"{inner}.act_quantizer_{name}.delta"]
        zero = beside.get(f"{inner}.act_quantizer_{name}.zero_point", torch.zeros_like(step))
        heads = step.numel() // ROWS
        shape = (heads, ROWS) if by_head else (ROWS, heads)
        step, zero = (each.reshape(shape).select(1 - int(not by_head), row) for each in (step, zero))
        step, zero = step.reshape(-1, 1, 1), zero.reshape(-1, 1, 1)
        factor = 1.0 if scaled or name not in "qk" else x.shape[1] ** -0.25  # x: [N heads, d, positions]
        return fake(x / factor, step, zero, 8 if name == "w" else bits) * factor

    return layer, operand


def write(tmp_path, state, beside):
    torch.save({f"model.{name}": value for name, value in state.items()}, tmp_path / "quant.pth")
    torch.save(beside, tmp_path / "zero_points.pt")
    return tmp_path / "quant.pth", {"zero_points": str(tmp_path / "zero_points.pt")}


CASES = {
    "dilated": {},
    "folded before": {"dilation": False},
    "learned rounding": {"adaround": True},
    "six bits": {"bits": 6},
}


@pytest.mark.parametrize("layout", OPTIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_model_is_the_formulas_at_every_row(tmp_path, layout, case):
    arch, reference = arch_of(layout)
    state, beside = dilatequant_files(layout, **case)
    path, options = write(tmp_path, state, beside)
    bits = case.get("bits", 4)
    checkpoint = import_checkpoint(path, layout, bits=f"W{bits}A{bits}", **options, **OPTIONS[layout]).checkpoint
    assert checkpoint.config.options["dilate"] == case.get("dilation", True)
    for timestep in (0, 99, 100, 999):
        x, t = inputs(arch, timestep=timestep)
        layer, operand = reference_layer(double(state), double(beside), timestep, bits, scaled="ldm" in layout)
        expected = reference.forward(double(state), arch, x.double(), t, layer, operand)
        assert expected.std() > 0.05
        torch.testing.assert_close(call_exactly(checkpoint, x, t)[0], expected, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("operands", ["scaled", "unscaled"])
def test_tables_by_head_and_unscaled_operands_are_options(tmp_path, operands):
    state, beside = dilatequant_files("dilatequant-ldm")
    path, options = write(tmp_path, state, beside)
    chosen = {"table_order": "head", "operands": operands, **options, **OPTIONS["dilatequant-ldm"]}
    checkpoint = import_checkpoint(path, "dilatequant-ldm", **chosen).checkpoint
    x, t = inputs(LDM, timestep=250)
    layer, operand = reference_layer(double(state), double(beside), 250, by_head=True, scaled=operands == "scaled")
    expected = openai_reference.forward(double(state), LDM, x.double(), t, layer, operand)
    torch.testing.assert_close(call_exactly(checkpoint, x, t)[0], expected, atol=CLOSE, rtol=CLOSE)


def test_single_roles_may_have_other_widths(tmp_path):
    path, options = write(tmp_path, *dilatequant_files("dilatequant-ldm"))
    chosen = options | OPTIONS["dilatequant-ldm"]
    imported = import_checkpoint(path, "dilatequant-ldm", tmp_path / "out", roles="time_mlp:W8A8", **chosen)
    config = imported.checkpoint.config
    assert config.roles["time_mlp"] == "W8A8" and config.roles["res_conv"] == "W4A4"
    assert load(tmp_path / "out").config == config
    for roles in ("time:W8A8", "time_mlp", "time_mlp:W5A5"):
        with pytest.raises(UnsupportedError, match="roles"):
            import_checkpoint(path, "dilatequant-ldm", roles=roles, **chosen)


def test_without_zero_points_the_error_says_how_to_dump_them(tmp_path):
    state, beside = dilatequant_files("dilatequant-ldm")
    name = "middle_block.0.in_layers.2.act_quantizer.zero_point"
    del beside[name]
    path, options = write(tmp_path, state, beside)
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.") + r".*torch\.save"):
        import_checkpoint(path, "dilatequant-ldm", **options, **OPTIONS["dilatequant-ldm"])
    with pytest.raises(UnsupportedError, match="zero_points"):
        import_checkpoint(path, "dilatequant-ldm", **OPTIONS["dilatequant-ldm"])


def test_a_split_layer_is_refused_by_name(tmp_path):
    state, beside = dilatequant_files("dilatequant-ldm")
    state["output_blocks.0.0.skip_connection.weight_quantizer_0.delta"] = torch.ones(64, 1, 1, 1)
    path, options = write(tmp_path, state, beside)
    with pytest.raises(UnsupportedError, match=r"output_blocks\.0\.0\.skip_connection.*split"):
        import_checkpoint(path, "dilatequant-ldm", **options, **OPTIONS["dilatequant-ldm"])


@pytest.mark.parametrize(
    ("name", "change"),
    {
        "middle_block.0.in_layers.2.act_quantizer.delta": lambda v: v[:-1].clone(),
        "middle_block.1.attention.act_quantizer_q.delta": lambda v: v[:-1].clone(),
        "middle_block.1.attention.act_quantizer_w.delta": lambda v: v * float("nan"),
        "middle_block.1.qkv.weight_quantizer.delta": lambda v: v[:-1].clone(),
        "out.2.act_quantizer.delta": lambda v: torch.linspace(0.1, 0.2, ROWS),
    }.items(),
)
def test_an_altered_tensor_is_refused_by_name(tmp_path, name, change):
    state, beside = dilatequant_files("dilatequant-ldm")
    path, options = write(tmp_path, state | {name: change(state[name])}, beside)
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.")):
        import_checkpoint(path, "dilatequant-ldm", **options, **OPTIONS["dilatequant-ldm"])


def test_tensors_left_over_beside_the_file_are_refused_by_name(tmp_path):
    state, beside = dilatequant_files("dilatequant-ldm")
    path, options = write(tmp_path, state, beside | {"surprise.zero_point": torch.ones(1)})
    with pytest.raises(InvalidModelError, match=r"surprise\.zero_point"):
        import_checkpoint(path, "dilatequant-ldm", **options, **OPTIONS["dilatequant-ldm"])


@pytest.mark.parametrize("layout", OPTIONS)
def test_zero_points_of_weights_may_stand_in_both_files(tmp_path, layout):
    state, beside = dilatequant_files(layout, dilation=False)
    weights = {name: value for name, value in state.items() if name.endswith("weight_quantizer.zero_point")}
    path, options = write(tmp_path, state, beside)
    alone = import_checkpoint(path, layout, **options, **OPTIONS[layout]).checkpoint.module.state_dict()
    path, options = write(tmp_path, state, beside | weights)
    both = import_checkpoint(path, layout, **options, **OPTIONS[layout]).checkpoint.module.state_dict()
    assert weights and all(torch.equal(both[name], value) for name, value in alone.items())
    name = next(iter(weights))
    path, options = write(tmp_path, state, beside | weights | {name: weights[name] + 1})
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.") + ".*differs"):
        import_checkpoint(path, layout, **options, **OPTIONS[layout])


def test_a_step_that_float16_cannot_hold_is_refused_by_name(tmp_path):
    state, beside = dilatequant_files("dilatequant-ldm")
    name = "input_blocks.1.0.in_layers.2.act_quantizer.delta"
    path, options = write(tmp_path, state | {name: torch.full_like(state[name], 7e4)}, beside)
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.") + ".*float16"):
        import_checkpoint(path, "dilatequant-ldm", **options, **OPTIONS["dilatequant-ldm"])
