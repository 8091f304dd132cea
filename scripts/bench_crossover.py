"""Measure which kernel family multiplies codes fastest, by widths, shape and instruction set.

    python scripts/bench_crossover.py                       all that this machine runs: ten minutes
    python scripts/bench_crossover.py --isa x86-64-v3       only this one; the others keep their figures

Writes targets/tuning/crossover.json, which selection of kernels reads, and docs/bench/crossover.md.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("TVM_BIND_THREADS", "0")
import tvm

from edgedm.bench.limits import family_limit
from edgedm.ops.packing import pack_signs
from edgedm.targets import Target, resolve, x86
from edgedm.targets.kernels import TensorSpec, select
from edgedm.targets.kernels.product_families import able
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.tuning.crossover import BITSERIAL, DOT, FILE, GENERIC, LOOKUP, Crossover, shape_name

DOCS = Path(__file__).parents[1] / "docs" / "bench" / "crossover.md"
ISAS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v3+avxvnni", "x86-64-v4", "x86-64-v4+vnni")
FULL = "x86-64-v4+vnni+vbmi+vpopcntdq"
WIDTHS = ((1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4))
SHAPES = (
    Convolution(32, 32, 128, 128, (3, 3), (1, 1), (1, 1, 1, 1)),
    Convolution(16, 16, 256, 256, (3, 3), (1, 1), (1, 1, 1, 1)),
    Convolution(8, 8, 512, 512, (3, 3), (1, 1), (1, 1, 1, 1)),
    Convolution(16, 16, 256, 256),
    Convolution(1, 64, 512, 512),
    Convolution(1, 1, 512, 512),
)
SHOWN = SHAPES[1]
TURNS = 5
Speeds = dict[str, dict[str, dict[str, float]]]


class SameInstruction(Target):
    """AVX-VNNI's kernels on a machine that has their instruction only as a part of AVX-512: 256 bits, EVEX-encoded."""

    def tvm(self) -> Any:
        """The target that compiles them."""
        features = ["+avx512vl", "+avx512vnni"]
        options = {"mtriple": self.triple, "mcpu": "x86-64-v3", "mattr": features, "num-cores": self.cores}
        return tvm.target.Target({"kind": "llvm", **options})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="+", default=[*ISAS, FULL], help="instruction sets to measure")
    parser.add_argument("--seconds", type=float, default=0.1, help="of timing for each kernel")
    parser.add_argument("--limits", action="store_true", help="measure only what instructions reach alone")
    arguments = parser.parse_args()
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    held = Crossover.model_validate_json(FILE.read_text())
    gmacs, peaks = dict(held.gmacs), dict(held.limits)
    for isa in arguments.isa:
        target = runnable(isa)
        if target is None:
            print(f"{isa}: this machine cannot run it; its figures stay")
            continue
        if not arguments.limits:
            gmacs[isa] = measure(target, arguments.seconds)
        peaks[isa] = measure_limits(target, arguments.seconds)
        order = [name for name in (*ISAS, FULL) if name in gmacs]
        found = Crossover(
            machine=machine(),
            gmacs={name: gmacs[name] for name in order},
            limits={name: peaks[name] for name in order},
        )
        FILE.write_text(found.model_dump_json(indent=1) + "\n")
        DOCS.write_text(document(found))
        print(isa, flush=True)


def runnable(isa: str) -> Target | None:
    """The target of an instruction set, if this machine can run its kernels one way or another."""
    target, here = resolve(isa), x86.detect()
    if target.features <= here:
        return target
    alike = target.features - here <= {"avxvnni"} and {"vnni", "avx512vl"} <= here
    return SameInstruction(**vars(target)) if alike else None


def measure(target: Target, seconds: float) -> Speeds:
    """GMAC/s of kernels by widths, shape and family."""
    speeds: Speeds = {}
    for widths in WIDTHS:
        families = families_of(target, widths)
        found = speeds[pair_name(widths)] = {}
        for shape in SHAPES:
            times = processor_times(calls(target, shape, widths, families), seconds)
            found[shape_name(shape)] = {
                name: round(shape.macs / statistics.median(times[name]) / 1e9, 2) for name in families
            }
    return speeds


def measure_limits(target: Target, seconds: float) -> dict[str, dict[str, float]]:
    """GMAC/s that a family's instructions reach alone, in the best turn, by widths."""
    peaks: dict[str, dict[str, float]] = {}
    for widths in WIDTHS:
        families = [each for each in families_of(target, widths) if each != GENERIC]
        limits = {each: family_limit(each, target, *widths) for each in families}
        times = processor_times({name: limit.run for name, limit in limits.items()}, seconds)
        peaks[pair_name(widths)] = {name: round(limits[name].macs / min(times[name]) / 1e9, 1) for name in families}
    return peaks


def families_of(target: Target, widths: tuple[int, int]) -> list[str]:
    """What is measured: plain loops only on the lowest level."""
    return [each for each in able(target, *widths) if each != GENERIC or target.level == "x86-64"]


def pair_name(widths: tuple[int, int]) -> str:
    return f"W{widths[0]}A{widths[1]}"


