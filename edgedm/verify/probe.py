"""The compiled library, opened for examination: single kernel calls, steps, carried state, other constants.

The weights are given to the library as memory of ours. It checks their hash once, when it opens them; afterwards
`lend` gives a kernel other values (a multiplier of 1, say), while the kernel itself stays what ships.
"""

import ctypes as c
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.bundle import Bundle, Node, Operand
from edgedm.errors import ParityError
from edgedm.runtime import library as lib
from edgedm.runtime.local import LocalRunner

Array = NDArray[Any]
_ALIGNMENT = 64


class Probe(LocalRunner):
    """A runner whose weights lie in memory of this process, so that they can be changed after the hash check."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self._library = lib.Library(bundle.library.absolute(), self.manifest.prefix)
        self._model, self._session = c.c_void_p(), c.c_void_p()
        self._weights = _aligned(bundle.weights.read_bytes())
        source = lib.Source(memory=self._weights.ctypes.data, length=self._weights.size)
        self._library.check("open", c.byref(source), c.byref(self._model))
        try:
            options = lib.SessionOptions(threads=threads, lanes=1)
            self._library.check("session_create", self._model, c.byref(options), c.byref(self._session))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Probe":
        return self

    def calls(self, graph: str) -> list[Node]:
        """The kernel calls of `graph` ("step" or "prepare") in order."""
        return [node for node in self.manifest.nodes if node.graph == graph]

    def run(self, node: Node, inputs: Sequence[Array]) -> list[Array]:
        """Run one kernel on its operands that are no constants; packed bits may come as bytes, in any shape."""
        operands = [each for each in node.inputs if each.source != "weights"]
        given = [_fitting(*each) for each in zip(operands, inputs, strict=True)]
        results = [np.empty(each.shape, each.dtype) for each in node.outputs]
        name = node.graph.encode()
        self._library.check("run_node", self._session, name, node.index, _pointers(given), _pointers(results))
        return results

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
            yield
        finally:
            for number, array in reversed(kept.items()):
                self._place(node.inputs[number])[...] = array

    def _place(self, operand: Operand) -> Array:
        if operand.source != "weights":
            raise ValueError(f"{operand.name}: not a constant")
        count = int(np.prod(operand.shape, dtype=np.int64)) * np.dtype(operand.dtype).itemsize
        data = self._weights[operand.offset : operand.offset + count]
        return data.view(operand.dtype).reshape(operand.shape)


def _fitting(operand: Operand, array: Array) -> Array:
    array = np.ascontiguousarray(array)
    if array.dtype == np.uint8 and operand.dtype == "uint64":
        array = array.reshape(-1).view("<u8")
    return array.reshape(operand.shape)


def _pointers(arrays: Sequence[Array]) -> Any:
    return (c.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))


def _aligned(data: bytes) -> NDArray[np.uint8]:
    """A copy of `data` that starts at a multiple of 64 bytes, as the kernels expect of memory that isn't copied."""
    block = np.empty(len(data) + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    block[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return block[start : start + len(data)]
