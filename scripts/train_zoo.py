"""Train the zoo, stage by stage, on CPU: `python scripts/train_zoo.py STAGE --runs FOLDER`; every stage resumes."""

import argparse
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import nn

from edgedm.models.presets import DIGITS
from edgedm.training.base import train_base
from edgedm.training.loop import LoopOptions
from edgedm.training.lowbit import LowBitOptions, train_low_bit

LOW_BIT = {
    "binarydm": (LowBitOptions("binarydm", distill=1.0), 5e-4),
    "bidm": (LowBitOptions("bidm", distill=1.0, spd=1e-2, tbs=True), 1e-3),
    "xnor": (LowBitOptions("xnor"), 1e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["base", *LOW_BIT])
    parser.add_argument("--runs", type=Path, required=True, help="folder of resumable states and curves")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "base":
        train_base(arguments.runs / "base", LoopOptions(arguments.iterations or 3000, 4e-4))
    else:
        low_bit, rate = LOW_BIT[arguments.stage]
        loop = LoopOptions(arguments.iterations or 1500, rate, ema_decay=0.998)
        train_low_bit(load_base(arguments.runs), low_bit, loop, arguments.runs / arguments.stage)


def load_base(runs: Path) -> nn.Module:
    """Return the base's EMA with every parameter rounded to float16, as it ships."""
    unet = UNet2DModel(**DIGITS)
    unet.load_state_dict(torch.load(runs / "base" / "state.pt", weights_only=True)["ema"])
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(parameter.half().float())
    return unet


if __name__ == "__main__":
    main()
