"""What each of two processes does in test_processes.py: `two_processes.py FOLDER`."""

import sys
from pathlib import Path

import torch
from toy_stage import Toy, stage

from edgedm.training.loop import train
from edgedm.training.processes import Processes, leave


class Plain(Toy):
    """Without dropout and carried state."""

    def forward(self, iteration, generator):
        inputs = torch.randn(5, 4, generator=generator)
        return {"loss": (self.student[0](inputs) - inputs[:, :3]).square().mean()}


class Dying(Toy):
    """Killed in iteration 3, in both processes."""

    def forward(self, iteration, generator):
        if iteration == 3:
            raise RuntimeError("killed")
        return super().forward(iteration, generator)


def main(folder: Path) -> None:
    plain = Plain()
    trained, _ = train(stage(plain), folder / "plain")
    kept = {**plain.state_dict(), **{f"ema.{name}": value for name, value in trained.state_dict().items()}}
    train(stage(), folder / "once")
    try:
        train(stage(Dying()), folder / "resumed")
    except RuntimeError:
        train(stage(), folder / "resumed")
    torch.save(kept, folder / f"rank{Processes().rank}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
