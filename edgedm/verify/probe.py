"""A compiled bundle, opened for examination: single kernel calls, steps, carried state, other constants.

The weights are given to the bundle's code as memory of ours. It checks their hash once, when it opens them;
afterwards `lend` gives a kernel other values (a multiplier of 1, say), while the kernel itself stays what ships. A
bundle of another machine is examined through its probe executable, on the target's own objects.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from edgedm.bundle import Bundle, Node, Operand
from edgedm.errors import ParityError
from edgedm.runtime import ExecRunner, LocalRunner, Runner
from edgedm.runtime import library as lib
from edgedm.runtime.choice import is_local
from edgedm.runtime.runner import Array, operand_bytes

_ALIGNMENT = 64


class Probe(Runner):
    """A runner whose weights can be changed after the hash check; `open_probe` makes one."""

    _weights: NDArray[np.uint8]

    def calls(self, graph: str) -> list[Node]:
        """The kernel calls of `graph` ("step" or "prepare") in order."""
        return [node for node in self.manifest.nodes if node.graph == graph]

    def run(self, node: Node, inputs: Sequence[Array]) -> list[Array]:
        """Run one kernel on its operands that are no constants; packed bits may come as bytes, in any shape."""
        operands = [each for each in node.inputs if each.source != "weights"]
        return self.run_node(node, [_fitting(*each) for each in zip(operands, inputs, strict=True)])

    def constant(self, operand: Operand) -> Array:
        """The constant that a kernel reads there, in the kernel's layout."""
        return self._place(operand).copy()

    @contextmanager
    def lend(self, values: Mapping[int, Array], node: Node) -> Iterator[None]:
        """Lend `node` other constants: input number -> values of the same size. Raises ParityError if two collide."""
        kept: dict[int, Array] = {}
        lent: dict[int, bytes] = {}
        try:
            for number, array in values.items():
                operand = node.inputs[number]
                place = self._place(operand)
                data = np.ascontiguousarray(array, operand.dtype).reshape(operand.shape)
                if lent.setdefault(operand.offset, data.tobytes()) != data.tobytes():
                    raise ParityError(f"{node.kernel}: two of its constants are one and cannot differ")
                kept.setdefault(number, place.copy())
                place[...] = data
                self._changed(operand)
            yield
        finally:
            for number, array in reversed(kept.items()):
                self._place(node.inputs[number])[...] = array
                self._changed(node.inputs[number])

    @abstractmethod
    def _changed(self, operand: Operand) -> None:
        """Let the kernels see the weights of `operand` as they are now."""

    def _place(self, operand: Operand) -> Array:
        if operand.source != "weights":
            raise ValueError(f"{operand.name}: not a constant")
        data = self._weights[operand.offset : operand.offset + operand_bytes(operand)]
        return data.view(operand.dtype).reshape(operand.shape)


class LocalProbe(Probe, LocalRunner):
    """A bundle whose library is loaded here, and reads the weights where they lie in this process."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self._weights = _aligned(bundle.weights.read_bytes())
        source = lib.source_of(bundle.variant, memory=self._weights.ctypes.data, length=self._weights.size)
        self._open(source, lib.SessionOptions(threads=threads, lanes=1))

    def _changed(self, operand: Operand) -> None:
        """The library reads this very memory."""


class ExecProbe(Probe, ExecRunner):
    """A bundle whose probe runs in a process of its own, with a copy of the weights there and one here."""

    def __init__(self, bundle: Bundle, threads: int = 1, command: Sequence[str] | None = None) -> None:
        super().__init__(bundle, threads, 1, command)
        self._weights = _aligned(bundle.weights.read_bytes())

    def _changed(self, operand: Operand) -> None:
        self.write_weights(operand.offset, self._place(operand).tobytes())


def open_probe(bundle: Bundle, threads: int = 1) -> Probe:
    """Open `bundle` for examination, here or under an emulator; ToolchainError where nothing here can run it."""
    return LocalProbe(bundle, threads) if is_local(bundle) else ExecProbe(bundle, threads)


def _fitting(operand: Operand, array: Array) -> Array:
    array = np.ascontiguousarray(array)
    if array.dtype == np.uint8 and operand.dtype == "uint64":
        array = array.reshape(-1).view("<u8")
    return array.reshape(operand.shape)


def _aligned(data: bytes) -> NDArray[np.uint8]:
    """A copy of `data` that starts at a multiple of 64 bytes, as the kernels expect of memory that isn't copied."""
    block = np.empty(len(data) + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    block[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return block[start : start + len(data)]
