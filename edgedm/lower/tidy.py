"""Loops of the functions that Relax made: no intermediate buffers where they can be inlined, threads where it pays.

Relax fuses standard ops into one function but leaves every op's loop nest and the buffer between two of them. Here
each nest but the last is inlined into its readers, so that one pass over the output remains; LLVM vectorises its
innermost loop.
"""

import math
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from edgedm.lower.memory import align

WORKSPACE_BYTES = 1 << 16  # of every thread; the same in runtime/templates/graph.c
_ON_STACK = 1024  # bytes; TVM keeps smaller buffers on the stack
WORTH_THREADS = 1 << 16  # elements: 8 microseconds of one core for a sum, 150 for a SiLU


def tidy(function: Any) -> Any:
    """Return the function with its nests inlined and its outer loops parallel where that pays."""
    schedule = Schedule(tvm.IRModule({"main": function}))
    *before, last = schedule.get_child_blocks(schedule.get_sblock("root"))
    for block in reversed(before):
        try:
            schedule.compute_inline(block)
        except tvm.s_tir.ScheduleError:
            continue  # a reduction, or read by a reduction that needs it as a buffer
    _parallelise(schedule, last)
    return schedule.mod["main"]


def workspace_bytes(function: Any) -> int:
    """Upper bound of the memory that the compiled function takes from its thread's workspace."""
    return _allocated(function.body)


def _allocated(statement: Any) -> int:
    total = 0
    for buffer in getattr(statement, "alloc_buffers", None) or ():
        dtype = tvm.runtime.DataType(str(buffer.dtype))
        size = math.prod(int(extent) for extent in buffer.shape) * dtype.bits * dtype.lanes // 8
        total += align(size) if size >= _ON_STACK else 0
    for field in ("block", "body", "init", "then_case", "else_case"):
        child = getattr(statement, field, None)
        total += _allocated(child) if child is not None else 0
    return total + sum(_allocated(child) for child in getattr(statement, "seq", None) or ())


def _parallelise(schedule: Any, block: Any) -> None:
    loops = schedule.get_loops(block)
    spatial = [loop for loop in loops if schedule.get(loop).kind == tirx.ForKind.SERIAL]
    extents = [int(schedule.get(loop).extent) for loop in loops]
    if len(loops) < 2 or len(spatial) < len(loops) or math.prod(extents) < WORTH_THREADS:
        return
    kinds = {int(variable.iter_type) for variable in schedule.get(block).iter_vars}
    if kinds != {int(tirx.IterVar.DataPar)}:
        return
    schedule.parallel(schedule.fuse(*loops[:-1]))
