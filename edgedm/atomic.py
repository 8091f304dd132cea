"""Write a file or a folder whole or not at all: fill a temporary beside the target, then rename it.

Readers see the old target or the new one, never a mixture, whatever kills the writer in between.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgedm.errors import InvalidModelError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

Strangeness = Callable[[Path], str | None]
"""What makes a folder one that isn't of our own making, in words that follow "it"; None for one of ours."""


def check_place(target: str | os.PathLike[str]) -> None:
    """Raise `InvalidModelError` if `target` is a pipe or a device, or if a file stands where a folder above it has to.

    To be called before long work, so that its result has a place to go. A rename would replace a pipe, and for root
    even a device such as the null one. A link to one counts as one.
    """
    if _is_special(target):
        raise InvalidModelError(f"{target}: is a pipe or device; expected a name for a file or a folder")
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


def check_file_place(target: str | os.PathLike[str]) -> None:
    """Raise `InvalidModelError` unless a file can be put at `target`, where no folder, pipe or device may stand."""
    if _is_special(target):
        raise InvalidModelError(f"{target}: is a pipe or device; expected a name for a file")
    check_place(target)
    if Path(target).is_dir():
        raise InvalidModelError(f"{target}: is a folder; expected a name for a file")


@contextlib.contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces `target`, on any exception it is removed."""
    target = Path(target)
    check_file_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(target)
    try:
        with _naming(target, scratch):
            yield scratch
            _settle(scratch)
            os.replace(scratch, target)
        sync_folder(target.parent)
    finally:
        scratch.unlink(missing_ok=True)


def write_scratch(target: Path, data: bytes) -> Path:
    """Write `data` whole to a new file beside `target`, to be renamed to it; nothing is left where that fails."""
    scratch = _scratch(target)
    try:
        with _naming(target, scratch):
            scratch.write_bytes(data)
            _settle(scratch)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return scratch


@contextlib.contextmanager
def atomic_dir(target: str | os.PathLike[str], strangeness: Strangeness | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it replaces `target`, on any exception it is removed.

    An existing folder is replaced only if it is empty or nothing about it is strange: see `check_replaceable`. A
    target that is a link stays one: the folder that it leads to is replaced. Old and new folder change names in one
    system call. Where the file system has none, the old one is moved aside first, under a lock; if the second rename
    fails, it is put back, and a process that is killed between the two leaves it as `.<name>.old.*/<name>` beside the
    target.
    """
    target = Path(target)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    check_replaceable(target, strangeness)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _naming(target):
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        with _naming(target, scratch):
            yield scratch
            for path in scratch.rglob("*"):
                if path.is_dir() or (path.is_file() and not path.is_symlink()):
                    _sync(path)
        scratch.chmod(0o777 & ~_umask())
        sync_folder(scratch)
        with locked(target.parent):
            check_replaceable(target, strangeness)  # another process may have put something there
            _swap(scratch, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder for a few renames; where the file system has no locks, go without."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in `folder` last; file systems that cannot do so for folders are let be."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            error.filename = os.fspath(folder)
            raise
    finally:
        os.close(descriptor)


def _is_special(target: str | os.PathLike[str]) -> bool:
    """Whether something is there that is neither file nor folder; what nobody can tell is left to the write."""
    try:
        mode = os.stat(target).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextlib.contextmanager
def _naming(target: Path, scratch: Path | None = None) -> Iterator[None]:
    """Let a refusal name `target`: that of a full disk names no file, that of `scratch` or a file in it a hidden one.

    Without `scratch` it is what refuses to be made.
    """
    try:
        yield
    except OSError as error:
        if scratch is None or (error.filename is None and error.errno in _OF_A_DISK):
            error.filename = str(target)
        elif error.filename is not None and Path(str(error.filename)).is_relative_to(scratch):
            error.filename = str(target / Path(error.filename).relative_to(scratch))
        raise


def _swap(scratch: Path, target: Path) -> None:
    if not target.exists():
        os.rename(scratch, target)
        return
    if _exchange(scratch, target):
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


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names at once; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _scratch(target: Path) -> Path:
    with _naming(target):
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    return Path(name)


def _settle(scratch: Path) -> None:
    """Have the contents on the disk before a name points to them, readable by whoever new files are."""
    scratch.chmod(0o666 & ~_umask())
    _sync(scratch)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's mask; Linux tells it, elsewhere it has to be set for a moment, which other threads see."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask
