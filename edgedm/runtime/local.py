"""Run a bundle in this process, through its C interface."""

import ctypes as c
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.bundle import Bundle, Node, load
from edgedm.bundle.store import MANIFEST
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.runtime import library as lib
from edgedm.runtime.choice import as_variant
from edgedm.runtime.runner import (
    MOST_THREADS,
    Floats,
    Progress,
    Runner,
    check_drawing,
    check_noise,
    check_number,
    check_schedule,
    condition_input,
    decoded_shape,
    image_input,
    node_inputs,
    start_input,
    state_inputs,
    state_output,
)


class LocalRunner(Runner):
    """A bundle whose library is loaded into this process.

    Of several variants of its kernels `variant` runs, or the one that EDGEDM_FEATURES names, or the best that this
    machine can; `variant` is then its name, and `manifest` describes it. Raises UnsupportedError for one that is not
    there, ToolchainError where the processor lacks what it needs.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        threads: int = 1,
        lanes: int = 0,
        cores: Sequence[int] = (),
        variant: str | None = None,
    ) -> None:
        for name, value in [("threads", threads), ("lanes", lanes), *(("cores", core) for core in cores)]:
            check_number(name, value)
        self.bundle = bundle if isinstance(bundle, Bundle) else load(bundle)
        if variant is not None:
            self.bundle = as_variant(self.bundle, variant)
        source = lib.source_of(self.bundle.variant, path=os.fsencode(self.bundle.weights))
        options = lib.SessionOptions(threads=threads, lanes=lanes, core_count=len(cores))
        options.cores = (c.c_int * max(len(cores), 1))(*cores)
        self._open(source, options)

    def _open(self, source: lib.Source, options: lib.SessionOptions) -> None:
        """Open the bundle's model and a session of it; from here on the manifest is that of the variant that runs."""
        self._library = lib.Library(self.bundle.library.absolute(), self.bundle.manifest.prefix)
        self._model, self._session = c.c_void_p(), c.c_void_p()
        self._check_shapes()
        self._library.check("open", c.byref(source), c.byref(self._model))
        try:
            self._library.check("session_create", self._model, c.byref(options), c.byref(self._session))
            self._runs(self._library.call("model_variant", self._model).decode())
        except BaseException:
            self.close()
            raise

    def _check_shapes(self) -> None:
        """What the library reads and writes must be what arrays are made by; InvalidModelError says what is not."""
        for name, rank in (("image_shape", 3), ("decoded_shape", 3), ("condition_shape", 2)):
            said, found = getattr(self.bundle.manifest, name), self._library.shape(name, rank)
            if said != found:
                raise InvalidModelError(
                    f"{self.bundle.path / MANIFEST}: {name} is {said}, but the bundle's library has {found}; "
                    "compile the bundle again"
                )

    def close(self) -> None:
        """Free session and model; calling it twice is allowed."""
        if self._session:
            self._library.call("session_free", self._session)
        if self._model:
            self._library.call("close", self._model)
        self._session, self._model = c.c_void_p(), c.c_void_p()
        self._library.closed = self._closed()

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

        `timesteps` names them outright (descending) instead of `steps`. `label` None is unconditional. Raises
        UnsupportedError for what the model cannot do, timesteps outside the trained ones included.
        """
        if sampler not in lib.SAMPLERS:
            raise UnsupportedError(f"sampler: expected one of {', '.join(lib.SAMPLERS)}, got {sampler!r}")
        check_schedule(steps, label, guidance, timesteps)
        count = steps if timesteps is None else len(timesteps)
        given = None if timesteps is None else (c.c_int64 * count)(*timesteps)
        schedule = lib.Schedule(steps=count, sampler=lib.SAMPLERS[sampler], eta=eta)
        if given is not None:
            schedule.timesteps = c.cast(given, c.POINTER(c.c_int64))
        conditions = lib.Conditions(label=-1 if label is None else label, guidance=guidance)
        kept = [condition_input(self.manifest, each) for each in (condition, negative)]
        if kept[0] is not None:
            conditions.encoder_hidden_states = _floats(kept[0])
        if kept[1] is not None:
            conditions.negative_encoder_hidden_states = _floats(kept[1])
        self._library.check("prepare", self._session, c.byref(schedule), c.byref(conditions))
        chosen = (c.c_int64 * count)()
        self._library.check("timesteps", self._session, chosen)
        return list(chosen)

    def run_step(self, step: int, x: Floats) -> Floats:
        """The model's output for x f32[C, H, W] at `step` of the prepared schedule; carried state moves on."""
        check_number("step", step)
        x = image_input(self.manifest, x)
        output = np.empty_like(x)
        self._library.check("step", self._session, step, _floats(x), _floats(output))
        return output

    def reset(self) -> None:
        """Start a new trajectory under the prepared schedule."""
        self._library.check("reset", self._session)

    def write_state(self, state: Mapping[str, Floats]) -> None:
        """Continue from this carried state; every `state.<tap>` must be there."""
        for index, array in enumerate(state_inputs(self.manifest, state)):
            self._library.check("state_write", self._session, index, _pointer(array))

    def read_state(self) -> dict[str, Floats]:
        """The carried state by name, f32[1, C, H, W]."""
        found = {}
        for index, port in enumerate(self.manifest.states()):
            data = np.empty(port.shape, np.float32)
            self._library.check("state_read", self._session, index, _pointer(data))
            found[port.name] = state_output(data)
        return found

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
        options, _kept = self._options(n, seed, first_image, start, strength)
        images = np.empty((n, *self.manifest.image_shape), np.float32)
        raised: list[BaseException] = []

        def report(_user: Any, done: int, total: int) -> int:
            try:
                return int(progress is not None and not progress(done, total))
            except BaseException as error:  # must not cross the C frames
                raised.append(error)
                return 1

        callback = lib.ProgressFunction(report)
        try:
            self._library.check("sample", self._session, c.byref(options), _floats(images), callback, None)
        except KeyboardInterrupt:
            raise (raised[0] if raised else KeyboardInterrupt) from None
        return images

    def previews(
        self, seed: int = 0, image: int = 0, start: Floats | None = None, strength: float = 1.0
    ) -> Iterator[tuple[Floats, Floats]]:
        """Draw one image step by step: yields x f32[C, H, W] after every step and the finished image as it expects it.

        The last x is the image of `sample` with these numbers. `start` is one image f32[C, H, W]. Another use of the
        runner on the way ends the drawing: the next step raises UnsupportedError.
        """
        options, _kept = self._options(1, seed, image, None if start is None else np.asarray(start)[None], strength)
        self._library.check("begin", self._session, c.byref(options))
        left = self._library.call("steps_left", self._session)
        for _ in range(left):
            x, estimate = (np.empty(self.manifest.image_shape, np.float32) for _ in range(2))
            self._library.check("next", self._session, _floats(estimate))
            self._library.check("current", self._session, _floats(x))
            yield x, estimate

    def big_cores(self) -> list[int]:
        """The fast cores of this machine if it has slow ones too, else all: what `cores` may be given."""
        found = (c.c_int * 1024)()
        return list(found[: self._library.call("big_cores", found, len(found))])

    def _options(
        self, n: int, seed: int, first_image: int, start: Floats | None, strength: float
    ) -> tuple[lib.SampleOptions, Floats | None]:
        """Options for the C side, and the array that must live as long as they do."""
        check_drawing(n, seed, first_image)
        options = lib.SampleOptions(seed=seed, first_image=first_image, images=n, strength=strength)
        if start is None:
            return options, None
        kept = start_input(self.manifest, n, start)
        options.start = _floats(kept)
        return options, kept

    def decode(self, latent: Floats) -> Floats:
        """The image f32[3, H, W] of a latent model's sample f32[C, h, w]; UnsupportedError for a model without."""
        latent = image_input(self.manifest, latent)
        image = np.empty(decoded_shape(self.manifest), np.float32)
        self._library.check("decode", self._session, _floats(latent), _floats(image))
        return image

    def run_node(self, node: int | Node, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run one kernel call alone: `node` is an entry of `manifest.nodes` or its position there.

        `inputs` are the call's operands that are not constants (source other than weights), in their order and
        with the manifest's shapes and dtypes; the result is its outputs.
        """
        node = self.manifest.nodes[node] if isinstance(node, int) else node
        arrays = node_inputs(node, inputs)
        outputs = [np.empty(operand.shape, operand.dtype) for operand in node.outputs]
        given, made = (_pointers(each) for each in (arrays, outputs))
        self._library.check("run_node", self._session, node.graph.encode(), node.index, given, made)
        return outputs

    def profile(self, step: int, x: Floats, repeats: int = 1) -> NDArray[np.uint64]:
        """Nanoseconds of every kernel call of a step: uint64[repeats, calls]; carried state does not move on."""
        check_number("step", step)
        x = image_input(self.manifest, x)
        times = np.zeros((repeats, self._library.call("call_count", self._session)), np.uint64)
        for row in times:
            self._library.check("profile", self._session, step, _floats(x), row.ctypes.data_as(c.POINTER(c.c_uint64)))
        return times

    def normals(self, seed: int, image: int, draw: int, count: int) -> Floats:
        """Noise as the runtime draws it; see `edgedm.diffusion.normals`."""
        check_noise(seed, image, draw, count)
        values = np.empty(count, np.float32)
        self._library.call("normals", seed, image, draw, count, _floats(values))
        return values

    def session_bytes(self, threads: int = 1, lanes: int = 0) -> int:
        """Memory of a session, besides what `prepare` takes for its rows; UnsupportedError for one that cannot be."""
        check_number("threads", threads, high=MOST_THREADS)
        check_number("lanes", lanes, high=MOST_THREADS)
        return int(self._library.call("session_bytes", c.byref(lib.SessionOptions(threads=threads, lanes=lanes))))


def _floats(array: Floats) -> Any:
    return array.ctypes.data_as(c.POINTER(c.c_float))


def _pointer(array: NDArray[Any]) -> c.c_void_p:
    return c.c_void_p(array.ctypes.data)


def _pointers(arrays: Sequence[NDArray[Any]]) -> Any:
    return (c.c_void_p * max(len(arrays), 1))(*(array.ctypes.data for array in arrays))
