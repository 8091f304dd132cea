"""`docs/methods/index.md`: tables of all cells, one a family, and what they say about the papers' claims."""

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedm.atomic import atomic_file

Cell = Mapping[str, Any]

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
MIB = 2**20
CAVEAT = "a few tenths are no order"

TITLES = {
    "binarydm": "BinaryDM, W1A4",
    "bidm": "BiDM, W1A1",
    "w1a1": "Other methods at W1A1",
    "efficientdm": "EfficientDM, W4A4",
    "dilatequant": "DilateQuant, W4A4, products of attention included",
    "w4a4": "Baselines at W4A4",
    "w2a4": "Baseline at W2A4",
}

_COLUMNS: tuple[tuple[str, Callable[[Cell], float], str], ...] = (
    ("Frechet", lambda cell: cell["frechet"], ".2f"),
    ("precision", lambda cell: cell["precision"], ".2f"),
    ("recall", lambda cell: cell["recall"], ".2f"),
    ("accepted", lambda cell: cell["accepted"], ".1%"),
    ("as asked", lambda cell: cell["named"], ".1%"),
    ("eps-MSE to float", lambda cell: cell["eps_mse"], ".4f"),
    ("eps error", lambda cell: cell["eps_error"], ".4f"),
    ("training s", lambda cell: cell["seconds"], ".0f"),
    ("CPU s", lambda cell: cell["cpu_seconds"], ".0f"),
    ("step MiB", lambda cell: (cell["memory"]["total"] - cell["memory"]["cache"]) / MIB, ".1f"),
    ("kept inputs MiB", lambda cell: cell["memory"]["cache"] / MIB, ".1f"),
    ("peak RSS MiB", lambda cell: cell["peak_rss"] / MIB, ".0f"),
)


def read_cells(folder: Path) -> list[Cell]:
    """Return the cells in a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def by_row(cells: Iterable[Cell], order: Sequence[str]) -> dict[str, list[Cell]]:
    """Return {row: its cells} in the given order of rows."""
    found: dict[str, list[Cell]] = {key: [] for key in order}
    for cell in cells:
        if cell["row"] in found:
            found[cell["row"]].append(cell)
    return {key: group for key, group in found.items() if group}


def table(rows: Mapping[str, Sequence[Cell]]) -> str:
    """Return a Markdown table, one line a row: means over seeds, and half the spread where there are several."""
    names = ["row", "seeds", *(name for name, _, _ in _COLUMNS)]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for key, cells in rows.items():
        values = [number([get(cell) for cell in cells], style) for _, get, style in _COLUMNS]
        lines.append(f"| {key.partition('/')[2]} | {len(cells)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def number(values: Sequence[float], style: str) -> str:
    """Return "mean" or "mean ± half the spread"."""
    text = format(statistics.fmean(values), style)
    half = (max(values) - min(values)) / 2
    return f"{text} ± {half:{style}}" if len(values) > 1 else text


def report(cells: Iterable[Cell], order: Sequence[str]) -> str:
    """Return all tables and claims as Markdown."""
    rows = by_row(cells, order)
    parts = []
    for family in dict.fromkeys(key.partition("/")[0] for key in rows):
        own = {key: group for key, group in rows.items() if key.startswith(family + "/")}
        parts.append(f"### {TITLES.get(family, family)}\n\n{table(own)}")
        if len(own) > 1:
            parts.append(f"By Frechet distance, worst first ({CAVEAT}): {ranking(own, 'frechet')}.  ")
            parts.append(f"By eps-MSE to the float model, worst first: {ranking(own, 'eps_mse')}.")
    parts += _across(rows)
    claims = [*_changed(rows), *_dilated(rows), *_time(rows), *_memory(rows)]
    if claims:
        parts.append("### Claims\n\n" + "\n".join(f"- {claim}" for claim in claims))
    return "\n\n".join(parts)


def width(cells: Sequence[Cell]) -> str:
    """Return the bits of a row's body, such as W4A4."""
    bits: str = cells[0]["configuration"]["bits"]["res_conv"]
    return bits


