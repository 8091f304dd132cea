"""What a person sees of a training loop: a progress bar or lines on standard error, and TensorBoard logs."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from torch import Tensor

from edgedm import progress

FIRST_LINE, NEXT_LINES = 10.0, 30.0  # seconds between lines where there is no terminal
GLANCE = 0.5  # seconds between readings of the loss, for which a GPU must be waited for


class Monitor:
    """Shows loss, samples seen, samples a second and the time left of one loop; a context manager.

    A bar (rich) where standard error is a terminal, else a line now and then; nothing unless `progress.enabled`.
    With `log`, a folder, losses and rates also go to TensorBoard under the loop's name; points of a resumed run
    that were logged before it was killed are replaced.
    """

    def __init__(
        self, name: str, start: int, iterations: int, samples: int, log: Path | None = None, speak: bool = True
    ) -> None:
        self.name, self.start, self.iterations, self.samples = name, start, iterations, samples
        self.began = time.monotonic()
        self.next_line = self.began + FIRST_LINE
        self.loss, self.next_glance = 0.0, self.began
        speak = speak and progress.enabled
        self.lines = speak and not sys.stderr.isatty()
        self.bar: Any = _bar() if speak and sys.stderr.isatty() else None
        self.task: Any = None
        self.writer: Any = None
        if log is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(log / name), purge_step=start + 1)

    def __enter__(self) -> "Monitor":
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.iterations, completed=self.start, status="")
        elif self.lines and self.start:
            click.echo(f"{self.name}: going on from iteration {self.start} of {self.iterations}", err=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def advance(self, iteration: int, loss: Tensor) -> None:
        """Say that `iteration` iterations are done, the last one with `loss`."""
        if (self.bar is not None or self.lines) and time.monotonic() >= self.next_glance:
            self.loss, self.next_glance = float(loss.detach()), time.monotonic() + GLANCE
        if self.bar is not None:
            self.bar.update(self.task, completed=iteration, status=self._status(iteration))
        elif self.lines and (time.monotonic() >= self.next_line or iteration == self.iterations):
            self.next_line = time.monotonic() + NEXT_LINES
            left = (self.iterations - iteration) * self._seconds(iteration)
            text = f"{self.name}: {iteration} of {self.iterations} iterations, {self._status(iteration)}"
            click.echo(f"{text}, {_clock(left)} left", err=True)

    def point(self, point: Mapping[str, float]) -> None:
        """Log a point of the curve."""
        if self.writer is None:
            return
        iteration = int(point["iteration"])
        for key, value in point.items():
            if key != "iteration":
                self.writer.add_scalar(key, value, iteration)
        self.writer.add_scalar("samples_per_second", self.samples / self._seconds(iteration), iteration)

    def _seconds(self, iteration: int) -> float:
        """Return the seconds of an iteration, on average since the start."""
        return (time.monotonic() - self.began) / max(1, iteration - self.start)

    def _status(self, iteration: int) -> str:
        rate = self.samples / max(1e-9, self._seconds(iteration))
        return f"loss {self.loss:.4g}, {iteration * self.samples:,} samples ({rate:,.3g}/s)"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TextColumn("{task.fields[status]}"), TimeRemainingColumn(), console=Console(stderr=True))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
