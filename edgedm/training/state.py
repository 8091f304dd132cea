"""What a stage of training keeps from one call to the next: one file, written whole or not at all."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.atomic import atomic_file
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.training.identity import CURVE_FILE, STATE_FILE, Identity, check
from edgedm.training.options import LoopOptions
from edgedm.training.processes import Processes


class DivergedError(UnsupportedError, FloatingPointError):
    """Training left the finite numbers."""


Curve = list[dict[str, float]]


class State:
    """Parameters, buffers, average, optimiser, curve and sums of a loop; `iteration` counts what is done.

    Processes hold the same parameters; buffers in which they differ (a trajectory's x_t) are kept for each. A
    finished stage's file has no optimiser.
    """

    def __init__(
        self,
        folder: Path,
        objective: nn.Module,
        ema: nn.Module | None,
        optimiser: torch.optim.Optimizer,
        identity: Identity,
        processes: Processes,
    ) -> None:
        self.folder, self.path = folder, folder / STATE_FILE
        self.objective, self.ema, self.optimiser = objective, ema, optimiser
        self.identity, self.processes = identity, processes
        self.iteration = 0
        self.seconds = 0.0
        self.curve: Curve = []
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add an iteration's losses; they stay on the device, so that nothing waits for it."""
        self.iteration, self.count = self.iteration + 1, self.count + 1
        for key, value in terms.items():
            value = value.detach().double()
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def check_finite(self, name: str) -> None:
        """Raise `DivergedError` if a loss or gradient since the curve's last point was NaN or infinite."""
        if self.sums and not bool(torch.isfinite(torch.stack([v.reshape(()) for v in self.sums.values()])).all()):
            raise DivergedError(
                f"{name}: a loss or gradient was not finite between iterations {self.iteration - self.count} and "
                f"{self.iteration}; lower the learning rate (--learning-rate)"
            )

    def point(self) -> dict[str, float]:
        """End a point of the curve: the means since the last one, over processes too, and the seconds so far."""
        names = sorted(self.sums)
        means = self.processes.mean(torch.stack([self.sums[name].reshape(()) for name in names]) / self.count)
        point = {
            "iteration": float(self.iteration),
            "seconds": self.seconds,
            **dict(zip(names, means.tolist(), strict=True)),
        }
        self.curve.append(point)
        self.sums, self.count = {}, 0
        return point

    def save(self, options: LoopOptions, finished: bool) -> None:
        """Write everything; every process must call this."""
        own = self.processes.gather_different(_buffers(self.objective))
        if not self.processes.is_main:
            return
        state = {
            "identity": self.identity,
            "objective": self.objective.state_dict(),
            "own": own,
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimiser": None if finished else self.optimiser.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "curve": self.curve,
            "sums": self.sums,
            "count": self.count,
        }
        with atomic_file(self.path) as path, path.open("wb") as file:  # torch tells a full disk by that alone
            torch.save(state, file)
        with atomic_file(self.folder / CURVE_FILE) as path:
            values = {"options": asdict(options), "seconds": self.seconds, "curve": self.curve}
            path.write_text(json.dumps(values, indent=1) + "\n")

    def resume(self) -> None:
        """Go on where the last call stopped, if there was one.

        Raises `UnsupportedError` for a state of another run, `InvalidModelError` for a file that is none.
        """
        self.processes.wait()
        state = self._read() if self.path.exists() else None
        if not self.processes.agree(-1 if state is None else int(state["iteration"])):
            raise InvalidModelError(
                f"{self.path}: not every process sees the same state; put the folder on a file system that all share"
            )
        if state is None:
            return
        check(state["identity"], self.identity, self.path)
        try:
            self.objective.load_state_dict({**state["objective"], **state["own"][self.processes.rank]})
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if state["optimiser"] is not None:
                self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise InvalidModelError(
                f"{self.path}: the state does not fit this model ({error}); discard it (--restart)"
            ) from error
        self.iteration, self.seconds = int(state["iteration"]), float(state["seconds"])
        device = next(self.objective.parameters()).device
        self.curve, self.sums = state["curve"], {key: value.to(device) for key, value in state["sums"].items()}
        self.count = int(state["count"])

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise InvalidModelError(f"{self.path}: not a training state; discard it (--restart): {error}") from error
        if not isinstance(state, dict) or "identity" not in state:
            raise InvalidModelError(f"{self.path}: not a training state of this version; discard it (--restart)")
        return state


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name not in parameters}
