"""Pipelines of diffusers on a bundle: the steps are those of the model, and every trajectory has its own state."""

import numpy as np
import pytest
import tiny_latent
import tiny_model
import torch
from architectures import SMALL_UNET
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

from edgedm.diffusion import normals
from edgedm.errors import UnsupportedError
from edgedm.integrations.diffusers import BundleUNet
from edgedm.runtime import LocalRunner

SAME_FLOATS = 2e-5  # as in tests/runtime/test_local_runner.py
DRIFT = 1e-3  # of a run of 10 steps: the last bit of diffusers' square root moves no sign here, but every pixel
LOW_BIT = 0.1  # relative error of a step in which a few signs fall on the other side, as edgedm.lower.golden allows


@pytest.fixture(scope="module")
def bundle():
    return tiny_model.folder() / "model.bundle"


@pytest.fixture
def unet(bundle):
    with BundleUNet(bundle) as made:
        yield made


@pytest.fixture(scope="module")
def reference():
    return tiny_model.Reference(tiny_model.folder() / "deploy.onnx")


def _batch(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32))


def test_each_image_of_a_batch_carries_its_own_state(unet, reference):
    labels, states = [0, 1, tiny_model.NULL], [None] * 3
    for timestep in (900, 500, 60):
        x = _batch(3, timestep)
        got = unet(x, timestep, class_labels=torch.tensor(labels)).sample
        for i, label in enumerate(labels):
            want, states[i] = reference.step(timestep, x[i].numpy(), label, states[i])
            np.testing.assert_allclose(got[i].numpy(), want, atol=SAME_FLOATS, rtol=0)


def test_a_timestep_that_rises_begins_a_trajectory(unet):
    x = _batch(1)
    first = unet(x, 900, return_dict=False)[0]
    carried = unet(x, 500).sample
    assert torch.equal(unet(x, torch.tensor(900)).sample, first)
    assert torch.equal(unet(x, 500).sample, carried)
    unet.reset()
    assert not torch.equal(unet(x, 500).sample, carried)
    assert unet(x.double(), torch.tensor([60.0])).sample.dtype == torch.float64


def test_a_timestep_that_is_repeated_is_refused_where_state_is_carried(unet, monkeypatch):
    x = _batch(1)
    unet(x, 900)
    with pytest.raises(UnsupportedError, match="label"):
        unet(x, 500, class_labels=torch.tensor([99]))
    second = unet(x, 500).sample  # what was refused was no step
    with pytest.raises(UnsupportedError, match=r"timestep 500 again.*reset\(\)"):
        unet(x, 500)
    unet.reset()
    assert not torch.equal(unet(x, 500).sample, second)
    monkeypatch.setattr(type(unet._manifest), "states", lambda manifest: [])
    unet(x, 100)
    unet(x, 100)


@pytest.mark.parametrize(
    ("kind", "scheduler", "sampler"),
    [
        (DDIMPipeline, DDIMScheduler, "ddim"),
        (DDPMPipeline, DDPMScheduler, "ddpm"),
        (DDPMPipeline, DPMSolverMultistepScheduler, "dpm-solver++"),
    ],
)
def test_a_pipeline_draws_what_the_bundle_draws(bundle, unet, monkeypatch, kind, scheduler, sampler):
    draws = iter(range(100))

    def noise(shape, *_, **__):
        return torch.from_numpy(normals(3, 0, next(draws), 64).reshape(shape))

    module = {"ddim": "ddim.pipeline_ddim", "ddpm": "ddpm.pipeline_ddpm", "dpm-solver++": "ddpm.pipeline_ddpm"}[sampler]
    monkeypatch.setattr(f"diffusers.pipelines.{module}.randn_tensor", noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noise)
    pipeline = kind(unet, scheduler.from_config(unet.noise_schedule))
    if kind is DDPMPipeline:
        pipeline.scheduler = scheduler.from_config(unet.noise_schedule)  # the pipeline's constructor wants DDPM
    pipeline.set_progress_bar_config(disable=True)
    for _ in range(2):  # the second run is a trajectory of its own
        draws = iter(range(100))
        got = pipeline(num_inference_steps=10, output_type="np").images[0, :, :, 0] * 2 - 1
        with LocalRunner(bundle) as runner:
            runner.prepare(10, sampler)
            want = np.clip(runner.sample(1, seed=3)[0, 0], -1, 1)
        np.testing.assert_allclose(got, want, atol=DRIFT, rtol=0)


def test_what_a_pipeline_asks_of_a_unet_is_there(unet):
    assert (unet.config.in_channels, unet.config.sample_size, unet.in_channels) == (1, 8, 1)
    assert unet.config.num_class_embeds == tiny_model.CLASSES
    assert unet.config.get("act_fn") == "silu"
    assert unet.dtype == torch.float32
    assert unet.to("cpu").eval().device.type == "cpu"
    assert unet.noise_schedule["timestep_spacing"] == "trailing"


def test_a_pipeline_that_was_loaded_takes_a_bundle_for_its_unet(unet, tmp_path):
    scheduler = DDIMScheduler.from_config(unet.noise_schedule)
    DDIMPipeline(UNet2DModel(**SMALL_UNET), scheduler).save_pretrained(tmp_path)
    pipeline = DDIMPipeline.from_pretrained(tmp_path)
    pipeline.unet = unet
    drawn, again = (
        each(num_inference_steps=3, generator=torch.manual_seed(0), output_type="np").images
        for each in (pipeline, DDIMPipeline(unet, scheduler))
    )
    assert np.array_equal(drawn, again)


