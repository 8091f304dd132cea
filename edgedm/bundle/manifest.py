"""manifest.json: what a bundle is, file by file and kernel by kernel."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgedm.errors import UnsupportedError

FAMILY = "edgedm.bundle/"  # what the format of every version begins with
FORMAT = f"{FAMILY}1"
MOST_AXES = 16  # of a tensor, as in a graph


GraphName = Literal["step", "prepare", "decoder"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Record):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class TargetEntry(_Record):
    """What the objects were compiled for."""

    name: str
    features: list[str]
    triple: str


class Port(_Record):
    """An input or output of a graph, in the kernels' layout (channels last); `role` as in the graph's metadata."""

    name: str
    role: str
    shape: tuple[int, ...] = Field(max_length=MOST_AXES)
    dtype: str


class Operand(_Record):
    """A tensor of a kernel call. `offset` is bytes in arena or weights, or the number of the input or output.

    What lies between the calls of a chain has the source "strips": it is in the arena, with room for one unit a task.
    """

    name: str  # of the value in the channels-last graph; empty inside what Relax fused
    shape: tuple[int, ...] = Field(max_length=MOST_AXES)
    dtype: str
    source: Literal["arena", "strips", "weights", "input", "output"]
    offset: int = Field(ge=0)


class Strips(_Record):
    """Where a call runs with those beside it on one unit after another: `strips` units of each of `heads` heads.

    `first` is the chain's first call; the units are shared by `tasks`, each with memory of its own.
    """

    first: int = Field(ge=0)
    heads: int = Field(ge=1)
    strips: int = Field(ge=1)
    tasks: int = Field(ge=1)


class Node(_Record):
    """One kernel call; `node` and `module` are empty where Relax fused standard ops. `scratch` lives during it.

    Where a bundle is of an edgedm that didn't record it, `scratch` is None. Calls with equal `strips` are a chain.
    """

    index: int = Field(ge=0)
    graph: GraphName
    kernel: str
    op: str
    node: str
    module: str
    family: str
    macs: int = Field(ge=0)
    inputs: list[Operand]
    outputs: list[Operand]
    scratch: list[Operand] | None = None
    strips: Strips | None = None


class Section(_Record):
    """A piece of weights.bin, and the variants whose kernels read it; a bundle of one target has one for all."""

    offset: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    variants: list[str]


class Variant(_Record):
    """What another target of the same bundle has of its own; fields as in `Manifest`."""

    target: TargetEntry
    arena_bytes: int = Field(ge=0)
    kernel_bytes: int = Field(ge=0)
    nodes: list[Node]
    slow: list[str]


class Schedule(_Record):
    """The default timestep schedule."""

    steps: int = Field(ge=1)
    sampler: Literal["ddim", "ddpm", "dpm-solver++"]


class Manifest(_Record):
    """The whole manifest.

    `image_shape` is what the sampler draws; of a latent model that is a latent, and `decoded_shape` its image's.
    `condition_shape` are the tokens of a text condition and their size. `row_bytes` are those of one step.

    A bundle may hold several variants, of which a machine gets the best that it can run. `target`, `arena_bytes`,
    `kernel_bytes`, `nodes` and `slow` are those of the most demanding one, `others` has the rest, best first.
    """

    format: Literal["edgedm.bundle/1"] = "edgedm.bundle/1"
    edgedm: str
    prefix: str = Field(pattern="^[a-z][a-z0-9_]*_$")
    target: TargetEntry
    toolchain: dict[str, str]
    files: dict[str, FileEntry]
    config: dict[str, Any]
    image_shape: tuple[int, int, int]
    decoded_shape: tuple[int, int, int] | None = None
    condition_shape: tuple[int, int] | None = None
    classes: int = Field(ge=0)
    null_class: int = Field(ge=-1)
    trained_timesteps: tuple[int, int]
    schedule: Schedule
    arena_bytes: int = Field(ge=0)
    weights_bytes: int = Field(ge=0)
    row_bytes: int = Field(ge=0)
    inputs: dict[GraphName, list[Port]]
    outputs: dict[GraphName, list[Port]]
    nodes: list[Node]
    slow: list[str] | None = None  # nodes that no fast kernel serves, and what serves them; None: not recorded
    kernel_bytes: int | None = Field(None, ge=0)  # of the object file of the target's kernels; None: not recorded
    sections: list[Section] = []  # of weights.bin; empty: not recorded
    others: list[Variant] = []

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
                raise ValueError(f"file name {name!r} does not stay inside the bundle")
        return files

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = self.variants()
        if len(set(names)) < len(names):
            raise ValueError(f"variants {', '.join(names)}: a name stands twice")
        if self.others and (self.slow is None or self.kernel_bytes is None or not self.sections):
            raise ValueError("several variants, but slow, kernel_bytes or sections is not recorded")
        end = 0
        for section in sorted(self.sections, key=lambda each: each.offset):
            where = f"sections: bytes {section.offset}..{section.offset + section.bytes}"
            if section.offset + section.bytes > self.weights_bytes:
                raise ValueError(f"{where} of {self.weights_bytes} of weights")
            if section.offset < end:
                raise ValueError(f"{where} overlap those before {end}")
            if not section.variants or len(set(section.variants)) < len(section.variants):
                raise ValueError(f"{where}: variants {section.variants}: expected one or more, each once")
            if strange := sorted(set(section.variants) - set(names)):
                raise ValueError(f"{where}: variants {', '.join(strange)} of {', '.join(names)}")
            end = section.offset + section.bytes
        return self

    def variants(self) -> list[str]:
        """Names of the targets that the bundle has kernels for: that which is described, then the others in order.

        So the most demanding comes first in a manifest as it was read, not after `of`.
        """
        return [self.target.name, *(each.target.name for each in self.others)]

    def of(self, variant: str) -> "Manifest":
        """Return the manifest as one of this variant, the rest among its `others`.

        Raises UnsupportedError for a variant that is not there.
        """
        if variant == self.target.name:
            return self
        chosen = next((each for each in self.others if each.target.name == variant), None)
        if chosen is None:
            raise UnsupportedError(f"variant {variant!r}: the bundle has {', '.join(self.variants())}")
        best = Variant(**{name: getattr(self, name) for name in Variant.model_fields})
        rest = [each for each in self.others if each is not chosen]
        own = {name: getattr(chosen, name) for name in Variant.model_fields}
        return self.model_copy(update={**own, "others": [best, *rest]})

    def states(self) -> list[Port]:
        """The carried state tensors, in the order of `edm_state_read`."""
        return [port for port in self.inputs["step"] if port.role == "state"]