def _across(rows: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Return one ranking a width of the rows of all families."""
    lines = []
    for bits in sorted({width(cells) for cells in rows.values()}):
        group = {key: cells for key, cells in rows.items() if width(cells) == bits}
        if len(group) > 1:
            lines.append(f"- **{bits}**: {ranking(group, 'frechet', whole=True)}.")
    if not lines:
        return []
    order = f"By Frechet distance, worst first; budgets differ between families, and {CAVEAT}."
    return [f"### All families at each width\n\n{order}\n\n" + "\n".join(lines)]


def ranking(rows: Mapping[str, Sequence[Cell]], figure: str, whole: bool = False) -> str:
    """Return the names of rows, those with the largest mean first; "~" joins rows whose seeds overlap.

    A name is `whole` with its family.
    """
    spans = {key: [cell[figure] for cell in cells] for key, cells in rows.items()}
    names = sorted(spans, key=lambda key: -statistics.fmean(spans[key]))
    shown = {key: key if whole else key.partition("/")[2] for key in names}
    text = shown[names[0]]
    for before, name in itertools.pairwise(names):
        apart = min(spans[before]) > max(spans[name])
        text += f" {'>' if apart else '~'} {shown[name]}"
    return text


def _changed(rows: Mapping[str, Sequence[Cell]]) -> list[str]:
    claims = []
    for key, cells in rows.items():
        shares = [list(cell["changed_codes"].values()) for cell in cells if "changed_codes" in cell]
        if shares:
            means = number([statistics.fmean(each) for each in shares], ".2%")
            still = number([sum(share == 0 for share in each) / len(each) for each in shares], ".0%")
            low = number([min(each) for each in shares], ".2%")
            claims.append(
                f"{key}: training changes {means} of a layer's integer weights on average, {low} in the layer with "
                f"the fewest; {still} of the layers do not change at all."
            )
    return claims


def _dilated(rows: Mapping[str, Sequence[Cell]]) -> list[str]:
    claims = []
    for key, cells in rows.items():
        found = [cell["dilation"] for cell in cells if "dilation" in cell][:1]
        for dilation in found:
            shares = [share for share, _ in dilation["layers"].values()]
            claims.append(
                f"{key}: {statistics.fmean(shares):.1%} of a layer's input channels can be dilated on average "
                f"({min(shares):.0%} to {max(shares):.0%}, {sum(share == 0 for share in shares)} of {len(shares)} "
                f"layers have none). Dilation changes the float model's output by {dilation['difference']:.1e} of its "
                f"largest magnitude, and weight steps and zero points by {dilation['steps_changed']:g}."
            )
    return claims


def _time(rows: Mapping[str, Sequence[Cell]]) -> list[str]:
    """When LSQ first reaches EfficientDM's final figures on the way; the paper says 16.2 times later."""
    ours, theirs = rows.get("efficientdm/+TALSQ", []), rows.get("w4a4/LSQ", [])
    claims = []
    for mine in ours:
        for other in (cell for cell in theirs if cell["seed"] == mine["seed"]):
            for figure in ("frechet", "eps_error", "eps_mse"):
                target, seconds = mine["trace"][-1][figure], mine["trace"][-1]["cpu_seconds"]
                reached = [point["cpu_seconds"] for point in other["trace"] if point[figure] <= target]
                end = other["trace"][-1]
                answer = (
                    f"LSQ reaches it after {reached[0]:.0f} s, {reached[0] / seconds:.2f} times as long"
                    if reached
                    else f"LSQ does not within {end['cpu_seconds']:.0f} s ({end[figure]:.4g}), "
                    f"more than {end['cpu_seconds'] / seconds:.2f} times as long"
                )
                claims.append(
                    f"Seed {mine['seed']}: EfficientDM ends at {figure} {target:.4g} after {seconds:.0f} s of one "
                    f"core; {answer}."
                )
    return claims


def _memory(rows: Mapping[str, Sequence[Cell]]) -> list[str]:
    full = rows.get("w4a4/LSQ", [])
    claims = []
    for key in ("dilatequant/+TPQ+WD+BKD", "efficientdm/+TALSQ"):
        for mine, other in zip(rows.get(key, [])[:1], full[:1], strict=False):
            step, cache = mine["memory"]["total"] - mine["memory"]["cache"], mine["memory"]["cache"]
            whole = other["memory"]["total"]
            batches = [cell["configuration"]["loop"]["batch"] for cell in (mine, other)]
            claims.append(
                f"{key}: a training step takes {step / MIB:.1f} MiB at batch {batches[0]}, LSQ's {whole / MIB:.1f} MiB "
                f"at batch {batches[1]}: {step / whole - 1:+.0%} (model, activations kept for the backward pass, "
                f"gradients, AdamW); with the inputs that it keeps, {(step + cache) / whole - 1:+.0%}."
            )
    return claims


def write_page(page: Path, text: str) -> None:
    """Replace what stands between the markers of a Markdown page; the rest is written by hand."""
    old = page.read_text(encoding="utf-8") if page.exists() else f"# Methods compared\n\n{BEGIN}\n{END}\n"
    head, _, rest = old.partition(BEGIN)
    with atomic_file(page) as scratch:
        scratch.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
