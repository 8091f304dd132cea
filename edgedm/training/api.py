"""`edgedm.quantize`: a low-bit checkpoint from a float one, by training."""

import dataclasses
import tempfile
from pathlib import Path

import torch

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import load, save
from edgedm.outcome import Outcome
from edgedm.training.loop import LoopOptions
from edgedm.training.lowbit import LowBitOptions, train_low_bit
from edgedm.training.shipping import to_checkpoint

# Per-method recipes; the equal number of iterations is what compares BiDM with its baseline.
RECIPES: dict[str, tuple[LowBitOptions, LoopOptions]] = {
    "binarydm": (LowBitOptions("binarydm", distill=1.0), LoopOptions(1000, 5e-4, ema_decay=0.998)),
    "bidm": (LowBitOptions("bidm", distill=1.0, spd=1e-2, tbs=True), LoopOptions(1300, 1e-3, ema_decay=0.998)),
    "xnor": (LowBitOptions("xnor"), LoopOptions(1300, 1e-3, ema_decay=0.998)),
}


def quantize(
    method: str,
    base: str = "zoo:digits-fp32",
    data: str = "digits",
    output: str = "checkpoint",
    *,
    iterations: int | None = None,
    seed: int = 0,
    runs: str | None = None,
    threads: int = 2,
) -> Outcome:
    """Train a low-bit checkpoint from the float checkpoint `base` by `method` and write it to `output`.

    `method` is binarydm (W1A4), bidm (W1A1) or xnor (W1A1, BiDM's baseline); `iterations` replaces the recipe's.
    With `runs`, a folder, training keeps its state there and resumes. Raises `InvalidModelError` for a bad base,
    `UnsupportedError` for an unknown method or data set.
    """
    if method not in RECIPES:
        raise UnsupportedError(f"method: expected one of {', '.join(RECIPES)}, got {method!r}")
    if data != "digits":
        raise UnsupportedError(f"data: expected 'digits', got {data!r}")
    checkpoint = load(base)
    if checkpoint.config.method != "fp32":
        raise InvalidModelError(f"{base}: expected a float base, got one made by {checkpoint.config.method}")
    low_bit, loop = RECIPES[method]
    loop = dataclasses.replace(loop, seed=seed, iterations=iterations or loop.iterations)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(runs or scratch) / method
        ema, curve = train_low_bit(checkpoint.module.unet, low_bit, loop, folder)
    trained = to_checkpoint(ema, checkpoint.config, low_bit.method)
    save(trained, output)
    last = {f"final.{key}": value for key, value in curve[-1].items() if key != "iteration"}
    return Outcome(True, {"iterations": float(loop.iterations), **last}, {"written": [str(output)], "curve": curve})
