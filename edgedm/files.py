"""Read the files that others wrote: what a file must be before any of it is read, and JSON without surprises.

A name in an untrusted folder may be a pipe that never ends, a device, or a link to somebody's private file; JSON may
hold a name twice, of which readers take different ones, numbers that are none, and brackets without end. A file may be
nearly all hole: it takes no space, but as long to read, and as much memory, as its size says.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgedm.errors import InvalidModelError

Record = TypeVar("Record", bound=BaseModel)

MOST_HOLES = 64 << 20  # bytes; a file may have as many again as it has of data: file systems leave out zeros


def check_regular(path: str | os.PathLike[str], within: str | os.PathLike[str] | None = None) -> int:
    """Return the size of `path` in bytes; raise `InvalidModelError` unless it is a file with contents of its own.

    With a folder `within`, the path must end there, whatever links it or a folder on its way is (or, in the cache of
    a model hub, among the blobs of the same model). Nothing is read. A missing file raises FileNotFoundError.
    """
    path = Path(path)
    try:
        found = path.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise
        raise InvalidModelError(f"{path}: {error.strerror}; expected a file") from error
    if not stat.S_ISREG(found.st_mode):
        raise InvalidModelError(f"{path}: expected a file, got a folder, pipe or device")
    if within is not None:
        check_inside(path, within)
    check_holes(path, found.st_size)
    return found.st_size


def check_holes(path: Path, size: int) -> None:
    """Raise `InvalidModelError` where a file of `size` bytes has more hole than data, by more than `MOST_HOLES`.

    Where the file system does not tell, all of it is data.
    """
    if size <= MOST_HOLES or not hasattr(os, "SEEK_HOLE"):
        return
    with path.open("rb") as stream:
        held = sum(end - start for start, end in _extents(stream.fileno(), size))
    if size - held > held + MOST_HOLES:
        raise InvalidModelError(
            f"{path}: {held} of its {size} bytes were written, the rest is a hole; get it again, or, if its zeros are "
            "meant, write them out: cp --sparse=never"
        )


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where an open file's data begin and end; all of it where the file system does not tell."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole behind `end`
                return
            start, end = end, size
        yield start, end


def check_inside(path: str | os.PathLike[str], within: str | os.PathLike[str]) -> None:
    """Raise `InvalidModelError` where links on the way to `path` leave the folder `within`; see `check_regular`."""
    end = Path(path).resolve()
    if not any(end.is_relative_to(home) for home in _homes(Path(within))):
        raise InvalidModelError(f"{path}: a link that leaves {within}; put the file itself there")


def read_json(path: str | os.PathLike[str], most_bytes: int, within: str | os.PathLike[str] | None = None) -> Any:
    """Return the JSON value in `path`, a file of at most `most_bytes`; see `check_regular` for `within`.

    Raises `InvalidModelError` that names the file where it is no such file, is larger, or holds no JSON that every
    reader would read alike (see `parse_json`), and FileNotFoundError where it is missing.
    """
    if check_regular(path, within) > most_bytes:
        raise InvalidModelError(f"{path}: expected at most {most_bytes} bytes of JSON")
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path}: not valid JSON: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError also for a name that stands twice in an object and for NaN.

    Infinity is let through, because diffusers writes it; RecursionError for brackets too deep.
    """
    return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)


def parse_record(kind: type[Record], values: Any) -> Record:
    """Return the record of a parsed JSON value, in which every field has its own type: no text or truth for a number.

    Raises `InvalidModelError` that begins with the key that is wrong, or says why such JSON is refused as a whole: half
    of a pair of surrogates, lists too deep.
    """
    try:
        return kind.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise InvalidModelError(first_fault(error)) from error


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a record, behind its dotted key; of several keys together it names them."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = str(first["ctx"]["error"] if first["type"] == "value_error" else first["msg"])
    return f"{where}: {message}" if where else message


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} stands twice in an object")
        found[name] = value
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def _homes(folder: Path) -> Iterator[Path]:
    """Where the files of a model in `folder` may lie: there, and of `models--NAME/snapshots/REVISION` in its blobs.

    A model hub's cache has links in a snapshot, into `blobs` beside the snapshots; `folder` may be a part of one.
    """
    real = folder.resolve()
    yield real
    for revision in (real, *real.parents):
        model = revision.parent.parent
        if revision.parent.name == "snapshots" and model.name.startswith("models--"):
            yield model / "blobs"
