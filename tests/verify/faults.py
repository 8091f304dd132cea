"""Plant faults in bundles, and seal them again so that every hash fits: only `verify` can tell."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgedm.bundle import Manifest, load
from edgedm.bundle.store import LIBRARY, MANIFEST, PROBE, SAMPLER, WEIGHTS
from edgedm.lower import assemble
from edgedm.lower.codegen import HEADERS
from edgedm.targets import resolve


def copy(bundle: Path, target: Path) -> Path:
    """A bundle of our own to break."""
    shutil.copytree(bundle, target)
    return target


def change_weights(bundle: Path, edit: Callable[[np.ndarray, Manifest], None]) -> None:
    """Let `edit` change weights.bin (uint8[bytes]); the digest inside the compiled code follows."""
    weights = np.frombuffer((bundle / WEIGHTS).read_bytes(), np.uint8).copy()
    before = weights.tobytes()
    edit(weights, load(bundle).manifest)
    replace_weights(bundle, before, weights.tobytes())


def replace_weights(bundle: Path, before: bytes, after: bytes) -> None:
    """Give a bundle other weights; the digest inside the compiled code follows."""
    assert after != before
    (bundle / WEIGHTS).write_bytes(after)
    old, new = hashlib.sha256(before).digest(), hashlib.sha256(after).digest()
    for name in (LIBRARY, SAMPLER, PROBE):
        code = (bundle / name).read_bytes()
        assert code.count(old) == 1
        (bundle / name).write_bytes(code.replace(old, new))
    seal(bundle)


def change_runtime(bundle: Path, source: str, old: str, new: str) -> None:
    """Replace a piece of the generated C and link library and program again."""
    manifest = load(bundle).manifest
    text = (bundle / "src" / source).read_text()
    assert text.count(old) == 1
    (bundle / "src" / source).write_text(text.replace(old, new))
    for header in HEADERS:
        shutil.copyfile(bundle / "include" / header, bundle / "src" / header)
    assemble._link(bundle, manifest.prefix, resolve(manifest.target.name))
    for header in HEADERS:
        (bundle / "src" / header).unlink()
    seal(bundle)


def seal(bundle: Path) -> None:
    """Write the hashes of the files as they are now into the manifest."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    for name in manifest["files"]:
        data = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    load(bundle)
