"""A step call by call: the time of each kernel inside the real step, beside what this machine needs for it at least.

The library's probe runs a step exactly as sampling does and reads the clock before and after every kernel call. The
step, whole and by calls, and the loops that measure the machine's limits run in turns, so that a change of the
machine's mood meets all of them; each time is the first decile of its samples, which other programs hardly disturb.
One thread: limits are those of one core.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgedm.bench.bound import ALLOWED, Need, step_needs
from edgedm.bench.machine import Work, arithmetic, footprint_class, level_of, stream
from edgedm.bench.step import middle_step
from edgedm.bench.timing import each_call, summary
from edgedm.outcome import Outcome
from edgedm.runtime.local import LocalRunner
from edgedm.targets import resolve


@dataclass(frozen=True)
class CallRow:
    """One kernel call; times in microseconds, `share` is the bound over the time (0 where there is no bound)."""

    index: int
    op: str
    module: str
    family: str
    output: str
    kind: str
    macs: int
    bytes: int
    level: str
    us: float
    bound_us: float
    share: float


def bench_calls(bundle: str | os.PathLike[str], seconds: float = 2.0, variant: str | None = None) -> Outcome:
    """Time every kernel call of a step of `bundle` at one thread and hold it against its bound (see `bound`).

    Figures: `step_ms.edgedm.t1`, `calls_ms` (the sum of all calls), `bound_ms`, `share` (bound over step),
    `over_bound` (step over bound, to be compared with `allowed`), and what of the bound each kind of arithmetic and
    the traffic take, `bound_ms.<kind>`. `details["calls"]` has a row a call, `details["groups"]` one an op and family.
    """
    with LocalRunner(os.fspath(bundle), variant=variant) as runner:
        needs = step_needs(runner.manifest)
        target = resolve(runner.manifest.target.name)
        peaks = arithmetic(sorted({need.kind for need in needs if need.macs}), target)
        streams = {str(footprint): stream(footprint, target) for footprint in footprints(needs)}
        profiles, step, limits = _measure(runner, {**peaks, **streams}, seconds)
    rows = call_rows(needs, profiles, limits)
    figures = _figures(rows, step)
    rates = {name: value / 1e9 for name, value in limits.items()}
    details = {"target": target.name, "rates": rates, "groups": groups(rows), "calls": [asdict(row) for row in rows]}
    return Outcome(True, figures, details)


def footprints(needs: Sequence[Need]) -> list[int]:
    """The classes of footprints whose bandwidth the bound of the calls is made of, ascending."""
    return sorted({footprint_class(need.footprint) for need in needs if need.streamed})


def call_rows(needs: Sequence[Need], seconds: Sequence[float], limits: dict[str, float]) -> list[CallRow]:
    """Join needs, measured seconds and limits (per second: MACs by kind, bytes by footprint as text)."""
    rows = []
    for need, time in zip(needs, seconds, strict=True):
        bound = need.seconds(limits, lambda size: limits[str(footprint_class(size))])
        node, output = need.node, need.node.outputs[0]
        rows.append(
            CallRow(
                index=node.index,
                op=node.op,
                module=node.module,
                family=node.family,
                output="x".join(map(str, output.shape)),
                kind=need.kind or ("stream" if need.streamed else ""),
                macs=need.macs,
                bytes=need.moved,
                level=level_of(need.moved),
                us=time * 1e6,
                bound_us=bound * 1e6,
                share=bound / time,
            )
        )
    return rows


def groups(rows: Sequence[CallRow]) -> list[dict[str, Any]]:
    """Sums over the calls of one op and family, the largest time first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        fresh = {"op": row.op, "family": row.family, "calls": 0, "macs": 0, "bytes": 0, "us": 0.0, "bound_us": 0.0}
        group = found.setdefault((row.op, row.family), fresh)
        group["calls"] += 1
        for name in ("macs", "bytes", "us", "bound_us"):
            group[name] += getattr(row, name)
    for group in found.values():
        group["share"] = group["bound_us"] / group["us"]
    return sorted(found.values(), key=lambda group: -group["us"])


def _measure(
    runner: LocalRunner, works: dict[str, Work], seconds: float
) -> tuple[list[float], float, dict[str, float]]:
    """Seconds of every call, seconds of the whole step, and how much of each work is done a second."""
    number, x = middle_step(runner)
    profiles: list[Any] = []
    engines: dict[str, Any] = {
        "calls": lambda: profiles.append(runner.profile(number, x)[0]),
        "step": lambda: runner.run_step(number, x),
    }
    timing = each_call(engines | {name: work.run for name, work in works.items()}, seconds)
    calls = [summary(times.tolist()).low / 1e9 for times in np.stack(profiles[1:]).T]  # the first one warms up
    return calls, timing["step"].low, {name: work.amount / timing[name].low for name, work in works.items()}


def _figures(rows: Sequence[CallRow], step: float) -> dict[str, float]:
    bound = sum(row.bound_us for row in rows) / 1e3
    figures = {
        "step_ms.edgedm.t1": step * 1e3,
        "calls_ms": sum(row.us for row in rows) / 1e3,
        "bound_ms": bound,
        "share": bound / (step * 1e3),
        "over_bound": step * 1e3 / bound,
        "allowed": ALLOWED,
    }
    for kind in sorted({row.kind for row in rows if row.kind}):
        figures[f"bound_ms.{kind}"] = sum(row.bound_us for row in rows if row.kind == kind) / 1e3
    return figures
