"""One op of a lowered graph as a subject of trials: its operands by role, what is known of them, what it may be fed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgedm.ops import FUNCTIONS

Array = NDArray[Any]
Types = Mapping[str, onnx.ValueInfoProto]

_NEUTRAL = {"multiplier": 1.0, "pixel_scale": 1.0, "residual_scale": 1.0, "addend": 0.0, "residual": 0.0}
_NEUTRAL |= dict.fromkeys(("step", "a_step", "b_step"), 1.0)

LARGE_STEP = 64.0
"""A quantiser step at which SiLU is the identity on ties: sigmoid(32) is 1 in float32."""


@dataclass(frozen=True)
class Trial:
    """Values by role: `feeds` for run-time operands, `constants` in place of the graph's own."""

    name: str
    feeds: dict[str, Array]
    constants: dict[str, Array] = field(default_factory=dict)
    ceiling: dict[str, Array] = field(default_factory=dict)  # by output name


@dataclass(frozen=True)
class Subject:
    """One op of the lowered graph: names and types of its operands by role."""

    op: str
    node: onnx.NodeProto
    names: dict[str, str]  # role -> value name
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Array]  # by role
    attributes: dict[str, Any]
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)  # by role

    @classmethod
    def of(
        cls, node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], known: Mapping[str, Array]
    ) -> "Subject":
        """Describe `node`; `known` are the graph's constants by value name."""
        names = dict(zip(roles(node), node.input, strict=True))
        shapes = {role: _shape(types[name]) for role, name in names.items()}
        constants = {role: known[name] for role, name in names.items() if name in known}
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        kinds = {role: types[name].type.tensor_type.elem_type for role, name in names.items()}
        dtypes = {role: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) for role, kind in kinds.items()}
        return cls(node.op_type, node, names, shapes, constants, attributes, dtypes)

    def runtime(self) -> list[str]:
        """Roles of the operands that are known only at run time."""
        return [role for role in self.names if role not in self.constants]


def roles(node: onnx.NodeProto) -> list[str]:
    """Names of the operands of an op: those of its ONNX function; letters for a standard op."""
    function = FUNCTIONS.get(node.op_type) if node.domain else None
    if function is not None:
        return [str(value.name) for value in function.inputs]
    return list("abcdefgh"[: len(node.input)])


def neutral(subject: Subject, integers: Mapping[str, Array]) -> Trial:
    """A neutral epilogue: the output is the accumulator on the run-time operands `integers` (by role).

    Float32 holds it exactly up to 2^24, and rounds it once beyond.
    """
    feeds: dict[str, Array] = dict(integers)
    constants: dict[str, Array] = {}
    for role, value in _NEUTRAL.items():
        if role in subject.names:
            array = np.full(subject.shapes[role], value, np.float32)
            (constants if role in subject.constants else feeds)[role] = array
    return Trial("accumulator", feeds, constants)


Special = Callable[[Subject, np.random.Generator], Trial | None]


def _shape(item: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(each.dim_value for each in item.type.tensor_type.shape.dim)
