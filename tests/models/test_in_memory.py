"""A module that the user trained becomes a checkpoint that computes the same, or is refused by name."""

import pytest
import torch
from architectures import SMALL_CONDITIONAL, SMALL_UNET
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from torch import nn
from torch.nn import functional as F

import edgedm
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import from_module, load, save
from edgedm.training.calibrate import calibrating

METHODS: dict[str, dict] = {"binarydm": {"bases": "none"}, "efficientdm": {}, "dilatequant": {}, "lsq": {}}
HALF = 0.2  # float16 of steps and tables moves values across rounding thresholds, a few layers deep


def conditional():
    torch.manual_seed(0)
    model = UNet2DConditionModel(**SMALL_CONDITIONAL)
    return model, (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 5, 12))


def trained(method):
    """A text-conditional UNet, quantised, calibrated and trained for two steps by a loop of its own."""
    model, inputs = conditional()
    target = model(*inputs).sample.detach()
    edgedm.quantize(model, method, options=METHODS[method])
    with torch.no_grad(), calibrating(model):
        model(*inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        loss = F.mse_loss(model(*inputs).sample, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), inputs


def answer(checkpoint, inputs):
    x, t, states = inputs
    with torch.no_grad():
        return checkpoint.module(x, t, encoder_hidden_states=states)[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_text_conditional_model_trained_by_hand_is_a_checkpoint(method, tmp_path):
    model, inputs = trained(method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = from_module(model, DDIMScheduler(num_train_timesteps=1000), condition_tokens=5)
    assert made.config.method == method
    assert made.config.condition_shape == (5, 12)
    torch.testing.assert_close(answer(made, inputs), model(*inputs).sample.detach(), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    save(made, tmp_path / "checkpoint")
    again = load(tmp_path / "checkpoint")
    assert again.config == made.config
    error = F.mse_loss(answer(again, inputs), answer(made, inputs)) / answer(made, inputs).square().mean()
    assert error < HALF


@pytest.mark.slow
def test_it_can_be_exported(tmp_path):
    model, _ = trained("dilatequant")
    made = from_module(model, DDIMScheduler(), condition_tokens=5)
    assert edgedm.export(made, tmp_path / "model.onnx").ok


def test_a_full_precision_model_is_what_its_folder_is(tmp_path):
    torch.manual_seed(0)
    model = UNet2DModel(**{**SMALL_UNET, "num_class_embeds": None})
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    model.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    made, read = from_module(model, scheduler), load(tmp_path)
    assert made.config == read.config
    for name, tensor in read.module.state_dict().items():
        assert torch.equal(made.module.state_dict()[name], tensor), name


def test_layers_changed_by_hand_are_named():
    model, _ = conditional()
    edgedm.quantize(model, "lsq")
    model.conv_out = nn.Conv2d(32, 4, 1)
    with pytest.raises(InvalidModelError, match="conv_out"):
        from_module(model, DDIMScheduler(), condition_tokens=5)


def test_a_module_whose_training_went_astray_is_refused():
    model, _ = conditional()
    model.conv_in.bias.data[1] = torch.nan
    with pytest.raises(InvalidModelError, match=r"conv_in.bias.*finite"):
        from_module(model, DDIMScheduler(), condition_tokens=5)


def test_a_module_that_is_none_of_diffusers_is_refused():
    with pytest.raises(UnsupportedError, match=r"a model of diffusers.*Sequential"):
        from_module(nn.Sequential(), DDIMScheduler())


def test_what_a_config_needs_is_asked_for():
    torch.manual_seed(0)
    with pytest.raises(UnsupportedError, match="null_class"):
        from_module(UNet2DModel(**{**SMALL_UNET, "num_class_embeds": 11}), DDPMScheduler())
