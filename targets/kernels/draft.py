"""What a kernel family returns to `select`: everything about a kernel but its finished function."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgedm.targets.kernels.builder import Buffer
from edgedm.targets.kernels.spec import Array, TensorSpec

Body = Callable[[Mapping[str, Buffer], Sequence[Buffer], Sequence[Buffer]], None]


@dataclass(frozen=True)
class Draft:
    """`body(inputs by name, outputs, scratch)` emits the function; `inputs` are the operands that it keeps.

    `apart`, if any, are the two halves of `body`: what leaves in scratch a layout of every operand but the first, and
    what reads it, as often as the first changes.
    """

    family: str
    body: Body
    inputs: Mapping[str, TensorSpec]
    outputs: Sequence[TensorSpec]
    scratch: Sequence[TensorSpec] = ()
    pack: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)
    macs: int = 0
    apart: tuple[Body, Body] | None = None