def processor_times(engines: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Processor time of a call in each turn: other programs on the machine change it little."""
    counts: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in engines}
    for name, engine in engines.items():
        engine()
        counts[name] = max(1, int(seconds / TURNS / max(_processor_time(engine, 1), 1e-9)))
    for _ in range(TURNS):
        for name, engine in engines.items():
            samples[name].append(_processor_time(engine, counts[name]))
    return samples


def _processor_time(engine: Callable[[], object], count: int) -> float:
    started = time.thread_time()
    for _ in range(count):
        engine()
    return (time.thread_time() - started) / count


def calls(
    target: Target, shape: Convolution, widths: tuple[int, int], families: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """Products of each family with seeded operands: from codes as they lie in memory to float output."""
    op, operands, attrs = request(shape, *widths)
    given = [TensorSpec(operands[0].shape, str(operands[0].dtype)), *operands[1:]]
    kernels = {family: select(op, given, attrs, target, family) for family in families}
    functions = {name: kernel.function.with_attr("global_symbol", name) for name, kernel in kernels.items()}
    library = tvm.compile(tvm.IRModule(functions), target.tvm())
    made = {}
    for name, kernel in kernels.items():
        held = [kernel.packed(index, operands[index]) for index in kernel.kept]
        rest = [np.zeros(spec.shape, spec.dtype) for spec in (*kernel.outputs, *kernel.scratch)]
        arrays = [held[0].view(kernel.inputs[0].dtype), *held[1:], *rest]
        made[name] = partial(library[name], *(tvm.runtime.tensor(np.array(each)) for each in arrays))
    return made


def request(shape: Convolution, weight_bits: int, bits: int) -> tuple[str, list[Any], dict[str, Any]]:
    """The op that deployed graphs have for these widths, its operands and attributes."""
    rng = np.random.default_rng(0)
    image = (1, shape.height, shape.width, shape.channels)
    weight = (shape.out_channels, *shape.kernel, shape.channels)
    attrs: dict[str, Any] = {"strides": list(shape.strides), "pads": list(shape.pads)}
    ones, none = np.ones(1, np.float32), np.zeros((1, 1, 1, 1), np.float32)
    multiplier, addend = (rng.uniform(0.01, 0.1, shape.out_channels).astype(np.float32) for _ in range(2))
    if weight_bits == 1:
        signs = pack_signs(np.moveaxis(rng.standard_normal(weight, np.float32), -1, 1))
        if bits == 1:
            x = pack_signs(np.moveaxis(rng.standard_normal(image, np.float32), -1, 1))
            terms = [multiplier, none + 1, addend, none, ones]
            return "BinaryConv", [x, signs, *terms], {**attrs, "channels": shape.channels}
        codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), image).astype(np.int8)
        return "BinaryWeightConv", [codes, signs, multiplier, addend, none, ones], {**attrs, "code_bits": bits}
    codes = rng.integers(0, 2**bits, image).astype(np.uint8)
    weights = rng.integers(0, 2**weight_bits, weight).astype(np.uint8)
    zeros = rng.integers(1, 2**weight_bits, shape.out_channels).astype(np.uint8)
    terms = [multiplier, np.array(1, np.float32), addend, none, ones]
    operands = [codes, np.array(1, np.uint8), weights, zeros, *terms]
    return "QuantConv", operands, {**attrs, "bits": bits, "weight_bits": weight_bits}


def machine() -> str:
    """This processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


HEAD = """# Where kernel families cross

`python scripts/bench_crossover.py` times every family that can multiply codes of some widths (W2A4: weights of 2 bits,
activations of 4), at one thread, the families of a row in turns. What is timed is one kernel call: codes as they lie in
memory (signs packed) to float output, so tables, planes, sums for zero points and a multiplier and addend are inside.
Figures are GMAC/s, counting each product of two codes once, from the median processor time of five turns; behind a
figure stands the share of what the machine reaches with that family's instructions alone, data in registers and
first-level cache, in the best turn. Dot products of 3x3 kernels with VNNI are Winograd's, which take 16 products for 36
and so pass what plain ones could reach.

`targets/tuning/crossover.json` holds the same figures, and the selection of kernels reads them: a product gets the
family that was fastest at the nearest measured shape. `targets/tuning/crossover.py` says what stands for widths and
instruction sets that were not measured. Plain loops were measured on `x86-64` only; elsewhere they serve codes that no
family takes, and `edgedm compile` and `edgedm inspect` list such layers.

The machine: {machine}. It lacks AVX-VNNI; those kernels were run with the same instruction as AVX-512 VL encodes it.

## The fastest for {shown}

"""


def document(found: Crossover) -> str:
    """docs/bench/crossover.md."""
    text = HEAD.format(machine=found.machine, shown=shape_name(SHOWN))
    pairs = [pair_name(widths) for widths in WIDTHS]
    text += row(["", *pairs]) + row(["---"] * (1 + len(pairs)))
    for isa, speeds in found.gmacs.items():
        text += row([f"`{isa}`", *(winner(speeds[pair][shape_name(SHOWN)]) for pair in pairs)])
    for isa in found.gmacs:
        text += f"\n## {isa}\n\n" + "".join(rows(found, isa))
    return text


def rows(found: Crossover, isa: str) -> Iterator[str]:
    """The table of an instruction set."""
    families = [BITSERIAL, LOOKUP, DOT, *([GENERIC] if isa == "x86-64" else [])]
    yield row(["", "", *families]) + row(["---"] * (2 + len(families)))
    for pair, shapes in found.gmacs[isa].items():
        for shape, speeds in shapes.items():
            cells = [cell(speeds, found.limits[isa][pair], family) for family in families]
            yield row([pair, shape, *cells])


def winner(speeds: dict[str, float]) -> str:
    family = max(speeds, key=lambda each: speeds[each])
    return f"{family} {speeds[family]:.0f}"


def cell(speeds: dict[str, float], limits: dict[str, float], family: str) -> str:
    if family not in speeds:
        return ""
    share = f" ({speeds[family] / limits[family]:.0%})" if family in limits else ""
    text = f"{speeds[family]:.3g}{share}" if speeds[family] < 100 else f"{speeds[family]:.0f}{share}"
    return f"**{text}**" if speeds[family] == max(speeds.values()) else text


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    main()
