"""What `edgedm bench` prints: engines side by side, memory, and the step call by call."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from edgedm.bench.bound import ALLOWED
from edgedm.bench.peers import OURS
from edgedm.outcome import Outcome

SHOWN_CALLS = 24
"""Calls printed, the longest first; `--json` has all."""
_WIDEST = 160


def show(outcome: Outcome, console: Console | None = None) -> None:
    """Print an outcome of `bench`: of a bundle as tables, of layers or the machine figure by figure."""
    console = console or _console()
    details = outcome.details
    if "timings" not in details:
        for name, value in outcome.figures.items():
            console.print(f"{name:<44} {value:>14,.2f}", highlight=False)
    else:
        console.print(_engines(details["timings"]))
    for row in details.get("absent", ()):
        console.print(f"not compared: {row['engine']}: {row['why']}; {row['install']}", highlight=False)
    if "timings" not in details:
        return
    if details["not_limited"]:
        names = ", ".join(details["not_limited"])
        console.print(f"not limited to {details['target']}: {names}", highlight=False)
    console.print(_memory(outcome.figures))
    if "inside" in details:
        for table in _inside(details["inside"]):
            console.print(table)
        console.print(verdict(outcome.figures), highlight=False)


def _console() -> Console:
    """As wide as the terminal; in a file or a pipe, which have no width, as wide as the widest table."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=_WIDEST)


def verdict(figures: Mapping[str, float]) -> str:
    """One line: the whole step against its bound."""
    step, bound = figures["calls.step_ms.edgedm.t1"], figures["calls.bound_ms"]
    holds = "within" if step <= ALLOWED * bound else "beyond"
    return f"step {step:.3f} ms, bound {bound:.3f} ms: {step / bound:.2f} times, {holds} the {ALLOWED} that are allowed"


def _engines(timings: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    table = _table("One denoising step", ["engine", "threads"], ["ms", "first", "last decile", "processor ms", "ratio"])
    for threads, rows in timings.items():
        for name, row in rows.items():
            times = [f"{row[key] * 1e3:,.3f}" for key in ("median", "low", "high", "processor")]
            table.add_row(name, threads.removeprefix("t"), *times, f"{row['median'] / rows[OURS]['median']:.2f}")
    return table


def _memory(figures: Mapping[str, float]) -> Table:
    table = _table("Memory and size", [""], ["bytes", "ratio"])
    rows = (
        ("arena, over what liveness needs", "bytes.arena", "arena.over_live"),
        ("most resident while sampling", "bytes.peak_rss", ""),
        ("bundle without golden data; float32 parameters over it", "bytes.bundle", "size.ratio"),
        ("weights and library; float32 parameters over them", "bytes.shipped", "size.shipped_ratio"),
    )
    for label, size, ratio in rows:
        table.add_row(label, f"{figures[size]:,.0f}", f"{figures[ratio]:.3f}" if ratio in figures else "")
    return table


def _inside(details: Mapping[str, Any]) -> Sequence[Table]:
    rates = _table("Limits of one core, this run", ["kind"], ["G/s"])
    for name, rate in details["rates"].items():
        rates.add_row(f"stream of {int(name):,} bytes" if name.isdigit() else f"{name} (MAC)", f"{rate:,.1f}")
    numbers = ["calls", "MMAC", "MB", "us", "bound us", "share"]
    groups = _table("By kernel family", ["op", "family"], numbers)
    for row in details["groups"]:
        groups.add_row(row["op"], row["family"], str(row["calls"]), *_cells(row))
    longest = sorted(details["calls"], key=lambda row: -row["us"])[:SHOWN_CALLS]
    title = f"The {len(longest)} longest of {len(details['calls'])} calls"
    calls = _table(title, ["call", "op", "module", "family", "kind", "in"], numbers[1:])
    for row in longest:
        names = (str(row["index"]), row["op"], row["module"], row["family"], row["kind"], row["level"])
        calls.add_row(*names, *_cells(row))
    return rates, groups, calls


def _cells(row: Mapping[str, Any]) -> list[str]:
    share = f"{row['share']:.0%}" if row["bound_us"] else ""
    sizes = [f"{row['macs'] / 1e6:,.1f}", f"{row['bytes'] / 1e6:,.2f}"]
    return [*sizes, f"{row['us']:,.1f}", f"{row['bound_us']:,.1f}", share]


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
