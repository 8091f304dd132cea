"""Options of a training loop."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoopOptions:
    """What a loop needs besides its objective; `iterations` is the equal-budget unit of comparisons.

    `batch` counts the samples of one process; with P processes an iteration sees P times as many, and the learning
    rate stays as given. `decay` is the learning rate's way down after `warm_up` iterations, to `final_fraction` of
    it. `ema_decay` 0 keeps no average. `bf16` runs forward passes in bfloat16 where torch's autocast sees fit;
    weights, gradients and optimiser stay float32. A state is saved every `save_every` iterations.
    """

    iterations: int
    learning_rate: float
    batch: int = 32
    label_dropout: float = 0.1
    warm_up: int = 100
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.0
    ema_decay: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0
    bf16: bool = False
    save_every: int = 200