def test_a_closed_one_says_so(bundle):
    unet = BundleUNet(bundle)
    unet(_batch(1), 900)
    unet.close()
    with pytest.raises(UnsupportedError, match=r"model\.bundle: the runner is closed"):
        unet(_batch(1), 900)


def test_a_scheduler_has_no_default_of_its_own_where_the_checkpoint_leaves_something_open():
    """The tiny latent model's config names no spacing, of which diffusers' schedulers have different ones."""
    bundle = tiny_latent.folder() / "model.bundle"
    with BundleUNet(bundle) as unet, LocalRunner(bundle) as runner:
        chosen = runner.prepare(7, "dpm-solver++", condition=tiny_latent.condition(3))
        scheduler = DPMSolverMultistepScheduler.from_config(unet.noise_schedule)
        scheduler.set_timesteps(7)
        assert scheduler.timesteps.tolist() == list(chosen)


def test_what_a_bundle_cannot_do_is_refused(unet):
    x = _batch(2)
    for timestep in (500.5, torch.tensor([500, 400]), float("nan"), torch.tensor(float("inf")), torch.tensor([])):
        with pytest.raises(UnsupportedError, match="timestep"):
            unet(x, timestep)
    with pytest.raises(UnsupportedError, match="added_cond_kwargs"):
        unet(x, 500, added_cond_kwargs={"text_embeds": x})
    with pytest.raises(UnsupportedError, match="condition: this model has no text condition"):
        unet(x, 500, torch.zeros(2, 4, 8))
    for labels in (torch.tensor(1), torch.tensor([1]), torch.tensor([1, 0, 1])):
        with pytest.raises(UnsupportedError, match="class_labels: expected one for each of 2 images"):
            unet(x, 500, class_labels=labels)
    for labels in (torch.tensor([1.5, 1.0]), torch.tensor([float("nan"), 1.0])):
        with pytest.raises(UnsupportedError, match="class_labels: expected whole numbers"):
            unet(x, 500, class_labels=labels)
    with pytest.raises(UnsupportedError, match="expected shape"):
        unet(torch.zeros(1, 1, 9, 9), 500)
    for nothing in (torch.zeros(0, 1, 8, 8), torch.tensor(1.0)):
        with pytest.raises(UnsupportedError, match="sample: expected one or more images"):
            unet(nothing, 500)


def test_each_image_of_a_batch_follows_its_own_text():
    texts = np.stack([tiny_latent.condition(3), tiny_latent.condition(4)])
    latents = np.random.default_rng(0).standard_normal((2, *tiny_latent.LATENT)).astype(np.float32)
    reference = tiny_latent.Reference(tiny_latent.folder() / "deploy.onnx")
    with BundleUNet(tiny_latent.folder() / "model.bundle") as unet:
        assert unet.config.cross_attention_dim == tiny_latent.TOKENS[1]
        got = unet(torch.from_numpy(latents), 500, encoder_hidden_states=torch.from_numpy(texts)).sample
        for i in range(2):
            want = reference.step(500, latents[i], texts[i])
            np.testing.assert_allclose(got[i].numpy(), want, atol=SAME_FLOATS, rtol=0)
        for shape in ((1, *tiny_latent.TOKENS), (3, *tiny_latent.TOKENS)):
            with pytest.raises(UnsupportedError, match="encoder_hidden_states: expected one for each of 2 images"):
                unet(torch.from_numpy(latents), 500, torch.zeros(shape))
        with pytest.raises(UnsupportedError, match=r"condition: expected shape \(3, 4\), got \(5, 4\)"):
            unet(torch.from_numpy(latents), 500, torch.zeros(2, 5, 4))
        with pytest.raises(UnsupportedError, match="cannot draw without one"):
            unet(torch.from_numpy(latents), 500)


@pytest.mark.slow
def test_a_pipeline_on_a_real_bundle_asks_what_torch_would_answer(digits_bundle):
    """Every step of DDIMPipeline on the 1-bit digits, held against PyTorch on the same x with its own state."""
    from edgedm.models import load
    from edgedm.models.sample import Predictor

    checkpoint = load("zoo:digits-bidm-w1a1")
    errors: list[float] = []
    with BundleUNet(digits_bundle, threads=2) as unet:
        size = unet.config.sample_size
        torch_unet = Predictor(checkpoint.module.eval(), int(checkpoint.config.null_class or 0), size, size)

        class Watched(BundleUNet):
            def __init__(self) -> None:
                self.__dict__.update(unet.__dict__)

            def __call__(self, sample, timestep, *arguments, **options):
                result = unet(sample, timestep, *arguments, **options)
                want = torch_unet(sample[0].numpy(), int(timestep), 0)
                got = (result.sample if hasattr(result, "sample") else result[0])[0].numpy()
                errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want)))
                return result

        pipeline = DDIMPipeline(Watched(), DDIMScheduler.from_config(unet.noise_schedule))
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(num_inference_steps=10, generator=torch.manual_seed(0), output_type="np").images
    assert images.shape == (1, size, size, 1)
    assert len(errors) == 10
    assert max(errors) < LOW_BIT
