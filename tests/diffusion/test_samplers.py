"""Every option of the samplers against diffusers, given the same recorded outputs of a model.

Where the square root, logarithm and exponential round to nearest, every x is that of diffusers, bit for bit. PyTorch's
own are off by a last bit on some machines, and a run of given outputs amplifies that: x at the noisy end is divided by
an alpha of 0.006 or less on its way. So diffusers as it is, and we, are held against the same formulas in float64 too:
our distance from them is at most 1e-5 of x, or twice that of diffusers where its own is larger.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from edgedm.diffusion import NoiseSchedule, add_noise, advance, estimate, first_step, step_coefficients
from edgedm.diffusion.logarithm import natural_exp, natural_log
from edgedm.errors import InvalidModelError, UnsupportedError

ABSOLUTE, AS_DIFFUSERS = 1e-5, 2.0
SHAPE = (1, 2, 4, 4)
SPACINGS, PREDICTIONS = ("leading", "trailing", "linspace"), ("epsilon", "v_prediction", "sample")
DDIM_ONLY, UNKNOWN_TO_SOLVER = ("set_alpha_to_one",), ("set_alpha_to_one", "clip_sample", "clip_sample_range")


class Recorded:
    """What a model that knows the image, but not well, answers along diffusers' own run; and every run of it.

    `start` is the first step that is executed. The run begins there with noise, or `at_image` with an image under it.
    """

    def __init__(
        self, config: dict, sampler: str, steps: int, eta: float = 0.0, start: int = 0, at_image: bool = False
    ) -> None:
        self.schedule, self.sampler, self.steps, self.eta, self.start = (
            NoiseSchedule.from_config(config), sampler, steps, eta, start,
        )  # fmt: skip
        self.config = config
        theirs = self.scheduler()
        self.timesteps = [int(t) for t in theirs.timesteps]
        self.bars = theirs.alphas_cumprod.double().numpy()
        rng = np.random.default_rng(steps)
        self.noises = rng.standard_normal((steps, *SHAPE)).astype(np.float32)
        self.noise = rng.standard_normal(SHAPE).astype(np.float32)
        clean = rng.uniform(-1, 1, SHAPE)
        self.image = clean.astype(np.float32) if at_image else None
        self.outputs: list[np.ndarray] = []
        self.diffusers = [self._first(theirs)]
        for step in range(start, steps):
            x, bar = self.diffusers[-1], self.bars[self.timesteps[step]]
            self.outputs.append(self._answer(x, bar, clean + 0.3 * rng.standard_normal(SHAPE)))
            self.diffusers.append(self._following(theirs, step, x))

    def scheduler(self):
        kind = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm-solver++": DPMSolverMultistepScheduler}[self.sampler]
        scheduler = kind(**_known(self.config, self.sampler))
        scheduler.set_timesteps(self.steps)
        if self.start:  # diffusers' pipelines say where they begin; only the solver listens
            getattr(scheduler, "set_begin_index", lambda _: None)(self.start)
        return scheduler

    def _first(self, theirs) -> np.ndarray:
        if self.image is None:
            return self.noise
        image, noise = torch.from_numpy(self.image), torch.from_numpy(self.noise)
        return theirs.add_noise(image, noise, torch.tensor([self.timesteps[self.start]])).numpy()

    def _answer(self, x: np.ndarray, bar: float, guess: np.ndarray) -> np.ndarray:
        level, deviation = math.sqrt(bar), math.sqrt(1 - bar)
        eps = (x - level * guess) / deviation
        answers = {"epsilon": eps, "sample": guess, "v_prediction": level * eps - deviation * guess}
        return answers[self.schedule.prediction_type].astype(np.float32)

    def _following(self, theirs, step: int, x: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(self.outputs[step - self.start]), self.timesteps[step], torch.from_numpy(x)
        noise = torch.from_numpy(self.noises[step])
        if self.sampler == "ddim":
            return theirs.step(*given, eta=self.eta, variance_noise=noise).prev_sample.numpy()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise)
            return theirs.step(*given).prev_sample.numpy()

    def rounded(self) -> list[np.ndarray]:
        """Diffusers' run of the same outputs with functions that round to nearest."""
        with _rounding_to_nearest():
            theirs = self.scheduler()
            xs = [self._first(theirs)]
            for step in range(self.start, self.steps):
                xs.append(self._following(theirs, step, xs[-1]))
        return xs

    def ours(self) -> list[np.ndarray]:
        rows = step_coefficients(self.schedule, self.steps, self.sampler, self.eta, self.start)
        x, begin = self.noise, self.timesteps[self.start]
        if self.image is not None:
            x = add_noise(self.schedule, begin, self.image, x, self.sampler)
        clip, before, xs = self.schedule.clip(self.sampler), None, [x]
        for step, output in enumerate(self.outputs, self.start):
            row, noise = rows[step], self.noises[step] if rows[step].to_noise else None
            x0 = estimate(row, clip, xs[-1], output)
            xs.append(advance(row, clip, xs[-1], output, noise, before))
            before = x0
        return xs

    def exact(self) -> list[np.ndarray]:
        """The papers' formulas in float64, with exp and log."""
        limit = self.schedule.clip(self.sampler) or math.inf
        x, bar = self.noise.astype(np.float64), self.bars[self.timesteps[self.start]]
        if self.image is not None:
            x = math.sqrt(bar) * self.image + math.sqrt(1 - bar) * x
        before, xs = None, [x]
        for step, output in enumerate(self.outputs, self.start):
            x, now = xs[-1], self.bars[self.timesteps[step]]
            level, deviation = math.sqrt(now), math.sqrt(1 - now)
            if self.schedule.prediction_type == "epsilon":
                x0, eps = (x - deviation * output) / level, output
            elif self.schedule.prediction_type == "sample":
                x0, eps = output, (x - level * output) / deviation
            else:
                x0, eps = level * x - deviation * output, deviation * x + level * output
            x0 = np.clip(x0, -limit, limit)
            following = {"ddim": self._ddim, "ddpm": self._ddpm, "dpm-solver++": self._solver}[self.sampler]
            xs.append(following(step, x, x0, eps, before))
            before = x0
        return xs

    def _ddim(self, step: int, x: np.ndarray, x0: np.ndarray, eps: np.ndarray, _before: object) -> np.ndarray:
        previous = self.timesteps[step] - self.schedule.num_train_timesteps // self.steps
        now, last = self.bars[self.timesteps[step]], 1.0 if self.schedule.set_alpha_to_one else self.bars[0]
        bar = self.bars[previous] if previous >= 0 else last
        deviation = self.eta * math.sqrt(max((1 - bar) / (1 - now) * (1 - now / bar), 0))
        direction = math.sqrt(max(1 - bar - deviation**2, 0))
        return math.sqrt(bar) * x0 + direction * eps + deviation * self.noises[step]

    def _ddpm(self, step: int, x: np.ndarray, x0: np.ndarray, _eps: object, _before: object) -> np.ndarray:
        now = self.bars[self.timesteps[step]]
        bar = self.bars[self.timesteps[step + 1]] if step + 1 < self.steps else 1.0
        beta = 1 - now / bar
        small = max((1 - bar) / (1 - now) * beta, 1e-20)
        variance = beta if self.schedule.variance_type == "fixed_large" else small
        mean = math.sqrt(bar) * beta / (1 - now) * x0 + math.sqrt(now / bar) * (1 - bar) / (1 - now) * x
        return mean + (math.sqrt(variance) * self.noises[step] if self.timesteps[step] > 0 else 0)

    def _solver(self, step: int, x: np.ndarray, x0: np.ndarray, _eps: object, before: np.ndarray | None) -> np.ndarray:
        def at(bar: float) -> tuple[float, float, float]:
            alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
            return alpha, sigma, math.log(alpha / sigma) if sigma else math.inf

        it, last = self.schedule, step + 1 == self.steps
        end = 1.0 if it.final_sigmas_type == "zero" else self.bars[0]
        alpha, sigma, target = at(end if last else self.bars[self.timesteps[step + 1]])
        _, sigma_now, now = at(self.bars[self.timesteps[step]])
        h = target - now
        following = sigma / sigma_now * x - alpha * math.expm1(-h) * x0
        few = it.lower_order_final and self.steps < 15
        if it.solver_order == 1 or before is None or (last and (it.euler_at_final or few or sigma == 0)):
            return following
        slope = (x0 - before) * h / (now - at(self.bars[self.timesteps[step - 1]])[2])
        if it.solver_type == "heun":
            return following + alpha * (math.expm1(-h) / h + 1) * slope
        return following - 0.5 * alpha * math.expm1(-h) * slope

    def check(self) -> None:
        schedule, exact, ours = self.schedule, self.exact(), self.ours()
        assert schedule.timesteps(self.steps, self.sampler).tolist() == self.timesteps
        assert all(np.array_equal(a, b) for a, b in zip(ours, self.rounded(), strict=True))
        scale = max(1.0, max(float(np.abs(x).max()) for x in exact))
        gaps, theirs = ([a - b for a, b in zip(run, exact, strict=True)] for run in (ours, self.diffusers))
        if max(float(np.abs(gap).max()) for gap in gaps) > ABSOLUTE * scale:
            assert _size(gaps) <= AS_DIFFUSERS * _size(theirs)


