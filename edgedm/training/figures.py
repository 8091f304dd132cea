"""`docs/zoo.md`: the quality table of the zoo, its loss curves and sample images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from edgedm.atomic import atomic_file
from edgedm.diffusion import NoiseSchedule
from edgedm.images import write_images
from edgedm.models import load
from edgedm.models.presets import NULL_CLASS
from edgedm.training.classifier import CLASSES, accuracy, load_classifier
from edgedm.training.data import load_digits
from edgedm.training.quality import Quality, measure
from edgedm.training.sampling import draw

GUIDANCE = 1.5
SHOWN = 100


KINDS = ("labelled", "unlabelled", "guided")


def evaluate(path: str, samples: int, pictures: Path | None = None, kinds: Sequence[str] = KINDS) -> dict[str, Quality]:
    """Return figures of a checkpoint's samples (DDIM, 50 steps), by kind.

    Labelled samples ask for the ten digits evenly, guided ones do so with guidance 1.5, unlabelled ones for the
    null class. The first 100 images of a kind go to `pictures`_KIND.png.
    """
    checkpoint = load(path)
    schedule = NoiseSchedule.from_config(checkpoint.config.noise_schedule)
    classifier, real = load_classifier(), load_digits().images
    labels = torch.arange(samples) % CLASSES
    null = torch.full((samples,), NULL_CLASS)
    figures = {}
    for kind in kinds:
        asked = null if kind == "unlabelled" else labels
        images = draw(checkpoint.module, schedule, asked, guidance=GUIDANCE if kind == "guided" else 1.0)
        figures[kind] = measure(images, real, classifier, None if kind == "unlabelled" else labels)
        if pictures is not None:
            write_images(str(pictures) + f"_{kind}.png", images[:SHOWN].numpy())
    return figures


def save_figures(figures: Mapping[str, Quality], path: Path) -> None:
    """Write the figures of one checkpoint as JSON."""
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps({name: asdict(value) for name, value in figures.items()}, indent=1) + "\n")


def quality_table(rows: Mapping[str, Mapping[str, Quality]]) -> str:
    """Return a Markdown table, one line a checkpoint and kind of samples."""
    lines = [
        "| model | samples | accepted | as asked | Frechet | precision | recall | class shares |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, kinds in rows.items():
        for kind, q in kinds.items():
            named = "" if q.named is None else f"{q.named:.1%}"
            shares = f"{min(q.class_shares):.1%} to {max(q.class_shares):.1%}"
            lines.append(
                f"| {model} | {kind} | {q.accepted:.1%} | {named} | {q.frechet:.2f} | {q.precision:.2f} "
                f"| {q.recall:.2f} | {shares} |"
            )
    return "\n".join(lines)


def classifier_line() -> str:
    """Return one sentence on the classifier."""
    return f"The classifier names {accuracy(load_classifier()):.1%} of the held-out digits correctly."
