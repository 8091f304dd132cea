"""What a run leaves for its report: images of both sides from the same noise, and the way that one of them took."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

SHOWN = 10
"""Pairs of images that a report shows."""

FRAMES = 8
"""Moments of one trajectory that it shows, noise and finished image included."""


@dataclass
class Evidence:
    """Images f32[C, H, W] in -1..1; `strip` holds (step, torch's, ours) of the first image."""

    labels: list[int] = field(default_factory=list)
    torch: list[Floats] = field(default_factory=list)
    ours: list[Floats] = field(default_factory=list)
    strip: list[tuple[int, Floats, Floats]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)  # hashes, versions, machine
    sizes: dict[str, float] = field(default_factory=dict)  # see edgedm.bench.sizes
    speed: dict[str, float] = field(default_factory=dict)  # milliseconds a step, by engine

    def add(self, label: int, torch: Sequence[Array], ours: Sequence[Array]) -> None:
        """Take one trajectory of each side: x before every step and after the last."""
        if len(self.labels) >= SHOWN:
            return
        if not self.strip:
            frames = sorted({int(step) for step in np.linspace(0, len(ours) - 1, FRAMES).round()})
            self.strip = [(step, _floats(torch[step]), _floats(ours[step])) for step in frames]
        self.labels.append(label)
        self.torch.append(_floats(torch[-1]))
        self.ours.append(_floats(ours[-1]))

    def decoded(self, torch: Callable[[Floats], Array], ours: Callable[[Floats], Array]) -> None:
        """Turn the latents into images, each side by its own decoder."""
        self.torch = [_floats(torch(each)) for each in self.torch]
        self.ours = [_floats(ours(each)) for each in self.ours]
        self.strip = [(step, _floats(torch(left)), _floats(ours(right))) for step, left, right in self.strip]


def _floats(array: Array) -> Floats:
    return np.asarray(array, np.float32)
