"""Full-precision files of latent-diffusion and ddim become the same function as the authors' network."""

import ddim_reference
import pytest
import torch
from authors_files import betas, call, inputs, lightning, moved
from openai_reference import Arch, float_layer, float_state, forward, modules

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.importers import import_checkpoint

CLOSE = 2e-4  # other orders of float32 sums in some thirty layers; outputs are about 1

ARCHES = {
    "two levels": Arch(),
    "three levels, two blocks": Arch(mult=(1, 2, 2), repeats=2, attention=(1, 2)),
    "attention at the top": Arch(attention=(0,)),
    "new attention order": Arch(order="new"),
    "resblock_updown": Arch(updown=True, attention=(0,)),
    "scale-shift": Arch(scale_shift=True, updown=True, attention=(0, 1)),
    "classes": Arch(classes=5),
}


def write(tmp_path, content, name="last.ckpt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def options(arch, **more):
    common = {"head_channels": arch.head_channels, "image_size": arch.image, "attention_order": arch.order}
    return common | ({"null_class": arch.classes - 1} if arch.classes else {}) | more


@pytest.mark.parametrize("arch", ARCHES.values(), ids=ARCHES)
def test_an_ldm_unet_is_the_authors_function(tmp_path, arch):
    state = float_state(modules(arch))
    path = write(tmp_path, lightning(state))
    checkpoint = import_checkpoint(path, "ldm", weights="raw", **options(arch)).checkpoint
    x, t = inputs(arch)
    labels = [torch.tensor([3])] if arch.classes else []
    expected = forward(state, arch, x, t, float_layer(state), labels=labels[0] if labels else None)
    assert expected.std() > 0.2
    torch.testing.assert_close(call(checkpoint, x, t, *labels)[0], expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("arch", [ddim_reference.Arch(), ddim_reference.Arch(mult=(1, 2, 2), repeats=2)])
def test_a_ddim_unet_is_the_authors_function(tmp_path, arch):
    state = float_state(ddim_reference.modules(arch))
    path = write(tmp_path, [{f"module.{name}": value for name, value in state.items()}, {}, 1, 2, moved(state)])
    x, t = inputs(arch)
    for weights, tensors in (("raw", state), ("ema", moved(state))):
        checkpoint = import_checkpoint(path, "ddim", weights=weights, image_size=arch.image).checkpoint
        expected = ddim_reference.forward(tensors, arch, x, t, float_layer(tensors))
        torch.testing.assert_close(call(checkpoint, x, t)[0], expected, atol=CLOSE, rtol=0)


def test_the_averaged_copy_is_taken_unless_the_raw_weights_are_asked_for(tmp_path):
    arch, state = Arch(), float_state(modules(Arch()))
    path = write(tmp_path, lightning(state, ema=moved(state)))
    x, t = inputs(arch)
    for choice, tensors in (({}, moved(state)), ({"weights": "ema"}, moved(state)), ({"weights": "raw"}, state)):
        checkpoint = import_checkpoint(path, "ldm", **options(arch), **choice).checkpoint
        expected = forward(tensors, arch, x, t, float_layer(tensors))
        torch.testing.assert_close(call(checkpoint, x, t)[0], expected, atol=CLOSE, rtol=0)


def test_without_an_averaged_copy_the_error_says_how_to_read_the_raw_weights(tmp_path):
    path = write(tmp_path, lightning(float_state(modules(Arch()))))
    with pytest.raises(InvalidModelError, match="weights=raw"):
        import_checkpoint(path, "ldm", **options(Arch()))


def test_the_noise_schedule_is_that_of_the_stored_betas(tmp_path):
    state = float_state(modules(Arch()))
    path = write(tmp_path, lightning(state))
    schedule = import_checkpoint(path, "ldm", weights="raw", **options(Arch())).checkpoint.config.noise_schedule
    assert schedule["beta_schedule"] == "scaled_linear"
    assert (schedule["beta_start"], schedule["beta_end"]) == (0.0015, 0.0195)
    path = write(tmp_path, lightning(state, betas=betas("linear")))
    schedule = import_checkpoint(path, "ldm", weights="raw", **options(Arch())).checkpoint.config.noise_schedule
    assert (schedule["beta_schedule"], schedule["beta_start"], schedule["beta_end"]) == ("linear", 1e-4, 2e-2)
    with pytest.raises(UnsupportedError, match="beta_end"):
        import_checkpoint(path, "ldm", weights="raw", beta_end=0.5, **options(Arch()))
    path = write(tmp_path, lightning(state, betas=torch.linspace(0.01, 0.2, 1000).sqrt().flip(0) ** 5))
    with pytest.raises(UnsupportedError, match="neither"):
        import_checkpoint(path, "ldm", weights="raw", **options(Arch()))


def test_heads_are_asked_for_and_must_fit_one_number_for_all_levels(tmp_path):
    arch = Arch(attention=(0, 1))
    path = write(tmp_path, lightning(float_state(modules(arch))))
    for given, named in (({}, "head_channels"), ({"heads": 2}, "Churches"), ({"head_channels": 24}, "divide")):
        with pytest.raises(UnsupportedError, match=named):
            import_checkpoint(path, "ldm", weights="raw", image_size=8, **given)


def test_eight_heads_at_one_width_are_a_width_of_heads(tmp_path):
    arch = Arch(head_channels=8)
    state = float_state(modules(arch))
    path = write(tmp_path, lightning(state))
    checkpoint = import_checkpoint(path, "ldm", weights="raw", image_size=8, heads=8).checkpoint
    x, t = inputs(arch)
    expected = forward(state, arch, x, t, float_layer(state))
    torch.testing.assert_close(call(checkpoint, x, t)[0], expected, atol=CLOSE, rtol=0)


def test_a_model_with_labels_needs_its_null_class(tmp_path):
    arch = Arch(classes=5)
    path = write(tmp_path, lightning(float_state(modules(arch))))
    with pytest.raises(UnsupportedError, match="null_class"):
        import_checkpoint(path, "ldm", weights="raw", head_channels=16, image_size=8)
