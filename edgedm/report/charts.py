"""Plots as SVG, written by hand: they stand inside the page, take its colours, and read the same at any width.

Text is drawn at the size that a phone shows (360 units across); wider screens scale the whole plot.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 12, 34

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve; `kind` is its class in the page's style sheet (ours, theirs, worst)."""

    name: str
    kind: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Plot:
    """A plot over the steps of the schedule; `unit` stands at the vertical axis."""

    title: str
    note: str
    unit: str
    lines: Sequence[Line]
    floor: float | None = None  # least value of the axis

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(line.points for line in self.lines)


@dataclass(frozen=True)
class Heat:
    """A value a layer and step, in classes; `limits` are where one class ends and the next begins."""

    title: str
    note: str
    unit: str
    rows: Mapping[str, Mapping[int, float]]
    limits: Sequence[float]
    more_is_worse: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.rows


def draw(plot: Plot, style: str = "") -> str:
    """The plot as SVG; `style` goes inside where it stands alone. Two points that differ by nothing still show."""
    xs = [x for line in plot.lines for x, _ in line.points]
    ys = [y for line in plot.lines for _, y in line.points]
    low, high = (plot.floor if plot.floor is not None else min(ys)), max(ys)
    if plot.floor is not None and high <= low:
        high = low + 1.0  # all at the floor: that is where the line lies
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    left, right = min(xs), max(xs)

    def at(x: float, y: float) -> str:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low)
        down = HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)
        return f"{_LEFT + across * (WIDTH - _LEFT - _RIGHT):.1f},{down:.1f}"

    parts = [_open(plot.title, plot.note, WIDTH, HEIGHT, style)]
    for tick in ticks:
        _, down = at(left, tick).split(",")
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{down}" y2="{down}"/>')
        text = f'<text class="tick" x="{_LEFT - 5}" y="{float(down) + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>'
        parts.append(text)
    for step in _steps(left, right):
        x, _ = at(step, low).split(",")
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle">{step}</text>')
    parts.append(f'<text class="axis" x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    for line in plot.lines:
        places = [at(*point) for point in sorted(line.points)]
        if len(places) > 1:
            parts.append(f'<polyline class="line {line.kind}" points="{" ".join(places)}"/>')
        for (step_at, value), place in zip(sorted(line.points), places, strict=True):
            cx, cy = place.split(",")
            tip = f"{line.name}, step {step_at:g}: {value:.4g} {plot.unit}"
            dot = f'<circle class="dot {line.kind}" cx="{cx}" cy="{cy}" r="2.4"><title>{escape(tip)}</title></circle>'
            parts.append(dot)
    parts.append("</svg>")
    return "".join(parts)


ROW, CELL_LEFT = 13, 150
"""Height of a layer in a heat map, and where its cells begin: names stand before."""


def draw_heat(heat: Heat, style: str = "") -> str:
    """The heat map as SVG; steps at which a layer was not looked at stay empty."""
    steps = sorted({step for row in heat.rows.values() for step in row})
    width = (WIDTH - CELL_LEFT - 4) / max(1, len(steps))
    height = ROW * len(heat.rows) + 30
    parts = [_open(heat.title, heat.note, WIDTH, height, style)]
    columns = {step: CELL_LEFT + number * width for number, step in enumerate(steps)}
    for number, (name, values) in enumerate(heat.rows.items()):
        top = number * ROW
        parts.append(
            f'<text class="tick" x="{CELL_LEFT - 4}" y="{top + 10}" text-anchor="end">{escape(_clip(name))}'
            f"<title>{escape(name)}</title></text>"
        )
        for step, value in values.items():
            tip = f"{name}, step {step}: {value:.4g} {heat.unit}"
            parts.append(
                f'<rect class="h{shade(heat, value)}" x="{columns[step]:.1f}" y="{top + 1}" '
                f'width="{max(width - 0.6, 0.8):.1f}" height="{ROW - 2}"><title>{escape(tip)}</title></rect>'
            )
    for step in _steps(steps[0], steps[-1]):
        if step in columns:
            x = columns[step] + width / 2
            parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 17}" text-anchor="middle">{step}</text>')
    middle = (WIDTH + CELL_LEFT) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{height - 4}" text-anchor="middle">step</text></svg>')
    return "".join(parts)


def shade(heat: Heat, value: float) -> int:
    """The class of a value, the worst one 0."""
    below = sum(value >= limit for limit in heat.limits)
    return len(heat.limits) - below if heat.more_is_worse else below


def legend(heat: Heat) -> list[tuple[str, str]]:
    """(class, words) of a heat map, the worst first."""
    edges = [f"{limit:g}" for limit in heat.limits]
    words = [f"below {edges[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(edges)), f"from {edges[-1]}"]
    if heat.more_is_worse:
        words.reverse()
    return [(f"h{number}", f"{text} {heat.unit}") for number, text in enumerate(words)]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, `count` steps or so apart; two at least."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough)
    first = math.floor(low / step)
    last = math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _steps(first: float, last: float) -> list[int]:
    """Some whole steps from the first to the last."""
    span = int(last - first)
    if span <= 0:
        return [int(first)]
    stride = max(1, round(span / 5))
    return [int(first) + number * stride for number in range(span // stride + 1)]


def _open(title: str, note: str, width: int, height: int, style: str) -> str:
    inside = f"<style>{style}</style>" if style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"{title}. {note}", quote=True)}">{inside}'
    )


def _clip(name: str) -> str:
    return name if len(name) <= 25 else "…" + name[-24:]
