"""Set the activation quantisers of a student from what it meets on denoising trajectories."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgedm.models.denoiser import Denoiser
from edgedm.quant.uniform import ActivationTable, mse_grid
from edgedm.training.trajectory import Samples

MOST = 2**16  # values a table that the search looks at, besides the extremes
FEWEST = 2**11  # values a row at least, however many rows share `MOST`


@torch.no_grad()
def calibrate(student: Denoiser, samples: Samples, batch: int = 64, per_row: bool = False) -> None:
    """Run `student` over `samples` and set every `ActivationTable` in it to the least-error grid of its input.

    All tables pass their input through meanwhile, so each sees float activations behind quantised weights, in one
    pass. By default all rows of a table get the same grid; `per_row` gives each row that of its own timesteps, and
    a row without any the grid of the nearest row that has some. The search looks at a uniform random part of the
    values and at their extremes.
    """
    device = next(student.parameters()).device
    with calibrating(student, per_row):
        for start in range(0, len(samples), batch):
            part = samples.take(slice(start, start + batch))
            student.record(part.noisy.to(device), part.timesteps.to(device), part.labels.to(device))


@contextmanager
@torch.no_grad()
def calibrating(module: nn.Module, per_row: bool = False) -> Iterator[None]:
    """Set every `ActivationTable` in `module` from all that it meets within the context; see `calibrate`."""
    collectors = [_Collector(table, per_row) for table in module.modules() if isinstance(table, ActivationTable)]
    try:
        yield
    finally:
        for collector in collectors:
            collector.handle.remove()
    for collector in collectors:
        collector.finish()


class _Collector:
    """Keeps a part of what one table sees, row by row; the part depends on the data's order and sizes alone."""

    def __init__(self, table: ActivationTable, per_row: bool) -> None:
        self.table = table
        self.bins = len(table.edges) if per_row else 1
        self.most = max(MOST // self.bins, FEWEST)
        self.rows: dict[int, _Reservoir] = {}
        self.generator = torch.Generator().manual_seed(0)
        table.started.fill_(False)
        self.handle = table.register_forward_pre_hook(self._see)

    def _see(self, _table: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        if self.bins == 1:
            self._keep(0, x)
            return
        rows = self.table.row()
        for row in sorted(set(rows.tolist())):
            self._keep(row, x[rows == row])

    def _keep(self, row: int, x: Tensor) -> None:
        values = x.flatten()[None] if self.table.heads == 1 else x.transpose(0, 1).flatten(1)
        self.rows.setdefault(row, _Reservoir(self.most, self.generator)).add(values.cpu())

    def finish(self) -> None:
        """Set the table's rows; a table that the student never ran stays as it is."""
        if not self.rows:
            return
        if self.bins == 1:
            values = self.rows[0].values().to(self.table.step.device)
            self.table.calibrate(values[0] if self.table.heads == 1 else values[None])
            return
        for rows, together in self._alike():
            step, zero = mse_grid(together, self.table.bits, (2,))
            self.table.step[rows], self.table.zero[rows] = step[..., 0], zero[..., 0]
        self.table.started.fill_(True)
        for row in range(self.bins):
            if row not in self.rows:
                nearest = min(self.rows, key=lambda other: abs(other - row))
                self.table.step[row], self.table.zero[row] = self.table.step[nearest], self.table.zero[nearest]

    def _alike(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (rows, values f32[rows, heads, K]) of rows with equally many values: one search for all of them."""
        values = {row: reservoir.values() for row, reservoir in self.rows.items()}
        for count in sorted({kept.shape[1] for kept in values.values()}):
            rows = [row for row, kept in values.items() if kept.shape[1] == count]
            yield rows, torch.stack([values[row] for row in rows]).to(self.table.step.device)


class _Reservoir:
    """A uniform random part of a stream of columns f32[heads, n], and the extremes of all of them."""

    def __init__(self, most: int, generator: torch.Generator) -> None:
        self.most, self.generator = most, generator
        self.seen = 0
        self.kept, self.keys = torch.empty(0), torch.empty(0)
        self.low, self.high = torch.empty(0), torch.empty(0)

    def add(self, values: Tensor) -> None:
        """Take columns in; those with the largest random keys of all so far are kept."""
        keys = torch.rand(values.shape[1], generator=self.generator)
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        self.seen += len(keys)
        if len(self.kept):
            values, keys = torch.cat([self.kept, values], 1), torch.cat([self.keys, keys])
            low, high = low.minimum(self.low), high.maximum(self.high)
        if len(keys) > self.most:
            best = keys.topk(self.most).indices
            values, keys = values[:, best], keys[best]
        self.kept, self.keys, self.low, self.high = values, keys, low, high

    def values(self) -> Tensor:
        """Return f32[heads, K]: all columns, or a part of them and the extremes."""
        return self.kept if self.seen <= self.most else torch.cat([self.kept, self.low, self.high], 1)
