"""The header of a safetensors file, checked by itself before the library maps or copies any tensor.

The library refuses most of what is wrong; here the rest is too: names that stand twice, of which a reader sees one,
and headers so large that reading them is the attack. Everything is compared with the file's size in whole numbers that
cannot wrap, so nothing is allocated by what a header claims.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedm.errors import InvalidModelError
from edgedm.files import check_regular, parse_json

MOST_HEADER_BYTES = 32 << 20
MOST_AXES = 16
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a header; `begin` and `end` are bytes behind it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: str | os.PathLike[str], within: str | os.PathLike[str] | None = None) -> dict[str, Entry]:
    """Return the tensors that the safetensors file `path` holds, by name.

    Raises `InvalidModelError` that names the file, and the tensor, where it is no whole file: a length or an offset
    beyond its end, a shape that its bytes don't hold, bytes that belong to no tensor or to two, a name that stands
    twice, an unknown dtype. `within` as in `edgedm.files.check_regular`. FileNotFoundError where there is none.
    """
    size = check_regular(path, within)
    if size < _LENGTH_BYTES:
        raise _broken(path, f"{size} bytes hold no header")
    with Path(path).open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if length > min(size - _LENGTH_BYTES, MOST_HEADER_BYTES):
            raise _broken(path, f"a header of {length} bytes in a file of {size}")
        text = stream.read(length)
    try:
        values = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise _broken(path, "its header is no object")
    values.pop(_METADATA, None)
    entries = {name: _entry(path, name, value) for name, value in values.items()}
    _check_cover(path, entries, size - _LENGTH_BYTES - length)
    return entries


def _entry(path: str | os.PathLike[str], name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"tensor {name!r}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _broken(path, f"tensor {name!r}: dtype {str(dtype)[:20]!r}")
    if not _counts(shape) or len(shape) > MOST_AXES or not _counts(offsets) or len(offsets) != 2:
        raise _broken(path, f"tensor {name!r}: its shape or data_offsets are no list of counts")
    begin, end = offsets
    wanted = math.prod(shape) * _BITS[dtype] // 8
    if end - begin != wanted:
        raise _broken(
            path, f"tensor {name!r}: {dtype} {shape} takes {wanted} bytes, its data_offsets hold {end - begin}"
        )
    return Entry(dtype, tuple(shape), begin, end)


def _check_cover(path: str | os.PathLike[str], entries: dict[str, Entry], size: int) -> None:
    """Every byte behind the header belongs to one tensor."""
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda each: (each[1].begin, each[1].end)):
        if entry.begin != reached:
            raise _broken(path, f"tensor {name!r} begins at byte {entry.begin}, the one before ends at {reached}")
        reached = entry.end
    if reached != size:
        raise _broken(path, f"its tensors take {reached} bytes, the file holds {size}")


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 64 for each in value)


def _broken(path: str | os.PathLike[str], why: str) -> InvalidModelError:
    return InvalidModelError(f"{path}: not a whole safetensors file: {why}")
