"""`edgedm sample` on a bundle: the generated runtime draws; numpy is all that is needed."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial

import click
import numpy as np

from edgedm import progress
from edgedm.conditions import read_conditions
from edgedm.diffusion import first_step
from edgedm.images import check_latent, read_start, write_images
from edgedm.outcome import Outcome
from edgedm.output import check_output
from edgedm.runtime.opening import open_runner
from edgedm.runtime.runner import Floats


def sample_bundle(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str] = "images.png",
    *,
    n: int = 16,
    steps: int | None = None,
    sampler: str | None = None,
    eta: float = 0.0,
    seed: int = 0,
    label: int | None = None,
    guidance: float = 1.0,
    condition: str | os.PathLike[str] | None = None,
    negative: str | os.PathLike[str] | None = None,
    latent: bool = False,
    start: str | os.PathLike[str] | None = None,
    strength: float = 0.5,
    threads: int = 1,
    variant: str | None = None,
) -> Outcome:
    """Draw `n` images and write them to `output`, the same bits as the bundle's own `bin/edgedm-sample`.

    `steps` and `sampler` are by default those that the bundle was compiled for.

    Raises InvalidModelError for an altered bundle, UnsupportedError for an option that the model cannot follow.
    """
    with open_runner(os.fspath(bundle), threads, variant=variant) as runner:
        started = time.perf_counter()
        manifest, name = runner.manifest, os.fspath(bundle)
        check_latent(name, manifest.decoded_shape is not None, latent, output)
        drawn = manifest.image_shape if latent else manifest.decoded_shape or manifest.image_shape
        check_output(output, drawn[0])
        texts = read_conditions(name, manifest.condition_shape, condition, negative)
        steps = manifest.schedule.steps if steps is None else steps
        sampler = manifest.schedule.sampler if sampler is None else sampler
        given = read_start(start, n, manifest.image_shape)
        executed = steps if given is None else steps - first_step(steps, strength)
        runner.prepare(steps, sampler, eta, label, guidance, condition=texts[0], negative=texts[1])
        prepared = time.perf_counter()
        images = _draw(partial(runner.sample, start=given, strength=strength), n, seed, n * executed)
        finished = time.perf_counter()
        if manifest.decoded_shape is not None and not latent:
            images = np.stack([runner.decode(each) for each in progress.track(images, "decoding")])
        decoded = time.perf_counter()
        details = {"shape": list(images.shape), "variant": runner.variant}
    path = write_images(os.fspath(output), images)
    figures = {
        "images": float(n),
        "seconds.prepare": prepared - started,
        "seconds.sample": finished - prepared,
        "ms.step": (finished - prepared) * 1e3 / (n * executed),
    }
    if manifest.decoded_shape is not None:
        figures["ms.decode"] = (decoded - finished) * 1e3 / n
    return Outcome(True, figures, {"output": str(path), **details})


def _draw(sample: Callable[..., Floats], n: int, seed: int, total: int) -> Floats:
    """Draw behind a progress bar, where the command line asks for one."""
    if not progress.enabled:
        return sample(n, seed)
    with click.progressbar(length=total, label="sampling", file=sys.stderr) as bar:

        def report(done: int, _total: int) -> bool:
            bar.update(done - bar.pos)
            return True

        return sample(n, seed, progress=report)
