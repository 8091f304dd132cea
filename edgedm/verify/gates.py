"""Hold the figures of a run against the thresholds of a gate file; each threshold is a row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgedm.verify.gate import KernelGate, Tables
from edgedm.verify.report import Level, Row, number
from edgedm.verify.request import Request


def with_requirements(levels: Sequence[Level], tables: Tables) -> list[Level]:
    """The levels, those marked that the gate file does not require."""
    return [replace(level, required=tables.of_level(level.name).required) for level in levels]


def gate_rows(
    levels: Sequence[Level],
    tables: Tables,
    sizes: Mapping[str, float],
    speed: Mapping[str, float],
    of_bundle: bool = True,
) -> list[Row]:
    """A row for every threshold: `<table>.<key>`, actual and allowed.

    Those of size and speed are of a bundle, so a graph has none; of a bundle that was not measured they fail.
    """
    rows: list[Row] = []
    for level in levels:
        rows += _level_rows(level, tables)
    if of_bundle:
        rows += _most("size.max_bundle_bytes", tables.size.max_bundle_bytes, sizes.get("bytes.bundle"))
        rows += _most("size.max_shipped_bytes", tables.size.max_shipped_bytes, sizes.get("bytes.shipped"))
        rows += _least("size.min_ratio", tables.size.min_ratio, sizes.get("size.shipped_ratio"))
        ours, torch = speed.get("edgedm"), speed.get("torch")
        rows += _most("speed.max_step_ms", tables.speed.max_step_ms, ours)
        times = torch / ours if torch and ours else None
        rows += _least("speed.min_times_torch", tables.speed.min_times_torch, times)
    return rows


def unmeasured_rows(levels: Sequence[Level], known: Sequence[str], request: Request, method: str) -> list[Row]:
    """A failing row for every threshold that the gate file itself wrote on a level that it leaves out.

    `known` are the levels of such an artefact: those of another kind of artefact are not missing. Where arguments
    name the levels, leaving the others out is what was asked for.
    """
    if request.levels is not None and request.levels != request.gate.levels:
        return []
    ran, tables = {level.name for level in levels}, request.tables(method)
    return [
        Row(f"{name}.{key}", False, {"allowed": float(value)}, f"not measured: level {name} did not run")
        for name, values in request.gate.written(method).items()
        if name in known and name not in ran and tables.of_level(name).required
        for key, value in values.items()
        if key not in _NO_THRESHOLDS and value is not None
    ]


_NO_THRESHOLDS = ("required", "samples", "chance")
"""Keys of levels that say how to look, not what to find."""


def _level_rows(level: Level, tables: Tables) -> Iterator[Row]:
    """The thresholds on one level; where the file says that it does not decide, they are told and fail nothing."""
    for row in _thresholds(level, tables):
        yield row if tables.of_level(level.name).required else _told(row)


def _told(row: Row) -> Row:
    return replace(row, ok=True, note=f"not required: {row.note or 'holds'}")


def _thresholds(level: Level, tables: Tables) -> Iterator[Row]:
    name, figures, table = level.name, level.figures, tables.of_level(level.name)
    if isinstance(table, KernelGate):
        yield from _most(f"{name}.max_use_of_bound", table.max_use_of_bound, figures.get("worst_use_of_bound"))
    elif name == "layer":
        gate = tables.layer
        codes = figures.get("codes", 0.0)
        share = figures.get("flips", 0.0) / codes if codes else 0.0
        yield from _most("layer.max_use_of_bound", gate.max_use_of_bound, figures.get("worst_use_of_bound"))
        most = gate.max_flip_share  # a single flip of few codes shows no share
        yield from _most("layer.max_flip_share", max(most, 1.0 / codes) if most and codes else most, share)
        yield from _most("layer.max_left_out", gate.max_left_out, figures.get("left_out"))
    elif name == "step":
        yield from _least("step.min_snr_db", tables.step.min_snr_db, figures.get("snr_db.edgedm"))
    elif name == "trajectory":
        one = tables.trajectory
        yield from _least("trajectory.min_psnr_db", one.min_psnr_db, figures.get("psnr_db.median"))
        yield from _least("trajectory.min_worst_psnr_db", one.min_worst_psnr_db, figures.get("psnr_db.worst"))
    elif name == "distribution":
        shape = tables.distribution
        yield from _least("distribution.min_precision", shape.min_precision, figures.get("precision.independent"))
        yield from _least("distribution.min_recall", shape.min_recall, figures.get("recall.independent"))


def _most(name: str, allowed: float | None, actual: float | None) -> Iterator[Row]:
    if allowed is not None:
        yield _row(name, "at most", allowed, actual, actual is not None and actual <= allowed)


def _least(name: str, allowed: float | None, actual: float | None) -> Iterator[Row]:
    if allowed is not None:
        yield _row(name, "at least", allowed, actual, actual is not None and actual >= allowed)


def _row(name: str, words: str, allowed: float, actual: float | None, ok: bool) -> Row:
    if actual is None:
        return Row(name, False, {"allowed": allowed}, f"expected {words} {number(allowed)}, but nothing measured it")
    note = "" if ok else f"expected {words} {number(allowed)}, got {number(actual)}"
    return Row(name, ok, {"allowed": allowed, "actual": actual}, note)
