"""weights.bin: every constant of all graphs once, 64-byte aligned, what only one variant reads in pages of its own."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.lower.memory import ALIGNMENT, align
from edgedm.targets.android import PAGE_BYTES


@dataclass(frozen=True)
class WeightsFile:
    """The bytes of weights.bin. `moved` maps what `Weights.add` returned to the place in the file."""

    data: bytes
    moved: dict[int, int]
    sections: list["Part"]


@dataclass(frozen=True)
class Part:
    """A section of the file: its constants are read by these variants, by number, and by no other."""

    offset: int
    bytes: int
    sha256: str
    readers: tuple[int, ...]


class Weights:
    """Collects constants; equal bytes are stored once."""

    def __init__(self) -> None:
        self._used = 0
        self._offsets: dict[bytes, int] = {}
        self._readers: dict[int, set[int]] = {}

    def add(self, array: NDArray[Any], reader: int = 0) -> int:
        """Store `array` (little endian, C order), which the variant of number `reader` reads.

        Returns its offset, if no variant has constants of its own; else see `WeightsFile.moved`.
        """
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        if data not in self._offsets:
            self._offsets[data] = align(self._used)
            self._used = self._offsets[data] + max(len(data), 1)  # an empty constant has an offset of its own, too
        offset = self._offsets[data]
        self._readers.setdefault(offset, set()).add(reader)
        return offset

    def file(self) -> WeightsFile:
        """Lay the file out: first what most variants read, then what fewer do, each in pages that no other touches."""
        groups: dict[tuple[int, ...], list[bytes]] = {}
        for data, offset in self._offsets.items():
            groups.setdefault(tuple(sorted(self._readers[offset])), []).append(data)
        pieces, moved, sections, used = list[bytes](), dict[int, int](), list[Part](), 0
        for readers in sorted(groups, key=lambda each: (-len(each), each)):
            pieces.append(bytes(-used % (PAGE_BYTES if len(groups) > 1 else ALIGNMENT)))
            used += len(pieces[-1])
            start, digest = used, hashlib.sha256()
            for data in groups[readers]:
                gap = bytes(-used % ALIGNMENT)
                moved[self._offsets[data]] = used + len(gap)
                for piece in (gap, data):
                    pieces.append(piece)
                    digest.update(piece)
                    used += len(piece)
            sections.append(Part(start, used - start, digest.hexdigest(), readers))
        return WeightsFile(b"".join(pieces), moved, sections)
