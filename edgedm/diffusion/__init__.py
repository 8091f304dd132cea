"""Noise schedules, samplers and noise in numpy: the reference, bit for bit, of the generated C sampler."""

from edgedm.diffusion.noise_schedule import NoiseSchedule
from edgedm.diffusion.philox import normals
from edgedm.diffusion.sampler import SAMPLERS, StepCoefficients, advance, guide, sample, step_coefficients

__all__ = [
    "NoiseSchedule",
    "SAMPLERS",
    "StepCoefficients",
    "step_coefficients",
    "advance",
    "guide",
    "normals",
    "sample",
]
