"""What a parity level found, and how it is shown on a terminal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgedm.errors import readable
from edgedm.outcome import Outcome


@dataclass(frozen=True)
class Row:
    """One thing that was compared: a kernel, a pass, a layer, a trajectory."""

    name: str
    ok: bool
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""  # where it fails: where, expected, got
    moments: tuple[dict[str, float], ...] = ()  # what it did at each step that was looked at: step, snr_db, flips ...


@dataclass(frozen=True)
class Level:
    """All rows of one parity level; it holds if every row does."""

    name: str
    demand: str
    rows: tuple[Row, ...]
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    required: bool = True  # False: shown, but does not decide

    @property
    def ok(self) -> bool:
        """True if every row holds; a level that compared nothing does not."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def first_failure(self) -> Row | None:
        """The first row in execution order that is off, or None."""
        return next((row for row in self.rows if not row.ok), None)


UNBOUNDED = 1e300
"""Stands for infinity and NaN in figures, its negative for minus infinity: JSON has none of them."""


def outcome_of(
    levels: Sequence[Level],
    artefact: str,
    against: str,
    gates: Sequence[Row] = (),
    blame: Callable[[Level, Row], str] | None = None,
) -> Outcome:
    """Gather the levels into what `verify` returns; figures are `<level>.<name>`.

    `gates` are thresholds of a team's own, each a row. `blame` says what introduced the first row that is off.
    """
    figures: dict[str, float] = {}
    for level in levels:
        figures[f"{level.name}.ok"] = float(level.ok)
        figures[f"{level.name}.rows"] = float(len(level.rows))
        figures[f"{level.name}.failed"] = float(sum(not row.ok for row in level.rows))
        figures[f"{level.name}.seconds"] = level.seconds
        figures |= {f"{level.name}.{name}": value for name, value in _finite(level.figures).items()}
    details: dict[str, Any] = {
        "artefact": artefact,
        "against": against,
        "levels": [_level_details(level) for level in levels],
        "gates": [_row_details(row) for row in gates],
    }
    failed = next((level for level in levels if level.required and not level.ok), None)
    gate = next((row for row in gates if not row.ok), None)
    if failed is not None:
        row = failed.first_failure or Row("(nothing was compared)", False)
        details["first_failure"] = _failure(failed.name, row, _cause(blame, failed, row))
    elif gate is not None:
        details["first_failure"] = _failure("gates", gate, "the gate file: the levels themselves hold")
    return Outcome(ok=bool(levels) and failed is None and gate is None, figures=figures, details=details)


def _failure(level: str, row: Row, cause: str) -> dict[str, str]:
    told = {"where": row.name, "what": row.note, "introduced_by": cause}
    return {"level": level} | {key: readable(text) for key, text in told.items()}


def verdict(outcome: Outcome) -> str:
    """The outcome of `verify` in words: what is off and does not decide is named, not passed over."""
    levels = outcome.details["levels"]
    if not outcome.ok:
        return "parity does not hold"
    off = ", ".join(level["name"] for level in levels if not level["ok"])
    if not any(level["required"] for level in levels):
        told = "thresholds hold; no level was required" if outcome.details["gates"] else "nothing was required"
        return told + (f"; off: {off}" if off else ", and everything holds")
    return "parity holds" + (f" where it is required; off and not required: {off}" if off else "")


def _cause(blame: Callable[[Level, Row], str] | None, level: Level, row: Row) -> str:
    """What `blame` says. The verdict is known before it, so nothing that the search meets may take its place."""
    if blame is None:
        return "not looked for"
    try:
        return blame(level, row)
    except Exception as error:  # the search runs a broken model: anything may come of it
        return f"could not be found: {type(error).__name__}: {error}"


def _level_details(level: Level) -> dict[str, Any]:
    return {
        "name": level.name,
        "ok": level.ok,
        "required": level.required,
        "demand": level.demand,
        "rows": [_row_details(row) for row in level.rows],
        "figures": _finite(level.figures),
    }


def _row_details(row: Row) -> dict[str, Any]:
    """Names are a graph's, which may hold anything."""
    found = {"name": readable(row.name), "ok": row.ok, "note": readable(row.note), "figures": _finite(row.figures)}
    return found | ({"moments": [_finite(each) for each in row.moments]} if row.moments else {})


def _finite(figures: dict[str, float]) -> dict[str, float]:
    return {
        name: value if math.isfinite(value) else -UNBOUNDED if value < 0 else UNBOUNDED
        for name, value in figures.items()
    }


def render(outcome: Outcome, every_row: bool = False) -> None:
    """Print the outcome of `verify`: a line a level, the rows that fail (or all), the verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    summary = Table(title=f"parity of {outcome.details['artefact']} with {outcome.details['against']}")
    for heading in ("level", "", "compared", "demand", "figures"):
        summary.add_column(heading, overflow="fold")
    for level in outcome.details["levels"]:
        failed = sum(not row["ok"] for row in level["rows"])
        compared = f"{len(level['rows'])}" + (f" ({failed} off)" if failed else "")
        shown = "\n".join(f"{name} {number(value)}" for name, value in level["figures"].items())
        name = level["name"] if level["required"] else f"{level['name']} (not required)"
        summary.add_row(name, _mark(level["ok"]), compared, level["demand"], shown)
    console.print(summary)
    if outcome.details["gates"]:
        console.print(_rows_table("gates", outcome.details["gates"]))
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
        console.print(f"introduced by: {escape(failure['introduced_by'])}", highlight=False)
    clear = outcome.ok and all(level["ok"] for level in outcome.details["levels"])
    colour = "green" if clear else "yellow" if outcome.ok else "red"
    console.print(f"[{colour}]{verdict(outcome)}[/{colour}]", highlight=False)


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
