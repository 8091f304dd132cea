"""Hold the figures of a run against the thresholds of a gate file; each threshold is a row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgedm.verify.gate import KernelGate, Tables
from edgedm.verify.report import Level, Row, number


def with_requirements(levels: Sequence[Level], tables: Tables) -> list[Level]:
    """The levels, those marked that the gate file does not require."""
    return [replace(level, required=tables.of_level(level.name).required) for level in levels]


def gate_rows(
    levels: Sequence[Level], tables: Tables, sizes: Mapping[str, float], speed: Mapping[str, float]
) -> list[Row]:
    """A row for every threshold on what was run and measured: `<table>.<key>`, actual and allowed."""
    rows: list[Row] = []
    for level in levels:
        rows += _level_rows(level, tables)
    if sizes:
        rows += _most("size.max_bundle_bytes", tables.size.max_bundle_bytes, sizes.get("bytes.bundle"))
        rows += _most("size.max_shipped_bytes", tables.size.max_shipped_bytes, sizes.get("bytes.shipped"))
        rows += _least("size.min_ratio", tables.size.min_ratio, sizes.get("size.shipped_ratio"))
    if speed:
        ours, torch = speed.get("edgedm"), speed.get("torch")
        rows += _most("speed.max_step_ms", tables.speed.max_step_ms, ours)
        times = torch / ours if torch and ours else None
        rows += _least("speed.min_times_torch", tables.speed.min_times_torch, times)
    return rows


def _level_rows(level: Level, tables: Tables) -> Iterator[Row]:
    """The thresholds on one level; none where the file says that it does not decide."""
    name, figures, table = level.name, level.figures, tables.of_level(level.name)
    if not table.required:
        return
    if isinstance(table, KernelGate):
        yield from _most(f"{name}.max_use_of_bound", table.max_use_of_bound, figures.get("worst_use_of_bound"))
    elif name == "layer":
        gate = tables.layer
        codes = figures.get("codes", 0.0)
        share = figures.get("flips", 0.0) / codes if codes else 0.0
        yield from _most("layer.max_use_of_bound", gate.max_use_of_bound, figures.get("worst_use_of_bound"))
        yield from _most("layer.max_flip_share", gate.max_flip_share, share)
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
