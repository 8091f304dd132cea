"""What a parity level found, and how it is shown on a terminal."""

import math
from dataclasses import dataclass, field
from typing import Any

from edgedm.outcome import Outcome


@dataclass(frozen=True)
class Row:
    """One thing that was compared: a kernel, a pass, a layer, a trajectory."""

    name: str
    ok: bool
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""  # where it fails: where, expected, got


@dataclass(frozen=True)
class Level:
    """All rows of one parity level; it holds if every row does."""

    name: str
    demand: str
    rows: tuple[Row, ...]
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if every row holds; a level that compared nothing does not."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def first_failure(self) -> Row | None:
        """The first row in execution order that is off, or None."""
        return next((row for row in self.rows if not row.ok), None)


UNBOUNDED = 1e300
"""Stands for infinity and NaN in figures: JSON has neither."""


def outcome_of(levels: list[Level], bundle: str, against: str) -> Outcome:
    """Gather the levels into what `verify` returns; figures are `<level>.<name>`."""
    figures: dict[str, float] = {}
    for level in levels:
        figures[f"{level.name}.ok"] = float(level.ok)
        figures[f"{level.name}.rows"] = float(len(level.rows))
        figures[f"{level.name}.failed"] = float(sum(not row.ok for row in level.rows))
        figures[f"{level.name}.seconds"] = level.seconds
        figures |= {f"{level.name}.{name}": value for name, value in _finite(level.figures).items()}
    failed = next((level for level in levels if not level.ok), None)
    details: dict[str, Any] = {
        "bundle": bundle,
        "against": against,
        "levels": [_level_details(level) for level in levels],
    }
    if failed is not None:
        row = failed.first_failure
        details["first_failure"] = {
            "level": failed.name,
            "where": row.name if row else "(nothing was compared)",
            "what": row.note if row else "",
        }
    return Outcome(ok=bool(levels) and failed is None, figures=figures, details=details)


def _level_details(level: Level) -> dict[str, Any]:
    rows = [{"name": row.name, "ok": row.ok, "note": row.note, "figures": _finite(row.figures)} for row in level.rows]
    return {"name": level.name, "ok": level.ok, "demand": level.demand, "rows": rows, "figures": _finite(level.figures)}


def _finite(figures: dict[str, float]) -> dict[str, float]:
    return {name: value if math.isfinite(value) else UNBOUNDED for name, value in figures.items()}


def render(outcome: Outcome, every_row: bool = False) -> None:
    """Print the outcome of `verify`: a line a level, the rows that fail (or all), the verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    summary = Table(title=f"parity of {outcome.details['bundle']} with {outcome.details['against']}")
    for heading in ("level", "", "compared", "demand", "figures"):
        summary.add_column(heading, overflow="fold")
    for level in outcome.details["levels"]:
        failed = sum(not row["ok"] for row in level["rows"])
        compared = f"{len(level['rows'])}" + (f" ({failed} off)" if failed else "")
        shown = "\n".join(f"{name} {number(value)}" for name, value in level["figures"].items())
        summary.add_row(level["name"], _mark(level["ok"]), compared, level["demand"], shown)
    console.print(summary)
    for level in outcome.details["levels"]:
        rows = [row for row in level["rows"] if every_row or not row["ok"]]
        if rows:
            console.print(_rows_table(level["name"], rows))
            for row in rows:  # beside the figures a sentence would wrap letter by letter on a narrow terminal
                if row["note"]:
                    console.print(f"{escape(row['name'])}: {escape(row['note'])}", highlight=False)
    failure = outcome.details.get("first_failure")
    if failure:
        console.print(
            f"[red]first off[/red] at level {failure['level']}: {escape(failure['where'])}: {escape(failure['what'])}",
            highlight=False,
        )
    console.print("[green]parity holds[/green]" if outcome.ok else "[red]parity does not hold[/red]")


def _rows_table(title: str, rows: list[dict[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    table = Table(title=title, title_justify="left")
    for heading in ("", "where", *names):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = [number(row["figures"][name]) if name in row["figures"] else "" for name in names]
        table.add_row(_mark(row["ok"]), escape(row["name"]), *cells)
    return table


def _mark(ok: bool) -> str:
    return "[green]ok[/green]" if ok else "[red]off[/red]"


def number(value: float) -> str:
    """A figure in four digits at most; whole numbers with their thousands apart."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.3g}"
