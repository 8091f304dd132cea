"""The numpy noise schedules and samplers against diffusers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

from edgedm.diffusion import NoiseSchedule, advance, sample, step_coefficients, trajectory
from edgedm.errors import InvalidModelError, UnsupportedError

STEP_ABSOLUTE = 1e-5  # a few float32 roundings of values up to about 4

SCHEDULES = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
    {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace", "clip_sample": False, "set_alpha_to_one": False},
    {"prediction_type": "v_prediction", "clip_sample_range": 2.0, "timestep_spacing": "trailing"},
    {"prediction_type": "sample", "beta_end": 0.01},
]


def _torch_config(config: dict, scheduler: str) -> dict:
    return {k: v for k, v in config.items() if not (scheduler == "ddpm" and k == "set_alpha_to_one")}


@pytest.mark.parametrize("count", [1000, 500, 37, 2, 1])
@pytest.mark.parametrize("config", SCHEDULES)
def test_betas_and_alphas_cumprod_are_those_of_diffusers_bit_for_bit(config, count):
    config = {**config, "num_train_timesteps": count}
    ours, theirs = NoiseSchedule.from_config(config), DDIMScheduler(**config)
    assert ours.betas().tobytes() == theirs.betas.numpy().tobytes()
    assert ours.alphas_cumprod().tolist() == theirs.alphas_cumprod.tolist()


def test_the_config_of_a_scheduler_in_memory_is_one():
    scheduler = DDIMScheduler(num_train_timesteps=500)
    assert "_use_default_values" in scheduler.config
    assert NoiseSchedule.from_config(dict(scheduler.config)).num_train_timesteps == 500


def test_what_is_left_of_another_schedulers_config_is_let_through():
    """Stable Diffusion ships a PNDM scheduler; a DDIM scheduler made of it keeps its keys."""
    config = dict(DDIMScheduler.from_config(PNDMScheduler(skip_prk_steps=True).config).config)
    assert "skip_prk_steps" in config
    assert NoiseSchedule.from_config({**config, "timestep_values": None}).steps_offset == 0


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("train", [1000, 100, 37])
def test_timesteps_are_those_of_diffusers(spacing, train):
    schedule = NoiseSchedule(timestep_spacing=spacing, num_train_timesteps=train)
    theirs = DDPMScheduler(timestep_spacing=spacing, num_train_timesteps=train)
    for steps in range(1, train + 1):
        theirs.set_timesteps(steps)
        if len(theirs.timesteps) == steps:  # numpy.arange may give one too many when spacing is "trailing"
            assert schedule.timesteps(steps).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("config", SCHEDULES)
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)])
def test_every_step_is_that_of_diffusers(config, sampler, eta):
    schedule = NoiseSchedule.from_config(config)
    kind = DDIMScheduler if sampler == "ddim" else DDPMScheduler
    theirs = kind(**_torch_config(config, sampler))
    steps = 13
    theirs.set_timesteps(steps)
    rng = np.random.default_rng(0)
    noises = rng.standard_normal((steps, 1, 2, 4, 4)).astype(np.float32)
    clip = schedule.clip_sample_range if schedule.clip_sample else None
    rows = step_coefficients(schedule, steps, sampler, eta)
    x = rng.standard_normal((1, 2, 4, 4)).astype(np.float32)
    for step, timestep in enumerate(theirs.timesteps):
        alpha = schedule.alphas_cumprod()[int(timestep)]
        clean = np.clip(rng.standard_normal(x.shape), -1, 1)
        x = (np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * rng.standard_normal(x.shape)).astype(np.float32)
        output = rng.standard_normal(x.shape).astype(np.float32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor",
                lambda *_, noise=noises[step], **__: torch.from_numpy(noise),
            )
            extra = {"eta": eta, "variance_noise": torch.from_numpy(noises[step])} if sampler == "ddim" else {}
            want = theirs.step(torch.from_numpy(output), int(timestep), torch.from_numpy(x), **extra).prev_sample
        got = advance(rows[step], clip, x, output, noises[step])
        np.testing.assert_allclose(got, want.numpy(), atol=STEP_ABSOLUTE * max(1.0, float(want.abs().max())), rtol=0)


def test_a_whole_ddim_run_is_that_of_diffusers():
    schedule = NoiseSchedule()
    theirs = DDIMScheduler()
    theirs.set_timesteps(50)
    outputs = np.random.default_rng(1).standard_normal((50, 1, 8, 8)).astype(np.float32)
    first, *_ = trajectory(lambda x, t, i: outputs[i], schedule, (1, 8, 8), 50, seed=3)
    want = torch.from_numpy(first)
    for step, timestep in enumerate(theirs.timesteps):
        want = theirs.step(torch.from_numpy(outputs[step]), timestep, want).prev_sample
    got = sample(lambda x, t, i: outputs[i], schedule, (1, 8, 8), 50, seed=3)
    np.testing.assert_allclose(got, want.numpy(), atol=STEP_ABSOLUTE, rtol=0)


def test_guidance_of_one_never_asks_for_the_unconditional_output():
    def refuse(x, t, i):
        raise AssertionError

    kept = sample(lambda x, t, i: x, NoiseSchedule(), (1, 2, 2), 2, predict_unconditional=refuse, guidance=1.0)
    assert kept.shape == (1, 2, 2)


def test_unsupported_configs_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="thresholding"):
        NoiseSchedule.from_config({"thresholding": True})
    for value in (float("inf"), 1e300, float("nan"), 0.0, 1e-46):
        with pytest.raises(InvalidModelError, match="clip_sample_range"):
            NoiseSchedule.from_config({"clip_sample_range": value})
    with pytest.raises(InvalidModelError, match="surprise"):
        NoiseSchedule.from_config({"surprise": 1})
    with pytest.raises(UnsupportedError, match=r"1\.\.1000"):
        NoiseSchedule().timesteps(1001)
    with pytest.raises(UnsupportedError, match="leave"):
        NoiseSchedule(steps_offset=1).timesteps(1000)


@pytest.mark.parametrize("sampler", ["ddpm", "dpm-solver++"])
def test_eta_is_of_ddim_alone(sampler):
    with pytest.raises(UnsupportedError, match=r"eta: expected 0 where the sampler is not ddim, got 0\.5"):
        step_coefficients(NoiseSchedule(), 10, sampler, eta=0.5)
