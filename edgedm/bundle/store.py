"""Writing a bundle whole or not at all, and reading one only after its hashes are checked."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgedm.atomic import atomic_dir, read_mark
from edgedm.bundle.limits import check_limits
from edgedm.bundle.manifest import FAMILY, FORMAT, FileEntry, Manifest
from edgedm.bundle.signature import SIGNATURE, check_signature, required_key, write_signature
from edgedm.errors import InvalidModelError
from edgedm.files import check_holes, parse_record, read_json
from edgedm.outcome import Outcome

MANIFEST = "manifest.json"
LIBRARY, WEIGHTS = "lib/libedgedm.so", "weights.bin"
SAMPLER, PROBE = "bin/edgedm-sample", "bin/edgedm-probe"
IN_WEBASSEMBLY = {LIBRARY: "lib/edgedm.wasm", SAMPLER: "bin/edgedm-sample.wasm", PROBE: "bin/edgedm-probe.wasm"}
"""What these are called in a bundle for WebAssembly, whose library is the module that a page loads."""
_NAMED = 5  # files in a message
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
    def is_program(self) -> bool:
        """Whether a machine runs its program by itself: not WebAssembly's, which needs an engine."""
        return SAMPLER in self.manifest.files

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
    """The names of all files in a bundle's folder but its manifest and signature; a link is no folder."""
    found = (each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir())
    return {each.relative_to(folder).as_posix() for each in found} - {MANIFEST, SIGNATURE}


def _empty(folder: Path) -> set[str]:
    """The names of empty folders in a folder: no signature is about them."""
    folders = (each for each in folder.rglob("*") if each.is_dir() and not each.is_symlink())
    try:
        return {f"{each.relative_to(folder).as_posix()}/" for each in folders if not any(each.iterdir())}
    except PermissionError as error:
        raise InvalidModelError(f"{error.filename}: {error.strerror}; expected a folder that can be read") from error


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


def load(path: str | os.PathLike[str], signed_by: str | os.PathLike[str] | None = None) -> Bundle:
    """Read the bundle at `path`; every file's size and SHA-256 are checked before anything is used.

    With a public key `signed_by`, or under `require_signature`, its signature is checked before that. Raises
    InvalidModelError for a folder that is no bundle, an unknown format, a missing, altered or additional file, a link,
    or another signature than the demanded one.
    """
    folder = Path(path)
    key = signed_by or required_key()
    if key is not None and folder.is_dir():
        check_signature(folder, key)
    return load_unsigned(folder)


def load_unsigned(folder: Path) -> Bundle:
    """Like `load`, whoever signed it: for bundles of our own, such as kept ones."""
    manifest = _read_manifest(folder / MANIFEST)
    found = _found(folder)
    missing = sorted(set(manifest.files) - found)
    unknown = sorted((found | _empty(folder)) - set(manifest.files))
    if missing or unknown:
        raise InvalidModelError(
            f"{folder}: the manifest and the folder differ: missing {missing[:_NAMED]}, unknown {unknown[:_NAMED]}; "
            "compile it again into a new folder"
        )
    if os.path.lexists(folder / SIGNATURE):
        _own_size(folder / SIGNATURE)
    for name, entry in manifest.files.items():
        file = folder / name
        if _own_size(file) != entry.bytes or _sha256(file) != entry.sha256:
            raise InvalidModelError(f"{file}: not the file that was compiled (SHA-256 differs); compile it again")
    return Bundle(folder, manifest)


def _own_size(file: Path) -> int:
    """Bytes of a file; InvalidModelError for what is a link, none, or mostly holes."""
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise InvalidModelError(
            f"{file}: expected a file of its own, got a link, folder, pipe or device, which may change after it is "
            "checked; copy the bundle"
        )
    check_holes(file, status.st_size)
    return status.st_size


def sign(bundle: str | os.PathLike[str], key: str | os.PathLike[str]) -> Outcome:
    """Sign a bundle with a private key (PEM): writes `model.sig` into it, in the place of an older one.

    Raises InvalidModelError for a bundle that is broken or altered and for a file that is no key, ToolchainError
    without the package `model-signing`. Figures: files and bytes that are signed.
    """
    opened = load_unsigned(Path(bundle))
    written = write_signature(opened.path, key)
    files = opened.manifest.files
    figures = {"files": float(len(files) + 1), "bytes": float(sum(entry.bytes for entry in files.values()))}
    return Outcome(True, figures, {"written": [str(written)]})


def _read_manifest(path: Path) -> Manifest:
    if not path.is_file() or path.is_symlink():
        raise InvalidModelError(f"{path}: no such file; expected a bundle written by `edgedm compile`")
    try:
        data = read_json(path, MAX_MANIFEST_BYTES)
    except InvalidModelError as error:
        raise InvalidModelError(f"{error}; compile the bundle again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise InvalidModelError(
            f"{path}: format {str(version)[:40]!r}, expected {FORMAT!r}; compile it with this version"
        )
    try:
        manifest = parse_record(Manifest, data)
        check_limits(manifest)
    except (InvalidModelError, ValueError) as error:
        raise InvalidModelError(f"{path}: {error}; compile the bundle again") from error
    return manifest


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
