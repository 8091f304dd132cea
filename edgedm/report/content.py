"""What a report says, before it is a page: both forms are made of the same content."""

import base64
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.images import encode_png, to_pixels
from edgedm.outcome import Outcome
from edgedm.report.charts import Heat, Line, Plot
from edgedm.verify.evidence import Evidence
from edgedm.verify.report import UNBOUNDED, number, verdict

Floats = NDArray[np.float32]
Details = Mapping[str, Any]

WORST_LAYERS = 40
"""Layers that a heat map shows: those furthest from float64, or with the most flips."""

LEAST_DB = -300.0
"""Where a plot draws a layer of which no signal is left; ratios reach as far above zero."""


@dataclass(frozen=True)
class Pair:
    """One image of both sides and what tells them apart, as data URIs; `times` is by how much the difference grew."""

    caption: str
    torch: str
    ours: str
    difference: str
    times: str


@dataclass(frozen=True)
class Frame:
    """A moment of the trajectory on both sides."""

    step: int
    torch: str
    ours: str


@dataclass(frozen=True)
class Content:
    """All of a report."""

    ok: bool
    verdict: str
    artefact: str
    against: str
    schedule: str
    failure: Details | None
    levels: Sequence[Details]
    seconds: Mapping[str, str]
    gates: Sequence[Details]
    pairs: Sequence[Pair]
    frames: Sequence[Frame]
    plots: Sequence[Plot]
    heats: Sequence[Heat]
    sizes: Sequence[tuple[str, str]]
    speed: Sequence[tuple[str, str]]
    facts: Mapping[str, str]


def content_of(outcome: Outcome, evidence: Evidence) -> Content:
    """Gather what a report of this run says."""
    details = outcome.details
    levels = {level["name"]: level for level in details["levels"]}
    schedule = details["schedule"]
    plots = [*_step_plots(levels.get("step")), *_layer_plots(levels.get("layer"))]
    return Content(
        ok=outcome.ok,
        verdict=("✓ " if outcome.ok else "✗ ") + verdict(outcome),
        artefact=details["artefact"],
        against=details["against"],
        schedule=f"{schedule['sampler']}, {schedule['steps']} steps",
        failure=details.get("first_failure"),
        levels=details["levels"],
        seconds={name: f"{outcome.figures.get(f'{name}.seconds', 0.0):.1f}" for name in levels},
        gates=details["gates"],
        pairs=_pairs(evidence),
        frames=[Frame(step, _uri(left), _uri(right)) for step, left, right in evidence.strip],
        plots=[plot for plot in plots if not plot.empty],
        heats=[heat for heat in _heats(levels.get("layer")) if not heat.empty],
        sizes=_sizes(evidence.sizes),
        speed=_speed(evidence.speed),
        facts=evidence.facts,
    )


def table_of(rows: Sequence[Details]) -> tuple[list[str], list[tuple[Details, list[str]]]]:
    """The headings of the figures of some rows, and each row with its cells; those that are off come first."""
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    ordered = sorted(rows, key=lambda row: bool(row["ok"]))
    return names, [(row, [figure(row["figures"].get(name)) for name in names]) for row in ordered]


def figure(value: float | None) -> str:
    """A figure for people; nothing for none."""
    if value is None:
        return ""
    if abs(value) >= UNBOUNDED:
        return "∞" if value > 0 else "-∞"
    return number(value)


def _pairs(evidence: Evidence) -> list[Pair]:
    found = []
    rows = zip(evidence.labels, evidence.torch, evidence.ours, strict=True)
    for image, (label, torch, ours) in enumerate(rows):
        gap = np.abs(ours.astype(np.float64) - torch)
        top = float(np.max(gap)) if np.isfinite(gap).all() else np.inf
        scaled = gap / top * 2 - 1 if np.isfinite(top) and top > 0 else np.full_like(gap, -1.0)
        words = f"at most {top / 2:.2g} of the range" if np.isfinite(top) else "not finite"
        times = "no difference" if top == 0 else words
        found.append(
            Pair(f"noise {image}, label {label}", _uri(torch), _uri(ours), _uri(scaled.astype(np.float32)), times)
        )
    return found


def _uri(image: Floats) -> str:
    """An image f32[C, H, W] as a PNG inside the page; of other than 1 or 3 channels the first."""
    shown = image if image.shape[0] in (1, 3) else image[:1]
    pixels = to_pixels(shown[None])[0].transpose(1, 2, 0)
    return "data:image/png;base64," + base64.b64encode(encode_png(np.ascontiguousarray(pixels))).decode("ascii")


