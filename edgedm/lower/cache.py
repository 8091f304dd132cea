"""Compiled bundles that are kept, so that a second compile of an unchanged model only copies files.

An entry is a bundle in `<cache folder>/bundles/<key>`. The key is a hash of everything that a bundle follows from:
the bytes of both graphs and of the golden data, the target, the schedule, edgedm's own files and the versions of the
packages that take part. A bundle carries the hash of each of its files, so an entry that is damaged or half written
is found out when it is read; it is removed and the model compiled again.
"""

import functools
import hashlib
import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import edgedm
import edgedm.passes
import edgedm.targets
from edgedm import progress
from edgedm.atomic import atomic_dir
from edgedm.bundle import Manifest, load
from edgedm.errors import InvalidModelError
from edgedm.lower.toolchain import cache_folder
from edgedm.targets import Target

LIMIT_BYTES = 4 << 30
"""What all entries take together; the ones that were used longest ago go first."""

_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "ziglang", "onnx", "onnx-ir", "onnxscript", "numpy", "jinja2")
_NOT_CODE = {"__pycache__", "zoo"}


def key_of(graph: Path, target: Target, steps: int, sampler: str) -> str:
    """Return the key of a compile of `graph` and its companions; files that are not there count as such."""
    digest = hashlib.sha256()
    for name in (graph, graph.with_suffix(".prepare.onnx"), graph.with_suffix(".golden.safetensors")):
        digest.update(_file_digest(name) if name.is_file() else b"absent")
    features = sorted(target.features)
    facts = [target.name, target.triple, *features, target.cores, steps, sampler, sys.version, *_versions()]
    digest.update("\0".join(map(str, facts)).encode())
    digest.update(_sources_digest())
    return digest.hexdigest()


def fetch(key: str, output: str | os.PathLike[str]) -> Manifest | None:
    """Write the kept bundle to `output`, whole or not at all; None where there is no sound one."""
    entry = _folder() / key
    if not entry.is_dir():
        return None
    try:
        with atomic_dir(output) as scratch:
            shutil.copytree(entry, scratch, dirs_exist_ok=True)
            manifest = load(scratch).manifest
    except (InvalidModelError, OSError) as error:
        progress.stage(f"the kept bundle is not used: {error}")
        shutil.rmtree(entry, ignore_errors=True)
        return None
    os.utime(entry)
    return manifest


def keep(key: str, bundle: str | os.PathLike[str]) -> None:
    """Keep a copy of `bundle`; where the disk refuses it, the bundle is as good without."""
    try:
        with atomic_dir(_folder() / key) as scratch:
            shutil.copytree(bundle, scratch, dirs_exist_ok=True)
        _make_room()
    except OSError as error:
        progress.stage(f"the bundle is not kept for a second compile: {error}")


def _make_room() -> None:
    entries = sorted((each for each in _folder().iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
    sizes = [sum(path.stat().st_size for path in each.rglob("*") if path.is_file()) for each in entries]
    total = sum(sizes)
    for entry, size in list(zip(entries, sizes, strict=True))[:-1]:
        if total <= LIMIT_BYTES:
            return
        shutil.rmtree(entry, ignore_errors=True)
        total -= size


def _folder() -> Path:
    return cache_folder() / "bundles"


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
