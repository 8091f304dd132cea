"""SVG plots of the comparison. Needs matplotlib (`pip install edgedm[bench]`)."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedm.errors import ToolchainError
from edgedm.training.comparison.report import TITLES, Cell, width

Rows = Mapping[str, Sequence[Cell]]
Draw = Callable[[Any, Rows], bool]  # fills axes; False where there is nothing to show


def draw_all(rows: Rows, folder: Path) -> list[str]:
    """Write the plots that the rows have figures for; return their file names. The same figures give the same files.

    Raises `ToolchainError` without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ToolchainError("plots need matplotlib: pip install 'edgedm[bench]'") from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    plots: dict[str, Draw] = {f"frechet-{family}.svg": _bars(family) for family in TITLES}
    plots |= {
        "frechet-all.svg": _all,
        "loss-binarydm.svg": _curves("binarydm"),
        "changed-codes.svg": _per_layer("changed_codes", "share of integer weights changed"),
        "dilatable.svg": _dilatable,
        "lsq-efficientdm.svg": _traces,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "edgedm", "svg.fonttype": "none", "font.size": 9}):
        for name, draw in plots.items():
            figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
            if draw(axes, rows):
                figure.savefig(folder / name, metadata={"Date": None})
                written.append(name)
            pyplot.close(figure)
    return written


def _family(rows: Rows, family: str) -> dict[str, Sequence[Cell]]:
    return {key.partition("/")[2]: cells for key, cells in rows.items() if key.startswith(family + "/")}


def _bars(family: str) -> Draw:
    def draw(axes: Any, rows: Rows) -> bool:
        own = _family(rows, family)
        for place, cells in enumerate(own.values()):
            values = [cell["frechet"] for cell in cells]
            axes.bar(place, statistics.fmean(values), color="#88aacc")
            axes.plot([place] * len(values), values, "k_")
        axes.set_xticks(range(len(own)), own.keys(), rotation=15)
        axes.set_ylabel("digit Frechet distance")
        axes.set_title(TITLES[family])
        return len(own) > 1

    return draw


def _all(axes: Any, rows: Rows) -> bool:
    """Every row of every family, one below the other, coloured by width."""
    widths = sorted({width(cells) for cells in rows.values()})
    means = {key: statistics.fmean(cell["frechet"] for cell in cells) for key, cells in rows.items()}
    order = sorted(rows, key=means.__getitem__, reverse=True)
    for number, bits in enumerate(widths):
        places = [place for place, key in enumerate(order) if width(rows[key]) == bits]
        axes.barh(places, [means[order[place]] for place in places], color=f"C{number}", label=bits)
    for place, key in enumerate(order):
        axes.plot([cell["frechet"] for cell in rows[key]], [place] * len(rows[key]), "k|")
    axes.set_yticks(range(len(order)), order, fontsize=7)
    axes.margins(y=0.01)
    axes.figure.set_size_inches(6.4, 0.6 + 0.16 * len(order))
    axes.set_xlabel("digit Frechet distance")
    axes.legend()
    return len(order) > 1


def _curves(family: str) -> Draw:
    def draw(axes: Any, rows: Rows) -> bool:
        own = _family(rows, family)
        for name, cells in own.items():
            points = [point for curve in cells[0]["curves"].values() for point in curve]
            axes.plot([p["iteration"] for p in points], [p["eps"] for p in points], label=name)
        axes.set_xlabel("iteration")
        axes.set_ylabel("eps error of training batches")
        axes.set_yscale("log")
        if own:
            axes.legend()
        return bool(own)

    return draw


def _per_layer(figure: str, label: str) -> Draw:
    def draw(axes: Any, rows: Rows) -> bool:
        shown = {key: cells[0][figure] for key, cells in rows.items() if figure in cells[0]}
        for key, layers in shown.items():
            axes.plot(sorted(layers.values()), ".-", label=key.partition("/")[2])
        axes.set_xlabel("layers, each row sorted by itself")
        axes.set_ylabel(label)
        if shown:
            axes.legend()
        return bool(shown)

    return draw


def _dilatable(axes: Any, rows: Rows) -> bool:
    for cells in rows.values():
        if "dilation" in cells[0]:
            shares = sorted((share, path) for path, (share, _) in cells[0]["dilation"]["layers"].items())
            axes.barh(range(len(shares)), [share for share, _ in shares], color="#88aacc")
            axes.set_yticks(range(len(shares)), [path for _, path in shares], fontsize=7)
            axes.margins(y=0.01)
            axes.figure.set_size_inches(6.4, 0.6 + 0.13 * len(shares))
            axes.set_xlabel("share of input channels that can be dilated")
            return True
    return False


def _traces(axes: Any, rows: Rows) -> bool:
    shown = {key: cells for key, cells in rows.items() if "trace" in cells[0]}
    for color, (key, cells) in zip(("C0", "C1", "C2", "C3"), shown.items(), strict=False):
        for cell in cells:
            points = cell["trace"]
            label = key if cell is cells[0] else None
            axes.plot(
                [p["cpu_seconds"] for p in points], [p["frechet"] for p in points], ".-", color=color, label=label
            )
    axes.set_xlabel("processor seconds of training, calibration included")
    axes.set_ylabel("digit Frechet distance")
    axes.set_title("250 images, 25 steps", fontsize=9)
    axes.set_ylim(bottom=0)
    if shown:
        axes.legend()
    return bool(shown)
