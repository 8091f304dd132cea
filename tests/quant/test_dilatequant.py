"""DilateQuant's layers and tables: what options decide, rows and heads against numpy, training against inference."""

import numpy as np
import pytest
import torch
from architectures import SMALL_UNCONDITIONAL
from diffusers import UNet2DModel
from torch import nn

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import UnsupportedError
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.quant.api import make_inference, method_options, quantize_layers
from edgedm.quant.clock import Clock
from edgedm.quant.dilation import dilate
from edgedm.quant.methods.dilatequant import DilateQuantOptions, IntegerZeroTable
from edgedm.quant.policy import policy_of
from edgedm.quant.uniform import ActivationTable
from edgedm.quant.uniform_layer import UniformLayer
from edgedm.training.calibrate import calibrating

EXACT = 1e-6  # float32 rounding of one multiplication and one sum
CLOSE = 1e-4  # another order of float32 sums, a few layers deep
EDGES = [0, 250, 500, 750]


def unet(policy=None, edges=EDGES, **options):
    torch.manual_seed(0)
    model = UNet2DModel(**SMALL_UNCONDITIONAL).eval()
    return quantize_layers(model, "dilatequant", policy, options=options, edges=edges)


def calibrated(model):
    """Dilate and calibrate `model` on inputs whose scale falls with the timestep; every row has its own."""
    dilate(model)
    t = torch.arange(32) * 1000 // 32
    x = torch.randn((32, 1, 8, 8), generator=torch.Generator().manual_seed(1)) * (2 - t / 1000)[:, None, None, None]
    with torch.no_grad(), calibrating(model, per_row=True):
        model(x, t)
    return model, x, t


def tables(model, path):
    return model.get_submodule(path).processor.quantizers


def test_layers_are_asymmetric_with_one_row_a_bin_and_one_at_the_edges():
    model = unet()
    layers = {path: module for path, module in model.named_modules() if isinstance(module, UniformLayer)}
    for path, layer in layers.items():
        edge = path in ("conv_in", "conv_out")
        assert (layer.weight_bits, layer.activation.bits) == ((8, 8) if edge else (4, 4)), path
        assert layer.activation.edges.tolist() == ([0] if edge else EDGES), path
        assert layer.dilation is not None and not layer.symmetric
    float_layers = [m for m in UNet2DModel(**SMALL_UNCONDITIONAL).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == len(float_layers)


def test_operands_have_a_column_a_head_and_the_softmax_eight_bits_and_a_fixed_zero():
    quantizers = tables(unet(), "mid_block.attentions.0")
    for name, table in quantizers.items():
        assert table.step.shape == table.zero.shape == (4, 2)  # 16 channels in heads of 8
        assert table.bits == (8 if name == "weight" else 4)
        assert table.step.requires_grad and table.zero.requires_grad == (name != "weight")
    assert set(quantizers) == {"query", "key", "weight", "value"}


def test_options_decide_the_structure():
    assert method_options("dilatequant") == DilateQuantOptions()
    plain = unet(tpq=False, dilate=False, softmax_bits=4)
    assert all(len(m.edges) == 1 for m in plain.modules() if isinstance(m, ActivationTable))
    assert not any(isinstance(m, UniformLayer) and m.dilation is not None for m in plain.modules())
    assert tables(plain, "mid_block.attentions.0")["weight"].bits == 4


def test_the_softmax_takes_a_width_that_packs_also_as_text():
    assert method_options("dilatequant", {"softmax_bits": "6"}).softmax_bits == 6
    for bits in (0, 1, 5, 16, "0"):
        with pytest.raises(UnsupportedError, match=r"softmax_bits.*expected 2, 4, 6 or 8"):
            method_options("dilatequant", {"softmax_bits": bits})
    for wrong in ({"bins": 0}, {"dilation_cap": 0.5}, {"calibration_samples": 0}, {"dilatation": True}):
        with pytest.raises(UnsupportedError, match=next(iter(wrong))):
            method_options("dilatequant", wrong)


def test_rows_and_heads_are_calibrated_on_their_own_timesteps_as_a_search_in_numpy_would():
    model, x, t = calibrated(unet())
    seen = {}
    quantizers = tables(model, "mid_block.attentions.0")
    handles = [
        table.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        for name, table in quantizers.items()
    ]
    for module in model.modules():
        if isinstance(module, ActivationTable):
            module.started.fill_(False)  # calibration looks at float activations
    with torch.no_grad():
        model(x, t)
    for handle in handles:
        handle.remove()
    for name, table in quantizers.items():
        for row, start in enumerate(EDGES):
            mine = seen[name][((t >= start) & (t < start + 250)).numpy()]
            for head in range(2):
                step, zero = searched(mine[:, head].double().numpy(), table.bits)
                assert table.step[row, head].item() == pytest.approx(step, rel=0.02), (name, row, head)
                assert abs(table.zero[row, head].item() - zero) <= 1, (name, row, head)
    assert (quantizers["weight"].zero == 0).all()


def searched(v, bits):
    """(step, zero) of the shrunk min-max range with the least mean |error|^2.4."""
    best = (np.inf, 0.0, 0.0)
    for factor in 1 - 0.01 * np.arange(80):
        low, high = min(v.min(), 0) * factor, max(v.max(), 0) * factor
        step = max((high - low) / (2**bits - 1), 1e-4)
        zero = np.rint(-low / step)
        error = (np.abs(on_grid(v, step, zero, bits) - v) ** 2.4).mean()
        if error < best[0]:
            best = (error, step, zero)
    return best[1:]


def on_grid(v, step, zero, bits):
    return ((np.rint(v / step) + zero).clip(0, 2**bits - 1) - zero) * step


def test_zero_points_are_whole_in_training_and_take_the_gradient_of_the_clipped_values():
    clock = Clock()
    table = IntegerZeroTable(4, [0, 500], clock)
    table.started.fill_(True)
    table.step.data.copy_(torch.tensor([[0.5], [0.25]]))
    table.zero.data.copy_(torch.tensor([[3.4], [-2.0]]))
    x = torch.randn((2, 40), generator=torch.Generator().manual_seed(0)) * 4
    clock.timestep = torch.tensor([10, 700])
    y = table(x)
    y.sum().backward()
    for row, (step, zero) in enumerate([(0.5, 3.0), (0.25, 0.0)]):
        v = x[row].double().numpy()
        np.testing.assert_allclose(y[row].detach(), on_grid(v, step, zero, 4), atol=EXACT)
        codes = np.rint(v / step) + zero
        outside = (codes < 0) | (codes > 15)
        by_step = np.where(outside, codes.clip(0, 15) - zero, np.rint(v / step) - v / step).sum()
        assert float(table.step.grad[row]) == pytest.approx(by_step, rel=1e-5, abs=1e-4)
        # a zero point below the grid is clamped and has no gradient
        assert float(table.zero.grad[row]) == pytest.approx(-step * outside.sum() if row == 0 else 0, abs=1e-5)
    ships = table.to_inference()
    for image, timestep in enumerate((10, 700)):
        clock.timestep = torch.tensor([timestep])
        assert torch.allclose(ships(x[image : image + 1]), y[image : image + 1], atol=EXACT)


@pytest.mark.parametrize("nominal", ["W4A4", "W6A6"])
def test_the_model_that_trains_equals_the_one_that_ships(nominal):
    model, x, _ = calibrated(unet(policy_of("dilatequant", nominal=nominal)))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ActivationTable):
                module.step.mul_(1.05)
                module.zero.add_(0.3)  # a trained zero point is no integer
        outputs = [model(x[i : i + 2], torch.tensor(t))[0] for i, t in enumerate((5, 400, 999))]
        make_inference(model)
        ships = [model(x[i : i + 2], torch.tensor([t, t]))[0] for i, t in enumerate((5, 400, 999))]
    for ours, theirs in zip(outputs, ships, strict=True):
        # a code that lies on its rounding boundary may flip; all else agrees
        assert ((ours - theirs).abs() < CLOSE).float().mean() > 0.98
    assert not torch.allclose(ships[0], ships[1], atol=0.01)