def _moments(level: Details | None) -> list[tuple[str, Details]]:
    """What each row did at each step; ratios of what is not finite are drawn at the lower end of the scale."""
    rows = level["rows"] if level else []
    return [
        (row["name"], {key: max(value, LEAST_DB) if key.endswith("snr_db") else value for key, value in each.items()})
        for row in rows
        for each in row.get("moments", ())
    ]


def _step_plots(level: Details | None) -> list[Plot]:
    found = [moment for _, moment in _moments(level)]
    lines = [
        Line("edgedm", "ours", [(each["step"], each["snr_db"]) for each in found]),
        Line("torch float32", "theirs", [(each["step"], each["torch32_snr_db"]) for each in found]),
    ]
    note = "Median over images of a single step's output against torch in float64; both curves on the same inputs."
    return [Plot("Single steps: signal-to-noise ratio", note, "dB", lines)]


def _layer_plots(level: Details | None) -> list[Plot]:
    ratios: dict[float, list[float]] = {}
    codes: dict[float, float] = {}
    flips: dict[float, float] = {}
    for _, moment in _moments(level):
        if "snr_db" in moment:
            ratios.setdefault(moment["step"], []).append(moment["snr_db"])
        codes[moment["step"]] = codes.get(moment["step"], 0.0) + moment.get("codes", 0.0)
        flips[moment["step"]] = flips.get(moment["step"], 0.0) + moment.get("flips", 0.0)
    snr = [
        Line("median layer", "ours", [(step, statistics.median(each)) for step, each in ratios.items()]),
        Line("worst layer", "worst", [(step, min(each)) for step, each in ratios.items()]),
    ]
    rates = [(step, 1e6 * flips[step] / codes[step]) for step in codes if codes[step]]
    return [
        Plot(
            "Layers alone: signal-to-noise ratio",
            "Every layer on torch's own inputs, against float64; errors do not add up.",
            "dB",
            snr,
        ),
        Plot(
            "Codes that rounding decided otherwise",
            "Flips per million codes, all layers together; only those that a threshold within rounding explains pass.",
            "per million",
            [Line("flips", "worst", rates)],
            floor=0.0,
        ),
    ]


def _heats(level: Details | None) -> list[Heat]:
    ratios: dict[str, dict[int, float]] = {}
    flips: dict[str, dict[int, float]] = {}
    for name, moment in _moments(level):
        step = int(moment["step"])
        if "snr_db" in moment:
            ratios.setdefault(name, {})[step] = moment["snr_db"]
        if moment.get("flips"):
            flips.setdefault(name, {})[step] = 1e6 * moment["flips"] / moment["codes"]
    worst = sorted(ratios, key=lambda name: min(ratios[name].values()))[:WORST_LAYERS]
    most = sorted(flips, key=lambda name: -max(flips[name].values()))[:WORST_LAYERS]
    shown = {name: ratios[name] for name in ratios if name in worst}
    note = f"The {len(shown)} of {len(ratios)} layers that are furthest from float64, in the order in which they run."
    found = [Heat("Signal-to-noise ratio by layer", note, "dB", shown, (60, 90, 120, 135, 145))]
    if flips:
        note = f"The {len(most)} layers in which rounding decided a code otherwise."
        rows = {name: flips[name] for name in flips if name in most}
        found.append(Heat("Flips by layer", note, "per million codes", rows, (10, 30, 100, 300, 1000), True))
    return found


def _sizes(sizes: Mapping[str, float]) -> list[tuple[str, str]]:
    words = {
        "bytes.bundle": "the bundle without golden data",
        "bytes.shipped": "what a program loads: weights and library",
        "bytes.graph": "the graph's files",
        "bytes.float32": "the parameters in float32",
    }
    rows = [(text, bytes_text(sizes[name])) for name, text in words.items() if name in sizes]
    ratio = sizes.get("size.shipped_ratio", sizes.get("size.ratio"))
    return rows + ([("smaller than float32", f"{ratio:.1f} times")] if ratio else [])


def _speed(speed: Mapping[str, float]) -> list[tuple[str, str]]:
    if not speed:
        return []
    rows = [
        ("edgedm, one step on one thread", f"{speed['edgedm']:.3g} ms"),
        ("torch in float32 arithmetic, one thread", f"{speed['torch']:.3g} ms"),
    ]
    return [*rows, ("faster than torch", f"{speed['torch'] / speed['edgedm']:.1f} times")]


def bytes_text(count: float) -> str:
    """A size in the unit that leaves one to four digits."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
