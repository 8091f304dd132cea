"""Read golden data, `<stem>.golden.safetensors`: tensors and metadata, checked before anything follows them.

`edgedm.export.golden` says what is in it.
"""

import os
import sys
from collections.abc import Mapping, Sequence
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
_MOST_LABELS = 1 << 31

# Inputs of a step that are one number: its dtype and largest value. Everything else that is recorded is float32.
_NUMBERS = {
    "timestep": (np.dtype(np.int64), MOST_TIMESTEPS - 1),
    "class_labels": (np.dtype(np.int64), _MOST_LABELS - 1),
    "has_state": (np.dtype(np.float32), 1),
}


@dataclass(frozen=True)
class GoldenFile:
    """Tensors by name; the recorded steps, ascending; how far each step's output moves by roundings alone."""

    path: str
    tensors: dict[str, NDArray[Any]]
    steps: list[int]
    rounding_noise: list[float]
    layers_step: int | None

    def tensor(self, name: str, shape: Sequence[int]) -> NDArray[Any]:
        """A tensor; InvalidModelError that names it and the file if it is missing or the model's has another shape."""
        if name not in self.tensors:
            raise InvalidModelError(f"{self.path}: tensor {name!r} is missing; export the checkpoint again")
        array = self.tensors[name]
        if array.shape != tuple(shape):
            raise InvalidModelError(
                f"{self.path}: tensor {name!r} is {list(array.shape)}, the model's {list(shape)}; export it again"
            )
        return array

    def inputs(self, step: int, shapes: Mapping[str, Sequence[int]], labels: int | None) -> dict[str, NDArray[Any]]:
        """Tensors of a recorded step, by name; InvalidModelError as `tensor`, or if a label is none of the `labels`."""
        found = {name: self.tensor(f"step.{step}.{name}", shape) for name, shape in shapes.items()}
        label = int(found["class_labels"][0]) if "class_labels" in found else -1
        if label >= (labels or 0):
            raise InvalidModelError(
                f"{self.path}: 'step.{step}.class_labels': expected one of {labels or 0} labels, got {label}"
            )
        return found


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
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidModelError(f"{path}: tensor {name!r} holds NaN or infinity; export the checkpoint again")
        _check_kind(path, name, array)
    return GoldenFile(str(path), tensors, steps, [float(each) for each in noise], layers_step)


def _check_kind(path: str | os.PathLike[str], name: str, array: NDArray[Any]) -> None:
    _, _, field = name.split(".", 2) if name.startswith("step.") and name.count(".") >= 2 else ("", "", "")
    dtype, most = _NUMBERS.get(field, (np.dtype(np.float32), None))
    if array.dtype != dtype:
        raise InvalidModelError(
            f"{path}: tensor {name!r} is {array.dtype}, expected {dtype}; export the checkpoint again"
        )
    if most is not None and not (array.shape == (1,) and 0 <= array[0] <= most):
        raise InvalidModelError(
            f"{path}: tensor {name!r}: expected one number of 0..{most}; export the checkpoint again"
        )


def _is_steps(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > MOST_STEPS:
        return False
    return all(type(each) is int and 0 <= each < MOST_TIMESTEPS for each in value) and value == sorted(set(value))


def _is_noise(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(each) in (int, float) for each in value)
    return numbers and all(0 <= each <= sys.float_info.max for each in value)
