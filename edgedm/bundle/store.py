"""Writing a bundle whole or not at all, and reading one only after its hashes are checked."""

import hashlib
import json
import os
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgedm.atomic import atomic_dir, read_mark
from edgedm.bundle.manifest import FAMILY, FORMAT, FileEntry, Manifest
from edgedm.errors import InvalidModelError

MANIFEST = "manifest.json"
LIBRARY, WEIGHTS = "lib/libedgedm.so", "weights.bin"
SAMPLER, PROBE = "bin/edgedm-sample", "bin/edgedm-probe"
IN_WEBASSEMBLY = {LIBRARY: "lib/edgedm.wasm", SAMPLER: "bin/edgedm-sample.wasm", PROBE: "bin/edgedm-probe.wasm"}
"""What these are called in a bundle for WebAssembly, whose library is the module that a page loads."""
MAX_MANIFEST_BYTES = 64 << 20  # far above the largest model's; a bound against hostile files


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those that the manifest names, byte for byte.

    `variant` names the one that has to run, as which the manifest describes it; None: the best one that can.
    """

    path: Path
    manifest: Manifest
    variant: str | None = None

    def of(self, variant: str) -> "Bundle":
        """The same bundle, to be run as this variant; UnsupportedError for one that is not there."""
        return replace(self, manifest=self.manifest.of(variant), variant=variant)

    @property
    def library(self) -> Path:
        """The shared library with the C interface and the probe."""
        return self.path / place_of(LIBRARY, self.manifest.files)

    @property
    def sampler(self) -> Path:
        """The native program."""
        return self.path / place_of(SAMPLER, self.manifest.files)

    @property
    def probe(self) -> Path:
        """The program that puts the library behind a pipe, for examination where it cannot be loaded."""
        return self.path / place_of(PROBE, self.manifest.files)

    @property
    def weights(self) -> Path:
        """The constants of all kernels."""
        return self.path / WEIGHTS


def place_of(name: str, files: Container[str]) -> str:
    """Return what LIBRARY, SAMPLER or PROBE is called in a bundle with these files."""
    other = IN_WEBASSEMBLY[name]
    return other if other in files else name


def write(target: str | os.PathLike[str], fill: Callable[[Path], Manifest]) -> Manifest:
    """Let `fill` write a bundle's files into an empty folder and return its manifest; then put it in place.

    The manifest's `files` are computed here. Files are made reproducible: no execute bit but on programs.
    """
    with atomic_dir(target, _strangeness) as folder:
        manifest = fill(folder)
        files = {}
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            name = path.relative_to(folder).as_posix()
            path.chmod(0o755 if name.startswith("bin/") else 0o644)
            files[name] = FileEntry(sha256=_sha256(path), bytes=path.stat().st_size)
        manifest = manifest.model_copy(update={"files": files})
        (folder / MANIFEST).write_text(_text(manifest.model_dump(mode="json")))
    return manifest


def _strangeness(folder: Path) -> str | None:
    """Return what makes `folder` no bundle of any version, which another may replace; None for one.

    A web app has a manifest.json too, so its format decides. A file that was put into a bundle is not ours to delete.
    """
    manifest = read_mark(folder / MANIFEST, MAX_MANIFEST_BYTES)
    if not str(manifest.get("format")).startswith(FAMILY):
        return f"has no {MANIFEST} of a bundle"
    ours = manifest.get("files")
    others = sorted(_found(folder) - set(ours if isinstance(ours, dict) else ()))
    return f"has {', '.join(others[:3])} beside a bundle" if others else None


def _found(folder: Path) -> set[str]:
    """The names of all that is in a bundle's folder but its manifest."""
    return {each.relative_to(folder).as_posix() for each in folder.rglob("*") if not each.is_dir()} - {MANIFEST}


def _text(manifest: dict[str, Any]) -> str:
    """JSON with a line for each entry, and for each item of a list: half the size of one that is indented."""
    lines = []
    for key, value in sorted(manifest.items()):
        if isinstance(value, list) and value and isinstance(value[0], dict):
            body = "[\n" + ",\n".join(_compact(each) for each in value) + "]"
        else:
            body = _compact(value)
        lines.append(f"{json.dumps(key)}:{body}")
    return "{" + ",\n".join(lines) + "}\n"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def load(path: str | os.PathLike[str]) -> Bundle:
    """Read the bundle at `path`; every file's size and SHA-256 are checked before anything is used.

    Raises InvalidModelError for a folder that is no bundle, an unknown format, or a missing, altered or
    additional file.
    """
    folder = Path(path)
    manifest = _read_manifest(folder / MANIFEST)
    found = _found(folder)
    missing, unknown = sorted(set(manifest.files) - found), sorted(found - set(manifest.files))
    if missing or unknown:
        raise InvalidModelError(
            f"{folder}: the manifest and the folder differ: missing {missing}, unknown {unknown}; compile it "
            "again into a new folder"
        )
    for name, entry in manifest.files.items():
        file = folder / name
        if file.is_symlink() or file.stat().st_size != entry.bytes or _sha256(file) != entry.sha256:
            raise InvalidModelError(f"{file}: not the file that was compiled (SHA-256 differs); compile it again")
    return Bundle(folder, manifest)


def _read_manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file; expected a bundle written by `edgedm compile`")
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise InvalidModelError(f"{path}: {size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path}: not JSON ({error}); compile the bundle again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise InvalidModelError(f"{path}: format {version!r}, expected {FORMAT!r}; compile it with this version")
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidModelError(f"{path}: {where}: {first['msg']}; compile the bundle again") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
