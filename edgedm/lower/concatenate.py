"""Concatenation as plain copies, row by row over threads, instead of TVM's choice of the input at every element."""

import math
from collections.abc import Sequence
from typing import Any

from edgedm.targets.kernels.builder import build, load, loop, parallel, store
from edgedm.targets.kernels.spec import TensorSpec

WORTH_COPYING = 4096  # elements of the result; below, fusing it with its neighbours is better
WORTH_THREADS = 1 << 15  # elements of the result: 1 (of bytes) to 3 microseconds of one core, from its cache


def concatenation(parts: Sequence[TensorSpec], axis: int) -> tuple[Any, TensorSpec]:
    """Return a PrimFunc (parts..., result) that joins `parts` along `axis`, and the spec of the result.

    Every row of a part (what `axis` and the axes behind it span) is contiguous in the result, so LLVM turns the
    inner loops into vector moves.
    """
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    result = TensorSpec(tuple(shape), parts[0].dtype)
    rows = math.prod(shape[:axis])
    widths = [math.prod(part.shape[axis:]) for part in parts]

    def body(*buffers: Any) -> None:
        *sources, target = buffers
        with parallel(rows, math.prod(shape) >= WORTH_THREADS) as row:
            start = 0
            for source, width in zip(sources, widths, strict=True):
                with loop(width) as column:
                    store(target, load(source, row * width + column), row * sum(widths) + start + column)
                start += width

    text = "_".join(["concatenate", result.dtype, str(rows), *map(str, widths)])
    names = [(f"part{index}", part) for index, part in enumerate(parts)]
    return build(text, [*names, ("result", result)], body), result
