"""What runs a bundle, wherever that is: the interface of the runners, and how arrays are laid out for them."""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgedm.bundle import Bundle, Manifest, Node, Operand
from edgedm.errors import InvalidModelError, UnsupportedError, short

Floats = NDArray[np.float32]
Array = NDArray[Any]
Progress = Callable[[int, int], bool]
"""(steps done, steps in all) -> whether to go on."""

MOST_INT, MOST_UINT32, MOST_UINT64 = 2**31 - 1, 2**32 - 1, 2**64 - 1  # of the C interface
MOST_THREADS = 1024  # and lanes; the same in runtime/templates/session.c


class Runner(ABC):
    """An opened bundle; use it as a context manager or call `close`.

    Images, eps and carried state are channels-first as in the exported graph, without the batch axis for images
    (f32[C, H, W]) and with it for state (f32[1, C, H, W]). One thread at a time may use a runner.
    """

    bundle: Bundle
    manifest: Manifest
    variant: str
    """Of the kernels in the bundle, those that run; the manifest describes them."""

    def _runs(self, variant: str) -> None:
        """Note which variant was opened; InvalidModelError for one that the manifest does not know."""
        if variant not in self.bundle.manifest.variants():
            raise InvalidModelError(
                f"{self.bundle.path}: the code runs a variant {variant!r}, the manifest has "
                f"{', '.join(self.bundle.manifest.variants())}; compile the bundle again"
            )
        self.bundle = self.bundle.of(variant)
        self.manifest, self.variant = self.bundle.manifest, variant

    def _closed(self) -> str:
        """What is said to whoever uses a runner that is closed."""
        return f"{self.bundle.path}: the runner is closed; open the bundle again"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; calling it twice is allowed."""

    @abstractmethod
    def prepare(
        self,
        steps: int = 50,
        sampler: str = "ddim",
        eta: float = 0.0,
        label: int | None = None,
        guidance: float = 1.0,
        timesteps: Sequence[int] | None = None,
        condition: Floats | None = None,
        negative: Floats | None = None,
    ) -> list[int]:
        """Choose a schedule and conditions, start a new trajectory; returns the timesteps.

        `timesteps` names them outright (descending) instead of `steps`. `label` None is unconditional. `condition` and
        `negative` f32[T, D] are the text conditions of a model that has them (`negative` None: zeros). Raises
        UnsupportedError for what the model cannot do, timesteps outside the trained ones included.
        """

    @abstractmethod
    def run_step(self, step: int, x: Floats) -> Floats:
        """The model's output for x f32[C, H, W] at `step` of the prepared schedule; carried state moves on."""

    @abstractmethod
    def reset(self) -> None:
        """Start a new trajectory under the prepared schedule."""

    @abstractmethod
    def write_state(self, state: Mapping[str, Floats]) -> None:
        """Continue from this carried state; every `state.<tap>` must be there."""

    @abstractmethod
    def read_state(self) -> dict[str, Floats]:
        """The carried state by name, f32[1, C, H, W]."""

    @abstractmethod
    def sample(
        self,
        n: int,
        seed: int = 0,
        first_image: int = 0,
        progress: Progress | None = None,
        start: Floats | None = None,
        strength: float = 1.0,
    ) -> Floats:
        """Draw `n` images under the prepared schedule: f32[n, C, H, W]. Ctrl-C stops it.

        With images f32[n, C, H, W] to `start` from, the last `strength` of the steps are executed.
        """

    @abstractmethod
    def decode(self, latent: Floats) -> Floats:
        """The image f32[3, H, W] of a latent model's sample f32[C, h, w]; UnsupportedError for a model without."""

    @abstractmethod
    def run_node(self, node: int | Node, inputs: Sequence[Array]) -> list[Array]:
        """Run one kernel call alone: `node` is an entry of `manifest.nodes` or its position there.

        `inputs` are the call's operands that are not constants (source other than weights), in their order and
        with the manifest's shapes and dtypes; the result is its outputs.
        """

    @abstractmethod
    def profile(self, step: int, x: Floats, repeats: int = 1) -> NDArray[np.uint64]:
        """Nanoseconds of every kernel call of a step: uint64[repeats, calls]; carried state does not move on."""

    @abstractmethod
    def normals(self, seed: int, image: int, draw: int, count: int) -> Floats:
        """Noise as the runtime draws it; see `edgedm.diffusion.normals`."""

    def step(
        self,
        timestep: int,
        x: Floats,
        label: int | None = None,
        state: Mapping[str, Floats] | None = None,
        condition: Floats | None = None,
    ) -> tuple[Floats, dict[str, Floats]]:
        """One teacher-forced step: output and next state at `timestep`, from a given carried state.

        `state` maps the graph's `state.<tap>` inputs to f32[1, C, H, W]; None starts a trajectory (has_state 0).
        The result maps `state.<tap>.next` to the same shapes.
        """
        self.prepare(label=label, timesteps=[timestep], condition=condition)
        if state is not None:
            self.write_state(state)
        return self.run_step(0, x), {f"{name}.next": array for name, array in self.read_state().items()}

    def constants(self, node: Node) -> list[Array]:
        """The constant operands of a kernel call, in the kernel's layout, as they lie in weights.bin."""
        data = np.memmap(self.bundle.weights, mode="r", dtype=np.uint8)
        found = []
        for operand in node.inputs:
            if operand.source == "weights":
                piece = data[operand.offset : operand.offset + operand_bytes(operand)]
                found.append(piece.view(operand.dtype).reshape(operand.shape))
        return found


