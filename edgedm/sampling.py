"""Draw images: natively from a bundle, or with PyTorch from a checkpoint."""

from pathlib import Path

from edgedm.outcome import Outcome


def sample(
    model: str,
    output: str = "images.png",
    *,
    n: int = 16,
    steps: int = 50,
    sampler: str = "ddim",
    eta: float = 0.0,
    seed: int = 0,
    label: int | None = None,
    guidance: float = 1.0,
    threads: int = 1,
) -> Outcome:
    """Draw `n` images with `model` and write them to `output` (a .png grid or a .npy array [n, C, H, W]).

    `model` is a bundle (the generated runtime draws; numpy is all that is needed) or a checkpoint, a folder or
    `zoo:NAME` (PyTorch draws). `label` is a class index, unconditional where None; `guidance` w draws with
    eps_u + w (eps_c - eps_u). Raises `InvalidModelError` for a bad bundle, checkpoint or option.
    """
    if (Path(model) / "manifest.json").exists():
        from edgedm.runtime.sample import sample_bundle as draw
    else:
        from edgedm.models.sample import sample_checkpoint as draw
    return draw(
        model,
        output,
        n=n,
        steps=steps,
        sampler=sampler,
        eta=eta,
        seed=seed,
        label=label,
        guidance=guidance,
        threads=threads,
    )