def test_six_bits_use_six_bits():
    model, _, _ = calibrated(unet(policy_of("dilatequant", nominal="W6A6")))
    layer = model.get_submodule("mid_block.resnets.0.conv1")
    quantizers = tables(model, "mid_block.attentions.0")
    assert (layer.weight_bits, layer.activation.bits) == (6, 6) and layer.codes().max() == 63
    assert [quantizers[name].bits for name in ("query", "weight", "value")] == [6, 8, 6]


@pytest.mark.parametrize("nominal", ["W4A4", "W6A6"])
@pytest.mark.parametrize("options", [{}, {"tpq": False, "dilate": False}])
def test_a_checkpoint_reads_back_what_was_written(tmp_path, nominal, options):
    policy = policy_of("dilatequant", nominal=nominal)
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config={**SMALL_UNCONDITIONAL, "num_class_embeds": 3}),
        method="dilatequant",
        roles=dict(policy.bits),
        noise_schedule=NoiseSchedule().model_dump(mode="json"),
        null_class=2,
        options=options,
        timestep_bins=[0, 300, 600] if options == {} else [],
    )
    checkpoint = build(config, 3)
    save(checkpoint, tmp_path / "out")
    again = load(tmp_path / "out").module
    x, t, label = torch.randn(1, 1, 8, 8), torch.tensor([400]), torch.tensor([1])
    assert torch.equal(checkpoint.module.record(x, t, label), again.record(x, t, label))
    kept = again.state_dict()
    assert any(name.endswith("dilation") for name in kept) == (options == {})
    rows = {len(value) for name, value in kept.items() if name.endswith("activation.table")}
    assert rows == ({1, 3} if options == {} else {1})


def test_s_is_what_a_checkpoint_can_hold():
    model, _, _ = calibrated(unet())
    for module in model.modules():
        if isinstance(module, UniformLayer):
            assert torch.equal(module.dilation, module.dilation.half().float())
