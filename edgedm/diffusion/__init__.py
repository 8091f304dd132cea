"""Noise schedules, samplers and noise in numpy: the reference, bit for bit, of the generated C sampler."""

from edgedm.diffusion.noise_schedule import SAMPLERS, NoiseSchedule
from edgedm.diffusion.philox import normals
from edgedm.diffusion.sampler import add_noise, first_step, guide, sample, trajectory
from edgedm.diffusion.steps import StepCoefficients, advance, estimate, step_coefficients

__all__ = [
    "NoiseSchedule",
    "SAMPLERS",
    "StepCoefficients",
    "step_coefficients",
    "advance",
    "estimate",
    "guide",
    "add_noise",
    "first_step",
    "normals",
    "sample",
    "trajectory",
]
