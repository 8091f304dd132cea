"""Read golden data, `<stem>.golden.safetensors`: tensors and metadata, checked before anything follows them.

`edgedm.export.golden` says what is in it.
"""

import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.errors import InvalidModelError
from edgedm.files import parse_json
from edgedm.tensor_file import read_header

MOST_STEPS = 4096
MOST_TIMESTEPS = 1 << 31
"""Far above any schedule's; the C runtime counts them in 32 bits."""


@dataclass(frozen=True)
class GoldenFile:
    """Tensors by name; the recorded steps, ascending; how far each step's output moves by roundings alone."""

    tensors: dict[str, NDArray[Any]]
    steps: list[int]
    rounding_noise: list[float]
    layers_step: int | None


def read_golden(path: str | os.PathLike[str]) -> GoldenFile:
    """Read golden data; `InvalidModelError` that names the file, and the tensor, where they are missing or broken."""
    from safetensors import SafetensorError, safe_open

    try:
        names = list(read_header(path))
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
        steps = parse_json(metadata.get("golden_steps", "[]"))
        noise = parse_json(metadata.get("rounding_noise", "[]"))
        layers_step = parse_json(metadata.get("layers_step", "null"))
    except InvalidModelError as error:
        raise InvalidModelError(f"{error}; these are no golden data: export the checkpoint again") from error
    # AttributeError: numpy has no such dtype
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelError(f"{path}: not golden data ({error}); export the checkpoint again") from error
    if not _is_steps(steps) or not _is_noise(noise):
        raise InvalidModelError(
            f"{path}: golden_steps, rounding_noise: expected up to {MOST_STEPS} ascending steps and finite numbers; "
            "export the checkpoint again"
        )
    if layers_step is not None and not _is_steps([layers_step]):
        raise InvalidModelError(
            f"{path}: layers_step: expected a timestep, got {metadata['layers_step']:.40}; export the checkpoint again"
        )
    for name, array in tensors.items():
        if array.dtype.kind not in "fiub":
            raise InvalidModelError(f"{path}: tensor {name!r} is {array.dtype}; export the checkpoint again")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidModelError(f"{path}: tensor {name!r} holds NaN or infinity; export the checkpoint again")
    return GoldenFile(tensors, steps, [float(each) for each in noise], layers_step)


def _is_steps(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > MOST_STEPS:
        return False
    return all(type(each) is int and 0 <= each < MOST_TIMESTEPS for each in value) and value == sorted(set(value))


def _is_noise(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(each) in (int, float) for each in value)
    return numbers and all(0 <= each <= sys.float_info.max for each in value)
