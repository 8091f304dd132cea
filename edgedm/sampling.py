"""Draw images: natively from a bundle, or with PyTorch from a checkpoint."""

import os
from pathlib import Path
from typing import Any

from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome


def sample(
    model: str | os.PathLike[str],
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
    """Draw `n` images with `model` and write them to `output` (a .png grid or a .npy array [n, C, H, W]).

    `model` is a bundle (the generated runtime draws; numpy is all that is needed) or a checkpoint, a folder or
    `zoo:NAME` (PyTorch draws). `label` is a class index, unconditional where None; `guidance` w draws with
    eps_u + w (eps_c - eps_u). A model with a text condition draws by that of the .npy file `condition`, f32[T, D], and
    guidance leads away from `negative` (zeros without it). A latent model's samples are decoded unless `latent`.
    `steps` and `sampler` are by default those that the bundle was compiled for; a checkpoint's 50 and "ddim".
    With images to `start` from, a .npy file f32[n, C, H, W], the last `strength` of the steps run on those under noise.
    `variant` names the kernels to run of a bundle that has several; None: the best that this machine can.
    Raises `InvalidModelError` for a bad bundle, checkpoint or option.
    """
    drawing: dict[str, Any] = {
        "n": n,
        "eta": eta,
        "seed": seed,
        "label": label,
        "guidance": guidance,
        "condition": condition,
        "negative": negative,
        "latent": latent,
        "start": start,
        "strength": strength,
        "threads": threads,
    }
    if (Path(model) / "manifest.json").exists():
        from edgedm.runtime.sample import sample_bundle

        return sample_bundle(model, output, steps=steps, sampler=sampler, **drawing, variant=variant)
    if variant is not None:
        raise UnsupportedError(f"--variant: {model} is no bundle, and has no variants")
    from edgedm.models.sample import sample_checkpoint

    drawing |= {"steps": 50 if steps is None else steps, "sampler": "ddim" if sampler is None else sampler}
    return sample_checkpoint(str(model), str(output), **drawing)