def _size(gaps: list[np.ndarray]) -> float:
    """The worst step's root mean square: one number of 32 is left to chance."""
    return max(float(np.sqrt((gap**2).mean())) for gap in gaps)


def _known(config: dict, sampler: str) -> dict:
    unknown = {"ddim": ("variance_type",), "ddpm": DDIM_ONLY, "dpm-solver++": UNKNOWN_TO_SOLVER}[sampler]
    return {name: value for name, value in config.items() if name not in unknown}


@contextlib.contextmanager
def _rounding_to_nearest() -> Iterator[None]:
    """PyTorch with a float32 square root, logarithm and exponential that are float64's, rounded."""

    def rounded(function: np.ufunc) -> Callable[[torch.Tensor], torch.Tensor]:
        def compute(value: torch.Tensor) -> torch.Tensor:
            with np.errstate(divide="ignore"):  # log(0) of the solver's end
                exact = function(value.double().numpy())
            return torch.from_numpy(np.asarray(exact)).to(value.dtype)

        return compute

    power, root = torch.Tensor.__pow__, rounded(np.sqrt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__pow__", lambda value, to: root(value) if to == 0.5 else power(value, to))
        patch.setattr(torch, "log", rounded(np.log))
        patch.setattr(torch, "exp", rounded(np.exp))
        yield


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.6), ("ddim", 1.0), ("ddpm", 0.0)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_and_ddpm_with_every_option(sampler, eta, prediction, spacing):
    for offset, clip, to_one, steps in itertools.product((0, 1, 3), (False, 0.8, 1.0), (False, True), (1, 11)):
        config = {
            "prediction_type": prediction,
            "timestep_spacing": spacing,
            "steps_offset": offset,
            "clip_sample": bool(clip),
            "clip_sample_range": clip or 1.0,
            "set_alpha_to_one": to_one,
            "variance_type": "fixed_small" if to_one else "fixed_large",
        }
        Recorded(config, sampler, steps, eta).check()


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_dpm_solver_with_every_option(final, prediction, spacing):
    choices = itertools.product((0, 1), ("midpoint", "heun"), (True, False), (True, False), (5, 17), (1, 2))
    for offset, kind, lower, euler, steps, order in choices:
        config = {
            "prediction_type": prediction,
            "timestep_spacing": spacing,
            "steps_offset": offset,
            "solver_type": kind,
            "solver_order": order,
            "lower_order_final": lower,
            "euler_at_final": euler,
            "final_sigmas_type": final,
        }
        Recorded(config, "dpm-solver++", steps).check()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_runs_over_hundreds_of_timesteps(sampler, prediction, betas):
    config = {"prediction_type": prediction, "beta_schedule": betas, "clip_sample": prediction != "sample"}
    for spacing, steps in (("leading", 333), ("trailing", 250)):
        Recorded({**config, "timestep_spacing": spacing}, sampler, steps, 0.5 * (sampler == "ddim")).check()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_runs_over_all_timesteps(sampler, prediction, spacing):
    """With each final step. DPM-Solver++ leaves timestep 0 to its end, unless it spaces backwards from the other."""
    steps = 999 if sampler == "dpm-solver++" and spacing != "trailing" else 1000
    finals = ({"final_sigmas_type": each} for each in ("zero", "sigma_min"))
    ends = finals if sampler == "dpm-solver++" else ({"set_alpha_to_one": each} for each in (True, False))
    for number, end in enumerate(ends):
        config = {"prediction_type": prediction, "timestep_spacing": spacing, "clip_sample": number == 0, **end}
        Recorded(config, sampler, steps, 0.5 * (number == 1 and sampler == "ddim")).check()


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++"])
def test_runs_that_start_late(sampler, strength):
    Recorded({"timestep_spacing": "leading"}, sampler, 20, start=first_step(20, strength)).check()


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.02])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++"])
def test_runs_that_begin_at_an_image(sampler, betas, strength):
    for spacing, steps in itertools.product(SPACINGS, (50, 200)):
        config = {"timestep_spacing": spacing, "beta_schedule": betas, "clip_sample": sampler == "ddim"}
        Recorded(config, sampler, steps, start=first_step(steps, strength), at_image=True).check()


