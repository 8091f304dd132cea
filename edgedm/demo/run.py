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
from edgedm.quant.policy import policy_of
from edgedm.verify import verify
from edgedm.verify.report import number

BASE = "zoo:digits-fp32"
LABELS = tuple(range(10))  # one image of each digit
Images = NDArray[np.float32]


@dataclass(frozen=True)
class _Result:
    """What the demo learned about one low-bit model; `sizes` are bytes by name, golden data not counted."""

    name: str
    bits: str
    full: Images
    torch: Images
    native: Images
    verification: Outcome
    sizes: dict[str, int]
    speed: Outcome


def run(output: Path, models: Sequence[str]) -> Outcome:
    """See `edgedm.demo`; `models` are checkpoints of the digits model."""
    output.mkdir(parents=True, exist_ok=True)
    progress.stage(f"full precision: export {BASE} and draw with PyTorch")
    full_onnx = output / "fp32.onnx"
    export(BASE, full_onnx)
    full = draw_torch(BASE, LABELS)
    results = [_one(name, output, full_onnx, full) for name in models]
    rows = [results[0].full, *(images for r in results for images in (r.torch, r.native))]
    written = write(output, _page(results), rows)
    figures: dict[str, float] = {}
    for r in results:
        figures |= {f"{r.name}.verify.{name}": value for name, value in r.verification.figures.items()}
        figures |= {f"{r.name}.{name}": value for name, value in r.speed.figures.items()}
        figures |= {f"{r.name}.bytes.{name}": float(value) for name, value in r.sizes.items()}
    ok = all(r.verification.ok for r in results)
    return Outcome(ok, figures, {"written": written, "tables": [_plain(results)]})


def write(output: Path, page: Page, rows: Sequence[Images]) -> list[str]:
    """Write the page, and one picture with a row of ten images each; returns their names."""
    html, picture = output / "index.html", output / "images.png"
    with atomic_file(html) as scratch:
        scratch.write_text(render_page(page), encoding="utf-8")
    with atomic_file(picture) as scratch:
        scratch.write_bytes(encode_png(np.kron(grid(np.concatenate(rows), len(LABELS)), np.ones((4, 4, 1), np.uint8))))
    return [str(html), str(picture)]


def _one(checkpoint: str, output: Path, full_onnx: Path, full: Images) -> _Result:
    name = checkpoint.removeprefix("zoo:")
    graph = output / f"{name}.onnx"
    deployed, bundle_path = graph.with_suffix(".deploy.onnx"), graph.with_suffix(".bundle")
    progress.stage(f"{name}: export")
    export(checkpoint, graph)
    progress.stage(f"{name}: optimize")
    optimize(graph, deployed)
    progress.stage(f"{name}: compile for this machine")
    compile_bundle(deployed, bundle_path)
    progress.stage(f"{name}: verify")
    verification = verify(bundle_path, checkpoint)
    progress.stage(f"{name}: draw with PyTorch and with the native runtime")
    bundle = load_bundle(bundle_path)
    drawn = draw_native(bundle, LABELS)
    progress.stage(f"{name}: time a step against ONNX Runtime")
    threads = tuple(n for n in (1, 2) if n <= len(os.sched_getaffinity(0)))
    speed = bench_model(bundle_path, ("onnxruntime",), threads)
    files = bundle.manifest.files
    sizes = {
        "full_onnx": full_onnx.stat().st_size,
        "low_bit_onnx": graph.stat().st_size,
        "bundle": sum(entry.bytes for file, entry in files.items() if not file.startswith("golden/")),
        "weights": bundle.manifest.weights_bytes,
        "program": files["bin/edgedm-sample"].bytes,
    }
    bits = policy_of(load(checkpoint).config.method).nominal
    return _Result(name, bits, full, draw_torch(checkpoint, LABELS), drawn, verification, sizes, speed)


def _page(results: Sequence[_Result]) -> Page:
    tiles = []
    for r in results:
        parity = "parity holds" if r.verification.ok else "parity does not hold"
        tiles.append(Tile("yes" if r.verification.ok else "no", f"{r.name}: {parity}", r.verification.ok))
        ratio = r.speed.figures["ratio.onnxruntime_fp32.t1"]
        tiles.append(Tile(f"{ratio:.1f}x", f"{r.name}: one step, against ONNX Runtime float32, one thread"))
        small = r.sizes["full_onnx"] / (r.sizes["weights"] + r.sizes["program"])
        tiles.append(Tile(f"{small:.1f}x", f"{r.name}: program and weights smaller than the float32 ONNX file"))
    facts = {"edgedm": edgedm.__version__, "machine": platform.machine(), "Python": platform.python_version()}
    lead = "From a PyTorch checkpoint to a native program, with numbers that agree."
    return Page("edgedm demo", lead, tuple(tiles), tuple(_section(r) for r in results), facts)


def _section(r: _Result) -> Section:
    same_noise = "same noise, one column a digit"
    images: tuple[ImageRow, ...] = (
        image_row("full precision", f"PyTorch, float32; {same_noise}", r.full),
        image_row(f"{r.bits} in PyTorch", "the low-bit checkpoint, simulated", r.torch),
        image_row(f"{r.bits} native", "bin/edgedm-sample of the bundle, without Python", r.native),
    )
    lead = f"{r.name}: {STEPS} steps of DDIM, guidance {GUIDANCE:g}."
    tables = (_parity_table(r), _size_table(r), _speed_table(r.speed))
    return Section(f"{r.name} ({r.bits})", lead, tuple(map(str, LABELS)), images, tables)


def _parity_table(r: _Result) -> Table:
    rows = []
    for level in r.verification.details["levels"]:
        figures = ", ".join(f"{name} {number(value)}" for name, value in level["figures"].items())
        off = sum(not row["ok"] for row in level["rows"])
        cells = (level["name"], level["demand"], str(len(level["rows"])), str(off), figures)
        rows.append(TableRow(cells, ok=level["ok"]))
    headings = ("level", "demand", "compared", "off", "figures")
    return Table("Parity with PyTorch", headings, tuple(rows), "Every level must hold.", texts=(0, 1, 4))


_SIZES = {
    "full_onnx": "float32 ONNX",
    "low_bit_onnx": "low-bit ONNX",
    "bundle": "bundle, golden data not counted",
    "weights": "bytes of weights",
    "program": "program (code)",
}


def _size_table(r: _Result) -> Table:
    rows = [
        TableRow((_SIZES[name], bytes_text(size)), bar=bar)
        for (name, size), bar in zip(r.sizes.items(), bars(list(r.sizes.values())), strict=True)
    ]
    note = "A bundle holds objects, a library and a program: ship one."
    return Table("Size", ("what", "bytes"), tuple(rows), note)


def _speed_table(speed: Outcome) -> Table:
    rows = []
    for threads, engines in speed.details["timings"].items():
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
        lines.append([r.name, "parity", "holds" if r.verification.ok else "does NOT hold"])
        lines += [[r.name, _SIZES[name], bytes_text(size)] for name, size in r.sizes.items()]
        ratios = {name: value for name, value in r.speed.figures.items() if name.startswith("ratio.")}
        lines += [[r.name, name, f"{value:.2f}"] for name, value in ratios.items()]
    return lines
