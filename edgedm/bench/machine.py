"""What one core of this machine can do: peaks of four kinds of arithmetic, and bandwidth by footprint.

Bandwidth is that of a stream that is read and one that is written, both counted, as a norm or a carried feature
moves them: y[i] = x[i] * factor over arrays that together take the footprint. The caches' sizes are the operating
system's. Rates are those of the fastest tenth of all calls: what the machine does when nothing else runs on it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from edgedm.bench.bound import BYTE_SHUFFLE, FMA, INT8_DOT, XOR_POPCOUNT
from edgedm.bench.limits import limit
from edgedm.bench.timing import each_call
from edgedm.outcome import Outcome
from edgedm.targets import Target, resolve
from edgedm.targets.kernels.builder import build, load, loop, splat, store
from edgedm.targets.kernels.spec import TensorSpec
from edgedm.targets.tuning import tiling

LAYER_KIND = {XOR_POPCOUNT: "bconv", BYTE_SHUFFLE: "wconv", INT8_DOT: "qconv", FMA: "fconv"}
"""Kind of arithmetic -> kind of layer whose `limit` it is."""

SMALLEST, LARGEST = 1 << 14, 1 << 27
"""Footprints that are measured: from half of the smallest first-level cache to far beyond the last level."""

_UNROLLED = 4
_CALL_BYTES = 1 << 20  # a call moves at least this much, so that its overhead doesn't show
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Work:
    """`run` does `amount` of something: multiply-accumulates, or bytes read and written."""

    run: Callable[[], object]
    amount: int


def arithmetic(kinds: Iterable[str], target: Target) -> dict[str, Work]:
    """Loops at the machine's limit for each of `kinds` (see `limits`); amounts are multiply-accumulates."""
    limits = {kind: limit(LAYER_KIND[kind], target) for kind in kinds}
    return {kind: Work(each.run, each.macs) for kind, each in limits.items()}


def stream(footprint: int, target: Target) -> Work:
    """Copy and scale half of `footprint` bytes into the other half, as often as makes a call long enough."""
    lanes = tiling.float_lanes(target)
    turns = max(1, footprint // 2 // (4 * lanes * _UNROLLED))
    count = turns * lanes * _UNROLLED
    rounds = max(1, _CALL_BYTES // (2 * 4 * count))

    def body(x: Any, y: Any) -> None:
        with loop(rounds) as turn:
            factor = splat(tvm.tirx.Cast("float32", turn), lanes)  # or LLVM would see that all rounds are one
            with loop(turns) as block:
                for part in range(_UNROLLED):
                    at = (block * _UNROLLED + part) * lanes
                    store(y, load(x, at, lanes) * factor, at, lanes)

    function = build("stream", [("x", TensorSpec((count,), "float32")), ("y", TensorSpec((count,), "float32"))], body)
    run = tvm.compile(tvm.IRModule({"stream": function}), target.tvm())["stream"]
    x, y = (tvm.runtime.tensor(np.ones(count, np.float32)) for _ in range(2))
    return Work(lambda: run(x, y), 2 * 4 * count * rounds)


def footprint_class(size: int) -> int:
    """The measured footprint that stands for `size` bytes: the next power of two, within what is measured."""
    return min(max(1 << max(0, size - 1).bit_length(), SMALLEST), LARGEST)


def level_of(footprint: int) -> str:
    """The cache level that holds `footprint` bytes, or `memory`."""
    return next((name for name, size in cache_levels().items() if footprint <= size), "memory")


@cache
def cache_levels() -> Mapping[str, int]:
    """Sizes of the data caches, L1 first; empty where the system doesn't tell."""
    found = {}
    for index in sorted(_CACHES.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.rstrip("KMG")) * _UNITS.get(size[-1], 1)
    return dict(sorted(found.items()))


def bench_machine(target: str = "host", seconds: float = 0.5) -> Outcome:
    """Measure the limits of one core: arithmetic of every kind and bandwidth of every cache level.

    Figures: `peak_gmacs.<kind>` and `bandwidth_gbs.<level>` (at half of each level's size, and far beyond the last).
    `details["bandwidth"]` lists every footprint measured.
    """
    chosen = resolve(target)
    footprints = [1 << power for power in range(int(math.log2(SMALLEST)), int(math.log2(LARGEST)) + 1)]
    works = arithmetic(LAYER_KIND, chosen) | {str(size): stream(size, chosen) for size in footprints}
    timing = each_call({name: work.run for name, work in works.items()}, seconds)
    rate = {name: work.amount / timing[name].low / 1e9 for name, work in works.items()}
    figures = {f"peak_gmacs.{kind}": rate[kind] for kind in LAYER_KIND}
    for name, size in cache_levels().items():
        figures[f"bandwidth_gbs.{name}"] = rate[str(footprint_class(size // 2))]
    figures["bandwidth_gbs.memory"] = rate[str(LARGEST)]
    rows = [{"footprint": size, "level": level_of(size), "gbs": rate[str(size)]} for size in footprints]
    return Outcome(True, figures, {"target": chosen.name, "caches": dict(cache_levels()), "bandwidth": rows})
