"""TIR functions -> one object file, every symbol under the bundle's prefix."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tvm

from edgedm import progress
from edgedm.lower.toolchain import merge_objects

SYMBOL = "__tvm_ffi_"  # what TVM puts before the name of a function with its calling convention
_TOGETHER = 4
"""Kernels of one LLVM module: more would leave a core idle at the end, fewer repeat what every module costs."""


def write_object(functions: Mapping[str, Any], prefix: str, target: tvm.target.Target, path: Path) -> None:
    """Compile `functions` (name -> PrimFunc) into the object file `path`; symbols are SYMBOL + prefix + name.

    Groups of kernels are compiled side by side, one on a core, and merged in a fixed order, so the file is the same
    whatever the number of cores. The runtime binds shapes, dtypes and alignment once, so the kernels' own
    checks of them are left out.
    """
    names = sorted(functions)
    count = max(1, len(names) // _TOGETHER)
    groups = [names[number::count] for number in range(count)]  # neighbours cost alike: deal them out
    with tempfile.TemporaryDirectory(prefix="edgedm-") as scratch:
        objects = [Path(scratch) / f"kernels{number}.o" for number in range(len(groups))]
        jobs = [
            ({name: functions[name] for name in group}, prefix, target, each)
            for group, each in zip(groups, objects, strict=True)
        ]
        for _ in progress.track(_compiled(jobs), "compiling kernels", len(names)):
            pass
        merge_objects([each.name for each in objects], path.name, Path(scratch))
        path.write_bytes((Path(scratch) / path.name).read_bytes())


def write_helpers(prefix: str, target: tvm.target.Target, path: Path) -> None:
    """Write an object file with the functions that TVM puts beside any kernels, and two that do nothing."""
    nothing = tvm.tirx.PrimFunc([], tvm.tirx.Evaluate(0))
    _compile({"nothing": nothing, "nothing_else": nothing}, prefix, target, path)  # a lone one becomes an entry point


def _compiled(jobs: Sequence[tuple[dict[str, Any], str, Any, Path]]) -> Iterator[str]:
    """Run the jobs, one a core, and yield the names of the kernels that are done."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        running = [pool.submit(_compile, *job) for job in jobs]
        try:
            for job, future in zip(jobs, running, strict=True):
                future.result()
                yield from job[0]
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or an interrupt the rest is not waited for


def _compile(functions: Mapping[str, Any], prefix: str, target: tvm.target.Target, path: Path) -> None:
    renamed = {
        tvm.ir.GlobalVar(prefix + name): function.with_attr("global_symbol", prefix + name)
        for name, function in functions.items()
    }
    module = tvm.IRModule(renamed).with_attr("system_lib_prefix", prefix)
    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
        tvm.tirx.build(module, target=target).write_to_file(str(path))
