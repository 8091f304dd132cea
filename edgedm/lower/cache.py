"""Compiled bundles that are kept, so that a second compile of an unchanged model only copies files.

An entry is a bundle in `<cache folder>/bundles/<key>`, or in `$EDGEDM_BUNDLE_CACHE/<key>` where that is set. The key
is a hash of everything that a bundle follows from: the bytes of both graphs and of the golden data, the target, the
schedule, edgedm's own files and the versions of the packages that take part. A bundle carries the hash of each of its
files, so an entry that is damaged or half written is found out when it is read; it is removed and the model compiled
again.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import edgedm
import edgedm.passes
import edgedm.targets
from edgedm import progress
from edgedm.atomic import atomic_dir
from edgedm.atomic_files import COMPANIONS
from edgedm.bundle import Manifest, write
from edgedm.bundle.store import load_unsigned
from edgedm.errors import InvalidModelError
from edgedm.lower.toolchain import cache_folder
from edgedm.targets import Target

LIMIT_BYTES = 4 << 30
"""What all entries take together; the ones that were used longest ago go first."""

FOLDER = "EDGEDM_BUNDLE_CACHE"
"""The environment variable that puts the entries, and nothing else of the cache, into another folder."""

_SCRATCH_SECONDS = 24 * 3600  # no copy takes a day: a scratch folder that old was left by a process that was killed
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "ziglang", "onnx", "onnx-ir", "onnxscript", "numpy", "jinja2")
_NOT_CODE = {"__pycache__", "zoo"}


def key_of(graph: Path, targets: Sequence[Target], steps: int, sampler: str) -> str:
    """Return the key of a compile of `graph` and its companions; files that are not there count as such."""
    digest = hashlib.sha256()
    for name in (graph, *(graph.with_suffix(each) for each in COMPANIONS)):
        digest.update(_file_digest(name) if name.is_file() else b"absent")
    machines = [(each.name, each.triple, sorted(each.features), each.cores) for each in targets]
    facts = [machines, steps, sampler, sys.version, *_versions(), *_linkers(targets)]
    digest.update("\0".join(map(str, facts)).encode())
    digest.update(_sources_digest())
    return digest.hexdigest()


def fetch(key: str, output: str | os.PathLike[str]) -> Manifest | None:
    """Write the kept bundle to `output`, whole or not at all; None where there is no sound one.

    An OSError that escapes is one of `output`.
    """
    entry = _folder() / key
    try:
        if not entry.is_dir():
            return None
        manifest = load_unsigned(entry).manifest
        data = {name: (entry / name).read_bytes() for name in manifest.files}
    except InvalidModelError as error:
        progress.stage(f"the kept bundle is broken and removed: {error}")
        shutil.rmtree(entry, ignore_errors=True)
        return None
    except OSError as error:  # another process removed it, or it may not be read
        progress.stage(f"the kept bundle is not used: {error}")
        return None

    def fill(folder: Path) -> Manifest:
        for name, content in data.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return manifest

    written = write(output, fill)
    with contextlib.suppress(OSError):  # the copy is as good where the entry is gone by now
        os.utime(entry)
    return written


def keep(key: str, bundle: str | os.PathLike[str]) -> None:
    """Keep a copy of `bundle`; where the disk refuses it, the bundle is as good without."""
    try:
        with atomic_dir(_folder() / key) as scratch:
            shutil.copytree(bundle, scratch, dirs_exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            _make_room()
    except (OSError, InvalidModelError) as error:  # the latter where a file stands in the folder's place
        progress.stage(f"the bundle is not kept for a second compile: {error}")


def _make_room() -> None:
    found = [each for each in _folder().iterdir() if each.is_dir() and not _is_being_filled(each)]
    entries = sorted(found, key=lambda each: each.stat().st_mtime)
    sizes = [sum(path.stat().st_size for path in each.rglob("*") if path.is_file()) for each in entries]
    total = sum(sizes)
    for entry, size in list(zip(entries, sizes, strict=True))[:-1]:
        if total <= LIMIT_BYTES:
            return
        shutil.rmtree(entry, ignore_errors=True)
        total -= size


def _is_being_filled(folder: Path) -> bool:
    """Whether this is the scratch folder of a process that may still run."""
    return folder.name.startswith(".") and time.time() - folder.stat().st_mtime < _SCRATCH_SECONDS


def _folder() -> Path:
    chosen = os.environ.get(FOLDER)
    return Path(chosen) if chosen else cache_folder() / "bundles"


def _linkers(targets: Sequence[Target]) -> list[str]:
    """What links besides zig, which is among the packages: of Android's libraries the NDK, where one is named."""
    if all(each.base.system != "android" for each in targets):
        return []
    from edgedm.android.linker import toolchain_name  # it stands on this package

    return [toolchain_name()]


def _versions() -> list[str]:
    return [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]


@functools.cache
def _sources_digest() -> bytes:
    """A hash of every file of the package: code and the runtime's templates."""
    digest = hashlib.sha256(edgedm.__version__.encode())
    for package in (edgedm, edgedm.passes, edgedm.targets):  # the last two may be links, which rglob doesn't follow
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*")):
            if path.is_file() and not _NOT_CODE & set(path.relative_to(root).parts):
                digest.update(f"{package.__name__}/{path.relative_to(root)}\0".encode())
                digest.update(_file_digest(path))
    return digest.digest()


def _file_digest(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
