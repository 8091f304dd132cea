"""Write a file or a folder whole or not at all: fill a temporary beside the target, then rename it.

Readers see the old target or the new one, never a mixture, whatever kills the writer in between.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgedm.errors import InvalidModelError

Strangeness = Callable[[Path], str | None]
"""What makes a folder one that isn't of our own making, in words that follow "it"; None for one of ours."""


def check_place(target: str | os.PathLike[str]) -> None:
    """Raise `InvalidModelError` that names the file which stands where a folder above `target` would have to be.

    To be called before long work, so that its result has a place to go.
    """
    for above in Path(os.path.abspath(target)).parents:
        if above.is_dir():
            return
        if above.exists():
            raise InvalidModelError(
                f"{target}: {above} is a file, so nothing can be written below it; name another place"
            )


def check_replaceable(target: str | os.PathLike[str], strangeness: Strangeness | None = None) -> None:
    """Raise `InvalidModelError` unless a folder can be put at `target` without loss of anybody's files.

    What is there may be replaced if it is empty or nothing about it is strange. Names of files alone tell nothing
    (others call theirs `config.json` too), so `strangeness` has to look into them. Without it any folder may go.
    """
    check_place(target)
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise InvalidModelError(f"{target}: is a file; expected a name for a folder")
    if strangeness is None or not target.is_dir() or not any(target.iterdir()):
        return
    found = strangeness(target)
    if found is not None:
        raise InvalidModelError(f"{target}: holds other files (it {found}), which would be replaced; name a new folder")


def read_mark(path: Path, most_bytes: int) -> dict[str, Any]:
    """Return the JSON object in `path`, by which a folder is known; an empty one where there is none or it is large."""
    try:
        if path.stat().st_size > most_bytes:
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


@contextlib.contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces `target`, on any exception it is removed."""
    target = Path(target)
    check_place(target)
    if target.is_dir():
        raise InvalidModelError(f"{target}: is a folder; expected a name for a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        _sync(scratch)
        scratch.chmod(0o666 & ~_umask())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(target: str | os.PathLike[str], strangeness: Strangeness | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it replaces `target`, on any exception it is removed.

    An existing folder is replaced only if it is empty or nothing about it is strange: see `check_replaceable`.
    An existing target is moved aside first, because a folder cannot be replaced in one system call; if the
    second rename fails, the old folder is put back.
    """
    target = Path(target)
    check_replaceable(target, strangeness)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield scratch
        for path in scratch.rglob("*"):
            if path.is_file() and not path.is_symlink():
                _sync(path)
        scratch.chmod(0o777 & ~_umask())
        _swap(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, target: Path) -> None:
    if not target.exists():
        os.rename(scratch, target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    old = aside / target.name
    os.rename(target, old)
    try:
        os.rename(scratch, target)
    except OSError:
        os.rename(old, target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
