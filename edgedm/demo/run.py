"""Run the demo: every verb on built-in low-bit models, and the page that shows what came out."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edgedm
from edgedm import progress
from edgedm.atomic import atomic_file
from edgedm.bench.models import bench_model
from edgedm.bundle import Bundle
from edgedm.bundle import load as load_bundle
from edgedm.demo.page import (
    ImageRow,
    Page,
    Section,
    Table,
    TableRow,
    Tile,
    bars,
    bytes_text,
    image_row,
    render_page,
)
from edgedm.demo.pictures import GUIDANCE, STEPS, draw_native, draw_torch
from edgedm.export import export
from edgedm.images import encode_png, grid
from edgedm.lower import compile as compile_bundle
from edgedm.models import load
from edgedm.outcome import Outcome
from edgedm.passes import optimize
from edgedm.verify import verify
from edgedm.verify.report import number

BASE = "zoo:digits-fp32"
LABELS = tuple(range(10))  # one image of each digit
Images = NDArray[np.float32]


@dataclass(frozen=True)
class _Sizes:
    """Bytes of what a user would ship, golden data not counted."""

    full_onnx: int
    low_bit_onnx: int
    bundle: int
    weights: int
    program: int


@dataclass(frozen=True)
class _Result:
    """What the demo learned about one low-bit model."""

    name: str
    bits: str
    full: Images
    torch: Images
    native: Images
    verification: Outcome
    sizes: _Sizes
    speed: Outcome


def run(output: Path, models: Sequence[str]) -> Outcome:
    """See `edgedm.demo`."""
    output.mkdir(parents=True, exist_ok=True)
    progress.stage(f"full precision: export {BASE} and draw with PyTorch")
    full_onnx = output / "fp32.onnx"
    export(BASE, full_onnx)
    full = draw_torch(BASE, LABELS)
    results = [_one(name, output, full_onnx, full) for name in models]
    page = output / "index.html"
    with atomic_file(page) as scratch:
        scratch.write_text(render_page(_page(results)), encoding="utf-8")
    rows = [results[0].full, *(images for r in results for images in (r.torch, r.native))]
    picture = output / "images.png"
    with atomic_file(picture) as scratch:
        scratch.write_bytes(encode_png(np.kron(grid(np.concatenate(rows), len(LABELS)), np.ones((4, 4, 1), np.uint8))))
    figures: dict[str, float] = {}
    for r in results:
        figures |= {f"{r.bits}.verify.{name}": value for name, value in r.verification.figures.items()}
        figures |= {f"{r.bits}.{name}": value for name, value in r.speed.figures.items()}
        figures |= {f"{r.bits}.bytes.{name}": float(value) for name, value in vars(r.sizes).items()}
    ok = all(r.verification.ok for r in results)
    return Outcome(ok, figures, {"written": [str(page), str(picture)], "tables": [_plain(results)]})


def _one(name: str, output: Path, full_onnx: Path, full: Images) -> _Result:
    stem = name.removeprefix("zoo:")
    graph, deployed, bundle_path = output / f"{stem}.onnx", output / f"{stem}.deploy.onnx", output / f"{stem}.bundle"
    progress.stage(f"{name}: export")
    export(name, graph)
    progress.stage(f"{name}: optimize")
    optimize(graph, deployed)
    progress.stage(f"{name}: compile for this machine")
    compile_bundle(deployed, bundle_path)
    progress.stage(f"{name}: verify")
    verification = verify(bundle_path, name)
    progress.stage(f"{name}: draw with PyTorch and with the native runtime")
    bundle = load_bundle(bundle_path)
    drawn = draw_torch(name, LABELS), draw_native(bundle, LABELS)
    progress.stage(f"{name}: time a step against ONNX Runtime")
    threads = tuple(n for n in (1, 2) if n <= len(os.sched_getaffinity(0)))
    speed = bench_model(bundle_path, ("onnxruntime",), threads)
    bits = sorted(set(load(name).config.roles.values()) - {"float"})
    return _Result(name, bits[0], full, *drawn, verification, _sizes(bundle, graph, full_onnx), speed)


def _sizes(bundle: Bundle, graph: Path, full_onnx: Path) -> _Sizes:
    files = bundle.manifest.files
    shipped = sum(entry.bytes for name, entry in files.items() if not name.startswith("golden/"))
    program = files["bin/edgedm-sample"].bytes
    return _Sizes(full_onnx.stat().st_size, graph.stat().st_size, shipped, bundle.manifest.weights_bytes, program)


def _page(results: Sequence[_Result]) -> Page:
    tiles = []
    for r in results:
        parity = "parity holds" if r.verification.ok else "parity does not hold"
        tiles.append(Tile("yes" if r.verification.ok else "no", f"{r.bits}: {parity}", r.verification.ok))
        ratio = r.speed.figures["ratio.onnxruntime_fp32.t1"]
        tiles.append(Tile(f"{ratio:.1f}x", f"{r.bits}: one step, against ONNX Runtime float32, one thread"))
        small = r.sizes.full_onnx / (r.sizes.weights + r.sizes.program)
        tiles.append(Tile(f"{small:.1f}x", f"{r.bits}: program and weights smaller than the float32 ONNX file"))
    facts = {"edgedm": edgedm.__version__, "machine": platform.machine(), "Python": platform.python_version()}
    lead = "From a PyTorch checkpoint to a native program, and the proof that the numbers agree."
    return Page("edgedm demo", lead, tuple(tiles), tuple(_section(r) for r in results), facts)


def _section(r: _Result) -> Section:
    same_noise = "same noise, one column a digit"
    images: tuple[ImageRow, ...] = (
        image_row("full precision", f"PyTorch, float32; {same_noise}", r.full),
        image_row(f"{r.bits} in PyTorch", "the low-bit checkpoint, simulated", r.torch),
        image_row(f"{r.bits} native", "bin/edgedm-sample of the bundle, without Python", r.native),
    )
    lead = f"{r.name}: {STEPS} steps of DDIM, guidance {GUIDANCE:g}."
    tables = (_parity_table(r), _size_table(r), _speed_table(r))
    return Section(r.bits, lead, tuple(map(str, LABELS)), images, tables)


def _parity_table(r: _Result) -> Table:
    rows = []
    for level in r.verification.details["levels"]:
        figures = ", ".join(f"{name} {number(value)}" for name, value in level["figures"].items())
        off = sum(not row["ok"] for row in level["rows"])
        cells = (level["name"], level["demand"], str(len(level["rows"])), str(off), figures)
        rows.append(TableRow(cells, ok=level["ok"]))
    headings = ("level", "demand", "compared", "off", "figures")
    return Table("Parity with PyTorch", headings, tuple(rows), "Every level must hold.", texts=(0, 1, 4))


def _size_table(r: _Result) -> Table:
    named = {
        "float32 ONNX": r.sizes.full_onnx,
        f"{r.bits} ONNX": r.sizes.low_bit_onnx,
        "bundle, golden data not counted": r.sizes.bundle,
        "bytes of weights": r.sizes.weights,
        "program (code)": r.sizes.program,
    }
    rows = [
        TableRow((name, bytes_text(size)), bar=bar)
        for (name, size), bar in zip(named.items(), bars(list(named.values())), strict=True)
    ]
    return Table("Size", ("what", "bytes"), tuple(rows), "A bundle holds objects, a library and a program: ship one.")


def _speed_table(r: _Result) -> Table:
    rows = []
    for threads, engines in r.speed.details["timings"].items():
        lengths = bars([timing["median"] for timing in engines.values()])
        ours = engines["edgedm"]["median"]
        for (engine, timing), length in zip(engines.items(), lengths, strict=True):
            spread = f"{timing['low'] * 1e3:.2f} - {timing['high'] * 1e3:.2f}"
            ratio = f"{timing['median'] / ours:.2f}"
            cells = (engine, threads.removeprefix("t"), f"{timing['median'] * 1e3:.2f}", spread, ratio)
            rows.append(TableRow(cells, bar=length, emphasis=engine == "edgedm"))
    headings = ("engine", "threads", "ms a step", "first to last decile", "times edgedm's")
    return Table("Speed of one denoising step", headings, tuple(rows), "Median of interleaved runs, batch 1.")


def _plain(results: Sequence[_Result]) -> list[list[str]]:
    lines = []
    for r in results:
        ratios = {name: value for name, value in r.speed.figures.items() if name.startswith("ratio.")}
        lines.append([r.name, "parity", "holds" if r.verification.ok else "does NOT hold"])
        lines.append([r.name, "weights", bytes_text(r.sizes.weights)])
        lines.append([r.name, "program", bytes_text(r.sizes.program)])
        lines.append([r.name, "float32 ONNX", bytes_text(r.sizes.full_onnx)])
        lines += [[r.name, name, f"{value:.2f}"] for name, value in ratios.items()]
    return lines
