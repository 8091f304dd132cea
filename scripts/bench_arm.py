"""Count the inner loops that edgedm emits for ARM and estimate their cycles: docs/bench/arm.md.

    python scripts/bench_arm.py              # prints the tables
    python scripts/bench_arm.py --write      # puts them into docs/bench/arm.md

No ARM machine is needed, and none was used. Counts come from the assembly of the kernels of a 3x3 convolution of 256
to 256 channels on 16x16, cycles from llvm-mca (Debian's package llvm-19; left out where it is missing). The loops of
others are stood in for by loops with the same instructions in the same order of kinds, as their sources have them.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm

from edgedm.errors import ToolchainError
from edgedm.targets import resolve
from edgedm.targets.kernels import TensorSpec, select
from edgedm.targets.tuning.emitted_loops import Loop, cycles, find_mca, inner_loop

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bench" / "arm.md"
BEGIN, END = "<!-- {name}: written by scripts/bench_arm.py -->", "<!-- end of {name} -->"
CHANNELS, SIZE, KERNEL = 256, 16, 3
ATTRS = {"strides": [1, 1], "pads": [1, 1, 1, 1]}
# core -> LLVM's name, a feature that it lacks
MODELS = {
    "Cortex-A72": ("cortex-a72", "dotprod"),
    "Cortex-A76": ("cortex-a76", "i8mm"),
    "Neoverse N1": ("neoverse-n1", "i8mm"),
    "Neoverse N2": ("neoverse-n2", "sme"),
}
PER = 1024


@dataclass(frozen=True)
class Row:
    """A loop and the multiply-accumulates of a round of it."""

    name: str
    target: str
    loop: Loop
    macs: int
    times: int = 1  # how often it has to run for the product


def emitted(
    name: str, target: str, op: str, mnemonic: str, macs: int, attrs: dict[str, int] | None = None, mark: str = ""
) -> Row:
    """The inner loop of an op's kernel; each instruction that matches `mnemonic` does `macs`.

    The loop is the one with most of `mark`, where another has more of `mnemonic`.
    """
    machine = resolve(target)
    operands = _quant(attrs["weight_bits"]) if attrs and op == "QuantConv" else _OPERANDS[op]()
    kernel = select(op, operands, {**ATTRS, **(attrs or {})}, machine)
    symbol = str(kernel.function.attrs["global_symbol"])
    text = tvm.compile(tvm.IRModule({symbol: kernel.function}), machine.tvm()).mod.inspect_source("asm")
    loop = inner_loop(text, mark or mnemonic)
    return Row(name, target, loop, macs * loop.count(mnemonic))


def rows() -> list[Row]:
    """Our loops."""
    w1a1 = emitted("W1A1, `cnt`", "aarch64", "BinaryConv", "eor", 128, {"channels": CHANNELS})
    four = {"bits": 4, "weight_bits": 4}
    eight = {"bits": 8, "weight_bits": 8}
    return [
        w1a1,
        emitted("W1A4, look-up by `tbl`", "aarch64", "BinaryWeightConv", "uaddw2", 256),
        emitted("W1A2, look-up by `tbl`", "aarch64", "BinaryWeightConv", "tbl", 64, {"code_bits": 2}, "ushr"),
        Row("W1A4 as four bit planes: W1A1 four times", "aarch64", w1a1.loop, w1a1.macs, 4),
        emitted("W1A4 as bytes, W8A8: `udot`", "aarch64+dotprod", "QuantConv", "udot", 16, eight),
        emitted("W4A4, `mul`, `mla`, `sadalp`", "aarch64", "QuantConv", "mla", 32, four),
        emitted("W4A4, `udot`", "aarch64+dotprod", "QuantConv", "udot", 16, four),
        emitted("W4A4, `ummla`", "aarch64+dotprod+i8mm", "QuantConv", "ummla", 32, four),
        emitted("W8A8, `umull`, `uadalp`", "aarch64", "QuantConv", "umull2?", 8, eight),
        emitted("W8A8, `ummla`", "aarch64+dotprod+i8mm", "QuantConv", "ummla", 32, eight),
    ]


def peers() -> list[Row]:
    """The published loops of others for W1A1."""
    return [
        Row("larq compute-engine 8x4x2", "aarch64", Loop(tuple(_larq())), 4 * 8 * 64),
        Row("daBNN 3x3, 64 channels, ends included", "aarch64", Loop(tuple(_dabnn())), 2 * 9 * 64),
    ]


def _larq() -> list[str]:
    """indirect_bgemm/kernel_8x4x2: four broadcast words against eight output channels, counts added up in pairs."""
    pairs = [(w, a) for w in range(4) for a in range(4)]
    loads = [f"ld1r {{v{20 + a}.2d}}, [x{a}], #8" for a in range(4)]
    loads += [f"ldr q{24 + w}, [x4, #{16 * w}]" for w in range(4)]
    lines = ["subs w9, w9, #1"]
    lines += [f"eor v{4 * w + a}.16b, v{20 + a}.16b, v{24 + w}.16b" for w, a in pairs]
    for number in range(16):
        lines.append(f"cnt v{number}.16b, v{number}.16b")
        if number % 2:
            lines.append(loads[number // 2])
    lines += [f"addp v{a}.16b, v{a}.16b, v{a + 4}.16b" for a in (0, 1, 2, 3, 8, 9, 10, 11)]
    lines += [f"addp v{a}.16b, v{a}.16b, v{a + 8}.16b" for a in range(4)]
    lines.append("add x4, x4, #64")
    lines += [f"uadalp v{28 + a}.8h, v{a}.16b" for a in range(4)]
    return [*lines, "b.gt .Lagain"]


def _dabnn() -> list[str]:
    """bconv_3x3_64: a window of 72 bytes, five vectors, of two pixels against an output channel, and its float."""
    lines = ["prfm pldl1keep, [x1, #128]", "ld1 {v10.2d, v11.2d, v12.2d, v13.2d}, [x1], #64", "ld1 {v14.1d}, [x1], #8"]
    lines += [f"eor v{20 + 5 * p + v}.16b, v{5 * p + v}.16b, v{10 + v}.16b" for p in range(2) for v in range(5)]
    lines += [f"cnt v{20 + n}.16b, v{20 + n}.16b" for n in range(10)]
    for p in range(2):
        first = 20 + 5 * p
        for one, other in ((0, 3), (1, 4), (0, 1), (0, 2)):
            lines.append(f"add v{first + one}.16b, v{first + one}.16b, v{first + other}.16b")
        lines += [f"uaddlv h{first}, v{first}.16b", f"ucvtf s{first}, s{first}", f"str s{first}, [x{2 + p}], #4"]
    return [*lines, "subs x5, x5, #1", "b.ne .Lagain"]


def _binary() -> list[TensorSpec | np.ndarray]:
    weight = np.zeros((CHANNELS, KERNEL, KERNEL, CHANNELS // 8), np.uint8)
    image = TensorSpec((1, SIZE, SIZE, CHANNELS // 8), "uint8")
    return [image, weight, *_ends(np.ones((1, 1, 1, 1), np.float32))]


def _binary_weight() -> list[TensorSpec | np.ndarray]:
    return [TensorSpec((1, SIZE, SIZE, CHANNELS), "int8"), _binary()[1], *_ends()]


def _ends(*pixel_scale: np.ndarray) -> list[np.ndarray]:
    one, none = np.ones(CHANNELS, np.float32), np.zeros((1, 1, 1, 1), np.float32)
    return [one, *pixel_scale, 0 * one, none, one[:1]]


def _quant(bits: int) -> list[TensorSpec | np.ndarray]:
    weight = np.full((CHANNELS, KERNEL, KERNEL, CHANNELS), 2**bits - 1, np.uint8)  # as wide as they are said to be
    codes, zero = TensorSpec((1, SIZE, SIZE, CHANNELS), "uint8"), TensorSpec((), "uint8")
    return [codes, zero, weight, np.full(CHANNELS, 7, np.uint8), *_ends(np.ones((), np.float32))]


_OPERANDS: dict[str, Callable[[], list[TensorSpec | np.ndarray]]] = {
    "BinaryConv": _binary,
    "BinaryWeightConv": _binary_weight,
}


def table(found: Sequence[Row], mca: str | None) -> str:
    """A Markdown table, all figures for 1,024 multiply-accumulates."""
    models = MODELS if mca else {}
    head = ["loop", "target", "vector instructions", "loads, stores", "of them spills", "all instructions"]
    lines = [head + [f"cycles, {name}" for name in models]]
    for row in found:
        scale = row.times * PER / row.macs
        counts = [row.loop.vector, row.loop.memory, row.loop.stack, len(row.loop.instructions)]
        cells = [f"{each * scale:.1f}" for each in counts]
        for cpu, lacks in models.values():
            runs = mca is not None and lacks not in resolve(row.target).features
            cells.append(f"{cycles(row.loop.instructions, cpu, str(mca)) * scale:.1f}" if runs else "lacks it")
        lines.append([row.name, f"`{row.target}`", *cells])
    lines.insert(1, ["---", "---", *["---:"] * (len(lines[0]) - 2)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _replace(page: str, name: str, text: str) -> str:
    begin, end = BEGIN.format(name=name), END.format(name=name)
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}")
    options = parser.parse_args(arguments)
    try:
        mca = find_mca()
    except ToolchainError as error:
        print(f"no estimates of cycles: {error}", file=sys.stderr)
        mca = None
    tables = {"peers": table([rows_of[0], *peers()], mca) if (rows_of := rows()) else "", "loops": table(rows_of, mca)}
    for text in tables.values():
        print(text, end="\n\n")
    if options.write and mca:
        page = PAGE.read_text()
        for name, text in tables.items():
            page = _replace(page, name, text)
        PAGE.write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])
