"""The report as Markdown: the same content, for a pull request, a job's summary or a wiki.

Images and plots stand inside it as data; plots are also written as a line of block characters and a table, since some
places that show Markdown leave data images out.
"""

import base64
from collections.abc import Iterable, Sequence

from edgedm.outcome import Outcome
from edgedm.report.charts import Plot, draw, draw_heat
from edgedm.report.content import Content, content_of, figure, table_of
from edgedm.verify.evidence import Evidence

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLE = (
    "text{fill:#5a606b;font:10px sans-serif}.grid{stroke:#b9bec7;stroke-width:.7}.line{fill:none;stroke-width:1.8}"
    ".line.ours{stroke:#3a6fc4}.line.theirs{stroke:#a8740e;stroke-dasharray:5 3}.line.worst{stroke:#c43a32}"
    ".dot.ours{fill:#3a6fc4}.dot.theirs{fill:#a8740e}.dot.worst{fill:#c43a32}"
    ".h0{fill:#a3201a}.h1{fill:#d8662f}.h2{fill:#e3b04b}.h3{fill:#a8c79a}.h4{fill:#5c9f85}.h5{fill:#2b6f6b}"
)
"""Colours that are read on white and on black, since an image does not know where it stands."""


def render(outcome: Outcome, evidence: Evidence) -> str:
    """The report."""
    it = content_of(outcome, evidence)
    parts = [
        f"# {it.verdict}: {_text(it.artefact)}",
        f"against {_text(it.against)} in PyTorch; {it.schedule}",
        *_failure(it),
        "## Levels",
        _table(
            ("level", "verdict", "compared", "off", "seconds", "demand"),
            (
                (
                    level["name"],
                    _mark(level["ok"]) + ("" if level["required"] else " (not required)"),
                    str(len(level["rows"])),
                    str(sum(not row["ok"] for row in level["rows"])),
                    it.seconds[level["name"]],
                    level["demand"],
                )
                for level in it.levels
            ),
        ),
    ]
    if it.gates:
        rows = [
            (row["name"], _mark(row["ok"]), figure(row["figures"]["allowed"]), figure(row["figures"].get("actual")))
            for row in it.gates
        ]
        parts += ["## Gates", _table(("gate", "verdict", "allowed", "actual"), rows)]
    parts += [*_images(it), *_plots(it)]
    for title, pairs in (("Size", it.sizes), ("Speed", it.speed)):
        if pairs:
            parts += [f"## {title}", _table(("what", "value"), pairs)]
            if title == "Speed":
                parts.append("The median of a few single steps on this machine; `edgedm bench` measures in turns.")
    parts.append("## Everything compared")
    for level in it.levels:
        parts.append(_rows(level["name"], level["rows"]))
    if it.facts:
        parts += ["## Hashes and versions", _table(("what", "value"), it.facts.items())]
    return "\n\n".join(parts) + "\n"


def _failure(it: Content) -> list[str]:
    if it.failure is None:
        return []
    found = it.failure
    return [
        f"> **First off at level {found['level']}: {_text(found['where'])}**\n>\n"
        f"> {_text(found['what'])}\n>\n> Introduced by: {_text(found['introduced_by'])}"
    ]


def _images(it: Content) -> list[str]:
    if not it.pairs:
        return []
    rows = [(pair.caption, _image("PyTorch", pair.torch), _image("edgedm", pair.ours), pair.times) for pair in it.pairs]
    parts = ["## Images from the same noise", _table(("", "PyTorch", "edgedm", "difference"), rows)]
    heads = ["step", *(str(frame.step) for frame in it.frames)]
    strip = [
        ["PyTorch", *(_image(f"PyTorch after step {frame.step}", frame.torch) for frame in it.frames)],
        ["edgedm", *(_image(f"edgedm after step {frame.step}", frame.ours) for frame in it.frames)],
    ]
    return [*parts, "One trajectory, from noise to image:", _table(heads, strip)]


def _plots(it: Content) -> list[str]:
    parts: list[str] = ["## Over the timesteps"] if it.plots or it.heats else []
    for plot in it.plots:
        parts += [f"### {plot.title}, {plot.unit}", plot.note, _svg(plot.title, draw(plot, _STYLE)), _numbers(plot)]
    for heat in it.heats:
        parts += [f"### {heat.title}, {heat.unit}", heat.note, _svg(heat.title, draw_heat(heat, _STYLE))]
    return parts


def _numbers(plot: Plot) -> str:
    rows = []
    for line in plot.lines:
        values = [y for _, y in sorted(line.points)]
        if values:
            rows.append((line.name, sparkline(values), f"{min(values):.4g}", f"{max(values):.4g}"))
    return _table(("", "over the steps", "least", "most"), rows)


def sparkline(values: Sequence[float]) -> str:
    """Values as block characters, the least one the lowest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1))] for value in values)


def _rows(name: str, rows: Sequence[dict[str, object]]) -> str:
    names, lines = table_of(rows)
    off = sum(not row["ok"] for row in rows)
    body = _table(
        ("what", "verdict", *names, "expected and got"),
        ((str(row["name"]), _mark(bool(row["ok"])), *cells, str(row["note"])) for row, cells in lines),
    )
    return f"<details><summary>{name}: {len(rows)} compared, {off} off</summary>\n\n{body}\n\n</details>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


class _Image(str):
    """An image of ours, which stands in a cell as it is; a text that merely looks like one is escaped."""

    __slots__ = ()


def _cell(text: str) -> str:
    return text if isinstance(text, _Image) else _text(text)


def _text(text: str) -> str:
    """A text whose characters mean themselves in Markdown, on one line."""
    plain = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def _image(name: str, uri: str) -> _Image:
    return _Image(f"![{name}]({uri})")


def _svg(name: str, svg: str) -> str:
    data = base64.b64encode(svg.encode()).decode("ascii")
    return _image(name, f"data:image/svg+xml;base64,{data}")


def _mark(ok: bool) -> str:
    return "✓ holds" if ok else "✗ off"