def check_number(name: str, value: Any, low: int = 0, high: int = MOST_INT) -> None:
    """Raise UnsupportedError for what C would read as another number: no whole one, or one outside low..high."""
    try:
        right = low <= operator.index(value) <= high
    except TypeError:
        right = False
    if not right:
        raise UnsupportedError(f"{name}: expected a whole number in {low}..{high}, got {short(value)}")


def check_schedule(steps: int, label: int | None, guidance: float, timesteps: Sequence[int] | None) -> None:
    """`check_number` for the arguments of `Runner.prepare`; guidance has to be a float32, and finite."""
    check_number("steps", steps)
    for timestep in () if timesteps is None else timesteps:
        check_number("timestep", timestep)
    if label is not None:
        check_number("label", label)
    if not abs(float(guidance)) <= float(np.finfo(np.float32).max):  # nor is NaN
        raise UnsupportedError(f"guidance: expected a finite float32, got {short(guidance)}")


def check_drawing(n: int, seed: int, first_image: int) -> None:
    """`check_number` for the arguments of `Runner.sample`: each of the `n` images has a number below 2^32."""
    check_number("n", n, high=MOST_UINT32)
    check_number("seed", seed, high=MOST_UINT64)
    check_number("first_image", first_image, high=MOST_UINT32 + 1 - max(int(n), 1))


def check_noise(seed: int, image: int, draw: int, count: int) -> None:
    """`check_number` for the arguments of `Runner.normals`."""
    check_number("seed", seed, high=MOST_UINT64)
    check_number("image", image, high=MOST_UINT32)
    check_number("draw", draw, high=MOST_UINT32)
    check_number("count", count, high=MOST_UINT32)


def operand_bytes(operand: Operand) -> int:
    """Size of a kernel's operand."""
    return math.prod(operand.shape) * np.dtype(operand.dtype).itemsize


def image_input(manifest: Manifest, x: Floats) -> Floats:
    """`x` as the runtime reads it; UnsupportedError for another shape than the model's."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.shape != manifest.image_shape:
        raise UnsupportedError(f"x: expected shape {manifest.image_shape}, got {x.shape}")
    return x


def start_input(manifest: Manifest, n: int, start: Floats) -> Floats:
    """Images to start `n` drawings from as the runtime reads them; UnsupportedError for another shape."""
    start = np.ascontiguousarray(start, dtype=np.float32)
    if start.shape != (n, *manifest.image_shape):
        raise UnsupportedError(f"start: expected shape {(n, *manifest.image_shape)}, got {start.shape}")
    return start


def condition_input(manifest: Manifest, condition: Floats | None) -> Floats | None:
    """A text condition as the runtime reads it; UnsupportedError for another shape than the model's."""
    if condition is None:
        return None
    if manifest.condition_shape is None:
        raise UnsupportedError("condition: this model has no text condition")
    if condition.shape[-2:] != manifest.condition_shape or condition.size != np.prod(manifest.condition_shape):
        raise UnsupportedError(f"condition: expected shape {manifest.condition_shape}, got {condition.shape}")
    return np.ascontiguousarray(condition, dtype=np.float32)


def decoded_shape(manifest: Manifest) -> tuple[int, int, int]:
    """The shape of a latent model's images; UnsupportedError for a model without a decoder."""
    if manifest.decoded_shape is None:
        raise UnsupportedError("decode: this model draws images, not latents")
    return manifest.decoded_shape


def state_inputs(manifest: Manifest, state: Mapping[str, Floats]) -> list[Floats]:
    """Carried state channels last, in the runtime's order; UnsupportedError for a missing or misshapen one."""
    found = []
    for port in manifest.states():
        if port.name not in state:
            raise UnsupportedError(f"state {port.name!r} is missing")
        moved = np.ascontiguousarray(np.moveaxis(state[port.name], 1, -1), dtype=np.float32)
        if moved.shape != port.shape:
            raise UnsupportedError(f"state {port.name!r}: expected channels-last {port.shape}, got {moved.shape}")
        found.append(moved)
    return found


def state_output(array: Floats) -> Floats:
    """Carried state as it comes from the runtime, f32[1, H, W, C], as f32[1, C, H, W]."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def node_inputs(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """The operands of a kernel call as it reads them; UnsupportedError for another number, dtype or shape."""
    wanted = [operand for operand in node.inputs if operand.source != "weights"]
    if len(inputs) != len(wanted):
        raise UnsupportedError(f"node {node.index} ({node.op}): expected {len(wanted)} inputs, got {len(inputs)}")
    arrays = []
    for operand, array in zip(wanted, inputs, strict=True):
        array = np.asarray(array, order="C")  # keeps a scalar a scalar
        if array.shape != operand.shape or str(array.dtype) != operand.dtype:
            raise UnsupportedError(
                f"node {node.index} ({node.op}): input {operand.name!r}: expected {operand.dtype}"
                f"{list(operand.shape)}, got {array.dtype}{list(array.shape)}"
            )
        arrays.append(array)
    return arrays
