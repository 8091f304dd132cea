"""Run a bundle of another machine: its `bin/edgedm-probe` under an emulator, or natively, behind a pipe.

Requests and answers are those of `templates/probe/main.c`: a header of 16 bytes, then the arrays as they lie in
memory, little endian.
"""

import contextlib
import signal
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from edgedm.bundle import Bundle, Node, load
from edgedm.diffusion import first_step
from edgedm.errors import EdgedmError, InvalidModelError, ToolchainError, UnsupportedError
from edgedm.runtime import library as lib
from edgedm.runtime.choice import as_variant, emulator_of
from edgedm.runtime.runner import (
    Array,
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
    operand_bytes,
    start_input,
    state_inputs,
    state_output,
)

_READY = b"EDMPROB2"  # the name of the variant follows
_HEADER = struct.Struct("<IIQ")  # command or status, zero, bytes of payload
_SECONDS_TO_END = 10
_PREPARE, _STEP, _RESET, _STATE_READ, _STATE_WRITE, _SAMPLE, _NORMALS, _RUN_NODE, _LEND, _PROFILE, _DECODE = range(
    1, 12
)


class ExecRunner(Runner):
    """A bundle whose probe executable runs in a process of its own.

    `command` is put before the executable; None is what the bundle's target needs here: nothing or an emulator. Of
    several variants the one that runs is chosen as in `LocalRunner`; an emulator's CPU is the least that has all of
    its features. Raises ToolchainError if that is missing or cannot be run, InvalidModelError for an altered bundle.
    An executable that dies raises EdgedmError with the signal and what it said.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        threads: int = 1,
        lanes: int = 0,
        command: Sequence[str] | None = None,
        variant: str | None = None,
    ) -> None:
        check_number("threads", threads)
        check_number("lanes", lanes)
        self.bundle = bundle if isinstance(bundle, Bundle) else load(bundle)
        if variant is not None:
            self.bundle = as_variant(self.bundle, variant)
        self.manifest = self.bundle.manifest
        if not self.bundle.probe.is_file():
            raise InvalidModelError(f"{self.bundle.probe}: no such file; compile the bundle again")
        before = emulator_of(self.bundle) if command is None else command
        chosen = [] if self.bundle.variant is None else [self.bundle.variant]
        arguments = [self.bundle.probe, self.bundle.weights, threads, lanes, *chosen]
        self._steps = 1  # of the prepared schedule
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        words = [*before, *map(str, arguments)]
        try:
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        except OSError as error:
            self._log.close()
            raise ToolchainError(
                f"{' '.join(words)}: cannot be run here: {error.strerror}; compile for this machine, or install the "
                "target's emulator"
            ) from error
        try:
            ready, runs = (said := self._answer("start"))[: len(_READY)], said[len(_READY) :]
            if ready != _READY:
                raise InvalidModelError(f"{self.bundle.probe}: not the probe of this edgedm; compile the bundle again")
            self._runs(runs.decode("utf-8", "replace"))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process; calling it twice is allowed."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

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
        """See `Runner.prepare`."""
        if sampler not in lib.SAMPLERS:
            raise UnsupportedError(f"sampler: expected one of {', '.join(lib.SAMPLERS)}, got {sampler!r}")
        check_schedule(steps, label, guidance, timesteps)
        given = np.array([] if timesteps is None else timesteps, "<i8")
        count = steps if timesteps is None else len(given)
        which, number = lib.SAMPLERS[sampler], -1 if label is None else label
        texts = [each for each in (condition, negative) if each is not None]
        which_texts = (condition is not None) + 2 * (negative is not None)
        fixed = struct.pack("<iidqfIII", count, which, eta, number, guidance, timesteps is not None, which_texts, 0)
        arrays = [array for each in texts if (array := condition_input(self.manifest, each)) is not None]
        chosen = [int(each) for each in np.frombuffer(self._ask(_PREPARE, "prepare", fixed, given, *arrays), "<i8")]
        self._steps = len(chosen)
        return chosen

    def run_step(self, step: int, x: Floats) -> Floats:
        """See `Runner.run_step`."""
        check_number("step", step)
        x = image_input(self.manifest, x)
        data = self._ask(_STEP, f"step {step}", struct.pack("<ii", step, 0), x)
        return np.frombuffer(data, "<f4").reshape(x.shape).copy()

    def reset(self) -> None:
        """See `Runner.reset`."""
        self._ask(_RESET, "reset")

    def write_state(self, state: Mapping[str, Floats]) -> None:
        """See `Runner.write_state`."""
        self._ask(_STATE_WRITE, "carried state", *state_inputs(self.manifest, state))

    def read_state(self) -> dict[str, Floats]:
        """See `Runner.read_state`."""
        data, found = np.frombuffer(self._ask(_STATE_READ, "carried state"), "<f4"), {}
        for port in self.manifest.states():
            size = int(np.prod(port.shape, dtype=np.int64))
            found[port.name], data = state_output(data[:size].reshape(port.shape)), data[size:]
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
        """See `Runner.sample`. Progress is told after each image; without it all are drawn in one go."""
        check_drawing(n, seed, first_image)
        given = None if start is None else start_input(self.manifest, n, start)
        if progress is None:
            return self._draw(n, seed, first_image, given, strength)
        steps = self._steps - (0 if given is None else first_step(self._steps, strength))
        images = []
        for number in range(n):
            own = None if given is None else given[number : number + 1]
            images.append(self._draw(1, seed, first_image + number, own, strength))
            if not progress((number + 1) * steps, n * steps):
                raise KeyboardInterrupt
        return np.concatenate(images)

    def _draw(self, n: int, seed: int, first_image: int, start: Floats | None, strength: float) -> Floats:
        fixed = struct.pack("<QIId", seed, first_image, n, strength)
        data = self._ask(_SAMPLE, "sampling", fixed, *([] if start is None else [start]))
        return np.frombuffer(data, "<f4").reshape(n, *self.manifest.image_shape).copy()

    def decode(self, latent: Floats) -> Floats:
        """See `Runner.decode`."""
        shape = decoded_shape(self.manifest)
        data = self._ask(_DECODE, "decode", image_input(self.manifest, latent))
        return np.frombuffer(data, "<f4").reshape(shape).copy()

    def run_node(self, node: int | Node, inputs: Sequence[Array]) -> list[Array]:
        """See `Runner.run_node`."""
        node = self.manifest.nodes[node] if isinstance(node, int) else node
        arrays = node_inputs(node, inputs)
        fixed = struct.pack("<i12s", node.index, node.graph.encode())
        data = self._ask(_RUN_NODE, f"kernel {node.kernel} ({node.op} {node.module})", fixed, *arrays)
        results = []
        for operand in node.outputs:
            size = operand_bytes(operand)
            results.append(np.frombuffer(data[:size], operand.dtype).reshape(operand.shape).copy())
            data = data[size:]
        return results

    def profile(self, step: int, x: Floats, repeats: int = 1) -> "np.ndarray[tuple[int, int], np.dtype[np.uint64]]":
        """See `Runner.profile`; under an emulator the times are the emulator's."""
        check_number("step", step)
        x = image_input(self.manifest, x)
        rows = [self._ask(_PROFILE, "profile", struct.pack("<ii", step, 0), x) for _ in range(repeats)]
        return np.frombuffer(b"".join(rows), "<u8").reshape(repeats, -1).copy()

    def normals(self, seed: int, image: int, draw: int, count: int) -> Floats:
        """See `Runner.normals`."""
        check_noise(seed, image, draw, count)
        return np.frombuffer(self._ask(_NORMALS, "noise", struct.pack("<QIIQ", seed, image, draw, count)), "<f4").copy()

    def write_weights(self, offset: int, data: bytes) -> None:
        """Let the kernels find `data` at `offset` of the weights from now on."""
        self._ask(_LEND, "other weights", struct.pack("<Q", offset), data)

    # --- the pipe -----------------------------------------------------------------------------------------------

    def _ask(self, command: int, what: str, *parts: bytes | Array) -> bytes:
        pieces = [part if isinstance(part, bytes) else part.tobytes() for part in parts]
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            raise UnsupportedError(self._closed())
        try:
            self._process.stdin.write(_HEADER.pack(command, 0, sum(map(len, pieces))))
            for piece in pieces:
                self._process.stdin.write(piece)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died(what) from None
        return self._answer(what)

    def _answer(self, what: str) -> bytes:
        status, _, size = _HEADER.unpack(self._read(_HEADER.size, what))
        payload = self._read(size, what)
        if status:
            lib.raise_status(status, payload.decode("utf-8", "replace"))
        return payload

    def _read(self, size: int, what: str) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise self._died(what)
        return data

    def _died(self, what: str) -> EdgedmError:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode("utf-8", "replace").strip()[-1000:]
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = "; an instruction that this CPU lacks" if code == -signal.SIGILL else ""
        command = " ".join(map(str, self._process.args)) if isinstance(self._process.args, list) else ""
        return EdgedmError(f"{command}: died during {what}: {end}{hint}{': ' + said if said else ''}")
