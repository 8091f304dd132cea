"""Run kernels of a machine that this one is not, in one emulated process for many cases.

The kernels are linked with `foreign_main.c` into a static executable. It reads calls from standard input and writes
their outputs; it ends with an error if a kernel fails or writes past an operand.
"""

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tools import need_emulator

import edgedm.runtime
from edgedm.lower.objects import SYMBOL, write_object
from edgedm.lower.toolchain import COMPILE, LINK, zig_cc
from edgedm.targets import Target, command_for
from edgedm.targets.kernels import Kernel, TensorSpec

_HERE = Path(__file__).parent
_ABI = Path(edgedm.runtime.__file__).parent / "templates" / "kernel_abi.h"


def run_calls(
    kernels: Sequence[Kernel], calls: Sequence[tuple[list[np.ndarray], list[TensorSpec]]], target: Target
) -> list[list[np.ndarray]]:
    """Call kernel i with calls[i] = (its arguments in order, specs of its outputs, which follow its inputs)."""
    need_emulator(target)
    with tempfile.TemporaryDirectory(prefix="edgedm-") as folder:
        program = _link(kernels, target, Path(folder))
        data = b"".join(
            _call(number, arguments, len(kernels[number].inputs), len(outputs))
            for number, (arguments, outputs) in enumerate(calls)
        )
        command = [*command_for(target), str(program)]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}: {done.stderr.decode()[-2000:]}"
    return _split(done.stdout, [outputs for _, outputs in calls])


def _link(kernels: Sequence[Kernel], target: Target, folder: Path) -> Path:
    symbols = [str(kernel.function.attrs["global_symbol"]) for kernel in kernels]
    functions = {symbol: kernel.function for symbol, kernel in zip(symbols, kernels, strict=True)}
    write_object(functions, "t_", target.tvm(), folder / "kernels.o")
    names = [f"{SYMBOL}t_{symbol}" for symbol in symbols]
    lines = ['#include "kernel_abi.h"', "extern const edm_kernel kernels[];"]
    lines += [f"int {name}(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);" for name in sorted(set(names))]
    lines += [f"const edm_kernel kernels[] = {{{', '.join(names)}}};"]
    (folder / "table.c").write_text("\n".join(lines) + "\n")
    shutil.copy(_HERE / "foreign_main.c", folder)
    shutil.copy(_ABI, folder)
    machine = ["-target", target.base.program_triple]
    for name in ("foreign_main", "table"):
        zig_cc([*machine, *COMPILE, *target.base.c_flags, "-c", f"{name}.c", "-o", f"{name}.o"], folder)
    # The bundles' own flags: with others zig would make another C library, which takes a minute.
    machine += target.base.link_flags or LINK
    zig_cc([*machine, "foreign_main.o", "table.o", "kernels.o", "-o", "program"], folder)
    return folder / "program"


def _call(number: int, arguments: Sequence[np.ndarray], first: int, outputs: int) -> bytes:
    parts = [struct.pack("<4Q", number, len(arguments), first, first + outputs)]
    for each in arguments:
        parts += [struct.pack("<Q", each.nbytes), each.tobytes()]
    return b"".join(parts)


def _split(data: bytes, wanted: Sequence[Sequence[TensorSpec]]) -> list[list[np.ndarray]]:
    results, at = [], 0
    for specs in wanted:
        results.append([])
        for spec in specs:
            results[-1].append(np.frombuffer(data, spec.dtype, spec.size, at).reshape(spec.shape))
            at += spec.nbytes
    assert at == len(data)
    return results
