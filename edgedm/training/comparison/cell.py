"""Train one row with one seed and measure it."""

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.atomic import atomic_file
from edgedm.diffusion import NoiseSchedule
from edgedm.models import Checkpoint
from edgedm.models.denoiser import Denoiser
from edgedm.quant.api import method_options
from edgedm.training.comparison.measures import FIXED, Judge, dilation_figures
from edgedm.training.comparison.rows import STEPS, Row, digest, samples
from edgedm.training.comparison.watch import Watch
from edgedm.training.efficientdm import changed_codes, weight_codes
from edgedm.training.run import make_student, run_method

POINTS = 6  # evaluations of a traced run, besides the last
QUICK = (250, 25)  # images and DDIM steps of an evaluation on the way


def run_cell(row: Row, seed: int, scale: float, base: Checkpoint, base_digest: str, folder: Path) -> dict[str, Any]:
    """Train and measure a cell in `folder`, which is emptied first; return its figures.

    Memory and seconds are those of training alone: calibration and recipe are in, figures are not.
    """
    shutil.rmtree(folder, ignore_errors=True)
    configuration = row.configuration(seed, scale, base_digest)
    loop = row.loop_options(seed, scale)
    judge = Judge(base, STEPS)
    before = peak_rss()
    marks = {round(loop.iterations * i / POINTS) for i in range(1, POINTS)} if row.trace else set()
    watch = Watch(marks, lambda student: _quick(judge, student, scale) if row.trace else {})
    codes: dict[str, Tensor] = {}
    if row.code_changes:
        watch.start = lambda student: codes.update(weight_codes(student))
    with watch:
        trained = run_method(base, row.method, folder, policy=row.policy, options=dict(row.options), loop=loop)
        times = {"seconds": watch.seconds(), "cpu_seconds": watch.cpu_seconds()}
        rss = peak_rss()
    figures: dict[str, Any] = {
        "row": row.key,
        "seed": seed,
        "digest": digest(configuration),
        "configuration": configuration,
        **times,
        "memory": watch.memory,
        "peak_rss": rss,
        "rss_before": before,
        "curves": trained.curves,
        "recipe": {name: value for name, value in trained.figures.items() if not name.startswith("peak")},
        **judge.eps(trained.checkpoint.module),
        **judge.quality(trained.checkpoint.module, samples(scale), seed=FIXED),
    }
    if row.trace:
        watch.note(loop.iterations, trained.denoiser.eval())
        watch.points[-1].update(times)
        figures["trace"] = watch.points
    if row.code_changes:
        figures["changed_codes"] = changed_codes(codes, weight_codes(trained.denoiser))
    if row.dilation:
        figures["dilation"] = _dilation(row, base)
    shutil.rmtree(folder, ignore_errors=True)
    return figures


def save_cell(figures: dict[str, Any], path: Path) -> None:
    """Write a cell's figures, whole or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(figures, indent=1) + "\n")


def peak_rss() -> int:
    """Return the largest resident size of this process so far in bytes, 0 where the system doesn't tell."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _quick(judge: Judge, student: Denoiser, scale: float) -> dict[str, float]:
    images, steps = QUICK
    module = copy.deepcopy(student).cpu()
    found = judge.quality(module, min(images, samples(scale)), steps, FIXED)
    return {**judge.eps(module), "frechet": found["frechet"]}


def _dilation(row: Row, base: Checkpoint) -> dict[str, Any]:
    schedule = NoiseSchedule.from_config(base.config.noise_schedule)
    unet = base.module.unet
    student = make_student(unet, schedule, row.method, row.policy, method_options(row.method, row.options))
    generator = torch.Generator().manual_seed(FIXED)
    x = torch.randn((16, *base.config.image_shape), generator=generator)
    timesteps, labels = torch.arange(16) * 60, torch.arange(16) % 10

    def forward(model: nn.Module) -> Tensor:
        output: Tensor = model(x, timesteps, class_labels=labels, return_dict=False)[0]
        return output

    return dilation_figures(unet, student.unet, forward)
