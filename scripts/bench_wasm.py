"""Count and time WebAssembly's kernels: a 3x3 convolution of 128 to 128 channels on 8x8.

    python scripts/bench_wasm.py             prints the table of docs/web.md
    python scripts/bench_wasm.py --write     and puts it there

Each module is timed under wasmtime and, if node is installed, in its V8, which is Chromium's engine; beside them stand
the kernels that x86-64-v2 (vectors of the same 128 bits) and this machine get. Kernels of one program run in turn on
one thread, and the best call of a second counts: other programs disturb it least.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tvm
from bench_crossover import machine, pair_name, request, row

import edgedm.runtime
from edgedm.lower.objects import SYMBOL, write_object
from edgedm.lower.toolchain import COMPILE, LINK, zig_cc
from edgedm.targets import Target, resolve, runs_natively
from edgedm.targets.kernels import Kernel, TensorSpec, select
from edgedm.targets.kernels.product_families import able
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.tuning.crossover import BITSERIAL, DOT, LOOKUP
from edgedm.targets.tuning.wasm_loops import vectors, wasm_loop

DOCS = Path(__file__).parents[1] / "docs" / "web.md"
ABI = Path(edgedm.runtime.__file__).parent / "templates" / "kernel_abi.h"
MARKS = re.compile(r"(<!-- kernels: written by scripts/bench_wasm.py -->\n).*?(<!-- end of kernels -->)", re.DOTALL)
SHAPE = Convolution(8, 8, 128, 128, (3, 3), (1, 1), (1, 1, 1, 1))
WIDTHS = ((1, 1), (1, 4), (2, 4), (4, 4), (8, 8))
COUNTED = {
    "bitserial-bytes": ("i8x16.popcnt", 128),
    "lookup-bytes": ("i8x16.swizzle", 64),
    "lookup-swizzle": ("i8x16.swizzle", 64),
    "dot-wasm-sums": ("i16x8.mul", 8),
    "dot-wasm": ("i32x4.dot_i16x8_s", 8),
}
PER = 1024
NODE = """import {WASI} from 'node:wasi'; import {readFileSync} from 'node:fs';
const wasi = new WASI({version: 'preview1', args: [process.argv[2]], returnOnExit: true});
const module = await WebAssembly.compile(readFileSync(process.argv[2]));
process.exit(wasi.start(await WebAssembly.instantiate(module, {wasi_snapshot_preview1: wasi.wasiImport})));
"""
Row = tuple[tuple[int, int], str | None]  # widths and family; None: the one that is chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCS.name}")
    text = table()
    print(text)
    if parser.parse_args().write:
        DOCS.write_text(MARKS.sub(lambda found: found[1] + text + found[2], DOCS.read_text()))


def table() -> str:
    wasm = resolve("wasm32+simd128")
    rows: list[Row] = [((1, 1), BITSERIAL)]  # planes of wider codes are never the fastest
    rows += [(widths, family) for widths in WIDTHS for family in able(wasm, *widths) if family in (LOOKUP, DOT)]
    kernels = [kernel_of(wasm, each) for each in rows]
    engines = {"wasmtime": [sys.executable, "-m", "edgedm.runtime.wasi"]}
    with tempfile.TemporaryDirectory() as folder:
        if shutil.which("node"):
            (Path(folder) / "node.mjs").write_text(NODE)
            version = subprocess.run(["node", "-p", "process.version"], capture_output=True, text=True, check=True)
            engines[f"V8 of node {version.stdout.strip()}"] = ["node", "--no-warnings", f"{folder}/node.mjs"]
        times = run(kernels, wasm, engines)
    for name in ("x86-64-v2", "host"):
        target = resolve(name)
        assert runs_natively(target)
        chosen = [kernel_of(target, (widths, None)) for widths, _ in rows]
        times |= run(chosen, target, {target.name: []})
    head = ["", "kernel", "vector instructions for 1,024 MAC", *(f"GMAC/s, {name}" for name in times)]
    text = f"\nThe machine: {machine()}, one core.\n\n" + row(head) + row(["---"] * 2 + ["---:"] * (len(head) - 2))
    for number, ((widths, _), kernel) in enumerate(zip(rows, kernels, strict=True)):
        count = instructions(kernel, wasm, widths[0])
        speeds = [f"{SHAPE.macs / each[number] / 1e9:.0f}" for each in times.values()]
        text += row([pair_name(widths), f"`{kernel.family.split()[0]}`", count, *speeds])
    return text + "\n"


def kernel_of(target: Target, wanted: Row) -> Kernel:
    widths, family = wanted
    op, operands, attrs = request(SHAPE, *widths)
    given = [TensorSpec(operands[0].shape, str(operands[0].dtype)), *operands[1:]]
    return select(op, given, attrs, target, family)


def instructions(kernel: Kernel, target: Target, weight_bits: int) -> str:
    """Of the inner loop; a look-up adds up one plane of the weights in it."""
    name = kernel.family.split()[0]
    counted, macs = COUNTED[name]
    module = tvm.compile(tvm.IRModule({"kernel": kernel.function}), target.tvm())
    loop = wasm_loop(module.mod.inspect_source("asm"), counted)
    planes = weight_bits if name.startswith("lookup") else 1
    return f"{vectors(loop) * PER * planes / macs / loop.count(counted):.0f}"


def run(kernels: Sequence[Kernel], target: Target, engines: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Seconds of the best call of each kernel, by engine."""
    with tempfile.TemporaryDirectory(prefix="edgedm-") as folder:
        program = link(kernels, target, Path(folder))
        return {name: seconds([*command, str(program)]) for name, command in engines.items()}


def seconds(command: Sequence[str]) -> list[float]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def link(kernels: Sequence[Kernel], target: Target, folder: Path) -> Path:
    symbols = [str(kernel.function.attrs["global_symbol"]) for kernel in kernels]
    functions = {symbol: kernel.function for symbol, kernel in zip(symbols, kernels, strict=True)}
    write_object(functions, "t_", target.tvm(), folder / "kernels.o")
    names = [f"{SYMBOL}t_{symbol}" for symbol in symbols]
    sizes = [[spec.nbytes for spec in (*each.inputs, *each.outputs, *each.scratch)] for each in kernels]
    lines = ['#include "kernel_abi.h"', "extern const edm_kernel kernels[];", "extern const uint64_t sizes[][16];"]
    lines += [f"int {name}(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);" for name in sorted(set(names))]
    lines += [f"const edm_kernel kernels[] = {{{', '.join(names)}}};", f"const int kernel_count = {len(names)};"]
    lines += [f"const uint64_t sizes[][16] = {{{', '.join(f'{{{str(each)[1:-1]}}}' for each in sizes)}}};"]
    (folder / "table.c").write_text("\n".join(lines) + "\n")
    for source in (Path(__file__).with_suffix(".c"), ABI):
        shutil.copy(source, folder)
    machine_flags = ["-target", target.base.program_triple]
    for name in ("bench_wasm", "table"):
        zig_cc([*machine_flags, *COMPILE, *target.base.c_flags, "-c", f"{name}.c", "-o", f"{name}.o"], folder)
    flags = target.base.link_flags or LINK
    zig_cc([*machine_flags, *flags, "bench_wasm.o", "table.o", "kernels.o", "-o", "program"], folder)
    return folder / "program"


if __name__ == "__main__":
    main()
