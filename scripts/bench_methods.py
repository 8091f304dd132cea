"""Compare all methods on a small model of 8x8 digits: train and measure every row with every seed, write the report.

    python scripts/bench_methods.py --runs runs/methods --jobs 2
    python scripts/bench_methods.py --runs runs/methods --rows 'bidm/*' --seeds 0
    python scripts/bench_methods.py --runs runs/methods --report          only write docs/methods from what is there

A cell is a row and a seed; it runs in a process of its own and writes RUNS/cells/NAME.json when it is done. A rerun
skips the cells whose configuration has not changed. The float base is trained first, once, into RUNS/base. The same
command uses a GPU where torch sees one.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgedm.models import load, save
from edgedm.models.checkpoint import WEIGHTS_FILE
from edgedm.models.presets import DIGITS_8
from edgedm.training.base import train_base
from edgedm.training.comparison.cell import run_cell, save_cell
from edgedm.training.comparison.plots import draw_all
from edgedm.training.comparison.report import by_row, read_cells, report, write_page
from edgedm.training.comparison.rows import ROWS, Row, digest
from edgedm.training.options import LoopOptions

BASE = LoopOptions(iterations=3000, learning_rate=1e-3, batch=64, bf16=True)
DOCS = Path(__file__).parents[1] / "docs" / "methods"
LIMIT = 20 * 60  # seconds of processor time that a cell may take: a busy machine doesn't count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="folder of the base and the cells")
    parser.add_argument("--rows", nargs="*", default=["*"], help="patterns of family/row, such as 'bidm/*'")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies iterations; below 1 also the samples")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, one thread each")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of index.md and the plots")
    parser.add_argument("--report", action="store_true", help="run no cell")
    parser.add_argument("--cell", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        one_cell(arguments.runs, arguments.cell[0], int(arguments.cell[1]), arguments.scale)
        return
    failed = []
    if not arguments.report:
        train_float(arguments.runs)
        failed = run_cells(arguments.runs, arguments.rows, arguments.seeds, arguments.scale, arguments.jobs)
    write_report(arguments.runs, arguments.docs, arguments.scale)
    if failed:
        sys.exit(f"{len(failed)} cells failed: {', '.join(failed)}; see {arguments.runs / 'logs'}")


def train_float(runs: Path) -> None:
    """Train the float model unless it is there; it is the same whatever the scale."""
    folder = runs / "base" / "checkpoint"
    if not folder.exists():
        save(train_base(dict(DIGITS_8), runs / "base" / "state", BASE), folder)


def base_digest(runs: Path) -> str:
    weights = runs / "base" / "checkpoint" / WEIGHTS_FILE
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def run_cells(runs: Path, patterns: list[str], seeds: list[int], scale: float, jobs: int) -> list[str]:
    """Run the cells that are missing or out of date; return the names of those that failed."""
    base = base_digest(runs)
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row.key, pattern) for pattern in patterns)]
    if not rows:
        sys.exit(f"no row matches {' '.join(patterns)}; there are {', '.join(row.key for row in ROWS)}")
    todo = [(row, seed) for seed in seeds for row in rows if not is_done(runs, row, seed, scale, base)]
    print(f"{len(rows) * len(seeds)} cells, {len(todo)} to run", flush=True)

    def spawn(job: tuple[Row, int]) -> str | None:
        row, seed = job
        name = cell_name(row.key, seed)
        log = runs / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--runs", str(runs), "--scale", str(scale), "--cell", row.key, str(seed)]
        began = time.monotonic()
        with log.open("w") as stream:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            code = subprocess.run(command, stdout=stream, stderr=stream, env=environment).returncode
        print(f"{name}: {'done' if code == 0 else f'failed ({code})'} in {time.monotonic() - began:.0f} s", flush=True)
        return name if code else None

    with ThreadPoolExecutor(jobs) as pool:
        return [name for name in pool.map(spawn, todo) if name is not None]


def is_done(runs: Path, row: Row, seed: int, scale: float, base: str) -> bool:
    path = runs / "cells" / f"{cell_name(row.key, seed)}.json"
    if not path.exists():
        return False
    return bool(json.loads(path.read_text())["digest"] == digest(row.configuration(seed, scale, base)))


def one_cell(runs: Path, key: str, seed: int, scale: float) -> None:
    import torch

    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    torch.set_num_threads(1)
    row = next(row for row in ROWS if row.key == key)
    name = cell_name(key, seed)
    figures = run_cell(row, seed, scale, load(runs / "base" / "checkpoint"), base_digest(runs), runs / "states" / name)
    save_cell(figures, runs / "cells" / f"{name}.json")


def cell_name(key: str, seed: int) -> str:
    """Return the file name of a cell."""
    return f"{key.replace('/', '_').replace('+', '')}-{seed}"


def write_report(runs: Path, docs: Path, scale: float) -> None:
    """Write the page and the plots from the cells of this scale; those of other configurations are left out."""
    base, rows = base_digest(runs), {row.key: row for row in ROWS}
    cells = [
        cell
        for cell in read_cells(runs / "cells")
        if cell["row"] in rows and cell["digest"] == digest(rows[cell["row"]].configuration(cell["seed"], scale, base))
    ]
    order = list(rows)
    text = report(cells, order)
    names = draw_all(by_row(cells, order), docs)
    pictures = "\n\n".join(f"![{name.removesuffix('.svg')}]({name})" for name in names)
    write_page(docs / "index.md", f"{text}\n\n{pictures}".strip())
    print(docs / "index.md")


if __name__ == "__main__":
    main()
