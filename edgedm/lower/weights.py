"""weights.bin: every constant of both graphs once, 64-byte aligned."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.lower.memory import ALIGNMENT


class Weights:
    """Collects constants; equal bytes are stored once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._offsets: dict[bytes, int] = {}

    def add(self, array: NDArray[Any]) -> int:
        """Store `array` (little endian, C order) and return its offset."""
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        if data not in self._offsets:
            self._data.extend(bytes(-len(self._data) % ALIGNMENT))
            self._offsets[data] = len(self._data)
            self._data.extend(data)
        return self._offsets[data]

    def tobytes(self) -> bytes:
        """The whole file."""
        return bytes(self._data)
