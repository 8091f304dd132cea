"""manifest.json: what a bundle is, file by file and kernel by kernel."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

FAMILY = "edgedm.bundle/"  # what the format of every version begins with
FORMAT = f"{FAMILY}1"


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
    shape: tuple[int, ...]
    dtype: str


class Operand(_Record):
    """A tensor of a kernel call. `offset` is bytes in arena or weights, or the number of the input or output."""

    name: str  # of the value in the channels-last graph; empty inside what Relax fused
    shape: tuple[int, ...]
    dtype: str
    source: Literal["arena", "weights", "input", "output"]
    offset: int = Field(ge=0)


class Node(_Record):
    """One kernel call; `node` and `module` are empty where Relax fused standard ops. `scratch` lives during it.

    Where a bundle is of an edgedm that didn't record it, `scratch` is None.
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


class Schedule(_Record):
    """The default timestep schedule."""

    steps: int = Field(ge=1)
    sampler: Literal["ddim", "ddpm", "dpm-solver++"]


class Manifest(_Record):
    """The whole manifest.

    `image_shape` is what the sampler draws; of a latent model that is a latent, and `decoded_shape` its image's.
    `condition_shape` are the tokens of a text condition and their size. `row_bytes` are those of one step.
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

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
                raise ValueError(f"file name {name!r} does not stay inside the bundle")
        return files

    def states(self) -> list[Port]:
        """The carried state tensors, in the order of `edm_state_read`."""
        return [port for port in self.inputs["step"] if port.role == "state"]