def test_a_step_of_no_length_is_of_first_order():
    """Diffusers divides 0 by 0 here."""
    config = {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing", "solver_type": "heun"}
    *_, row = step_coefficients(NoiseSchedule.from_config(config), 1000, "dpm-solver++")
    assert (row.to_x0, row.to_sample, row.to_trend) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("clipped", [-5.1, -2.0, -math.inf])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_the_solver_leaves_out_timesteps_below_lambda_min(clipped, spacing):
    config = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": clipped, "timestep_spacing": spacing}
    Recorded(config, "dpm-solver++", 12).check()


def test_a_whole_config_of_diffusers_is_read():
    for sampler in ("ddim", "ddpm", "dpm-solver++"):
        config = dict(Recorded({}, sampler, 1).scheduler().config)
        NoiseSchedule.from_config({name: value for name, value in config.items() if name != "_use_default_values"})
    assert NoiseSchedule.from_config({"variance_type": "fixed_small_log"}) == NoiseSchedule()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("algorithm_type", "sde-dpmsolver++"),
        ("algorithm_type", "dpmsolver"),
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("use_flow_sigmas", True),
        ("use_lu_lambdas", True),
        ("solver_order", 3),
        ("variance_type", "learned_range"),
        ("variance_type", "fixed_large_log"),
        ("prediction_type", "flow_prediction"),
        ("final_sigmas_type", "two"),
        ("beta_schedule", "sigmoid"),
        ("timestep_spacing", "log"),
        ("thresholding", True),
        ("rescale_betas_zero_snr", True),
        ("trained_betas", [0.1]),
    ],
)
def test_an_option_that_is_not_there_is_refused_by_name(option, value):
    with pytest.raises((UnsupportedError, InvalidModelError), match=option):
        NoiseSchedule.from_config({option: value})


def test_a_run_that_would_repeat_timesteps_is_refused():
    with pytest.raises(UnsupportedError, match="repeat"):
        NoiseSchedule().timesteps(1000, "dpm-solver++")


def test_the_logarithm_is_exact_to_a_unit_in_the_last_place():
    values = np.concatenate([np.logspace(-12, 12, 5001), 1 + np.logspace(-15, -1, 500), 1 - np.logspace(-15, -1, 500)])
    for value in values.tolist():
        assert natural_log(value) == pytest.approx(math.log(value), rel=4e-16, abs=1e-18)


def test_the_exponential_is_exact_far_beyond_float32():
    for value in np.concatenate([np.linspace(-40, 40, 4001), [0.0], -np.logspace(-15, 0, 500)]).tolist():
        assert natural_exp(value) == pytest.approx(math.exp(value), rel=1e-14)
