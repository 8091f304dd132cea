"""What a bundle weighs against its model in float32, and which parts of it weigh how much.

Golden data are for verification and not counted. Everything else is, under two names: *bundle* is the whole folder
(object file, sources and programs hold the same kernels again, for whoever links them into a program of their own),
*shipped* is what a program loads: the weights with every table, scale and shortcut, the library with every kernel.
"""

import math
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgedm.bundle import Bundle, Manifest
from edgedm.bundle.store import LIBRARY, MANIFEST, WEIGHTS, place_of
from edgedm.errors import InvalidModelError
from edgedm.files import parse_record

_GOLDEN = "golden/"
_FLOAT32 = 4


def sizes(bundle: Bundle) -> dict[str, float]:
    """Figures `bytes.bundle` and `bytes.shipped` (see the module).

    `bytes.float32` are the parameters of the same architecture in float32, `size.ratio` and `size.shipped_ratio` how
    many times more that is; all three are left out where the model's library (the extra `train`) isn't installed.
    """
    manifest = bundle.manifest
    counted = {name: entry.bytes for name, entry in manifest.files.items() if not name.startswith(_GOLDEN)}
    library = place_of(LIBRARY, counted)
    if missing := {WEIGHTS, library} - counted.keys():
        raise InvalidModelError(f"{bundle.path}: no {' and no '.join(sorted(missing))}; compile the bundle again")
    figures = {
        "bytes.bundle": float(sum(counted.values()) + (bundle.path / MANIFEST).stat().st_size),
        "bytes.shipped": float(counted[WEIGHTS] + counted[library]),
    }
    full = float32_bytes(manifest.config, bundle.path / MANIFEST)
    if full is not None:
        figures["bytes.float32"] = float(full)
        figures["size.ratio"] = full / figures["bytes.bundle"]
        figures["size.shipped_ratio"] = full / figures["bytes.shipped"]
    return figures


def float32_bytes(config: Mapping[str, Any], place: Path) -> int | None:
    """Bytes of the parameters of the architecture that a checkpoint's `config` describes, in float32.

    With those of its decoder, if it has one. None without an architecture, or without the libraries that know it.
    Raises `InvalidModelError` that names `place`, the file with the config, where that is no checkpoint's.
    """
    architecture = config.get("architecture")
    known = isinstance(architecture, Mapping) and "class_name" in architecture
    if not known or find_spec("torch") is None or find_spec("diffusers") is None:
        return None
    import torch

    from edgedm.models import CheckpointConfig
    from edgedm.models.checkpoint import decoder_of

    try:
        checked = parse_record(CheckpointConfig, config)
    except InvalidModelError as error:
        raise InvalidModelError(f"{place}: the checkpoint's config: {error}; make it again") from error
    with torch.device("meta"):
        parts = [checked.float_unet(), decoder_of(checked)]
    return _FLOAT32 * sum(each.numel() for part in parts if part is not None for each in part.parameters())


def parts(bundle: Bundle) -> list[dict[str, Any]]:
    """What fills the shipped bytes, the largest first: {part, dtype, bytes, share}.

    Constants of the weights go by the op that reads them first and their role, the library by its file.
    """
    found = constants(bundle.manifest)
    read = [section.bytes for section in bundle.manifest.sections if bundle.manifest.target.name in section.variants]
    if bundle.manifest.others:
        found["weights that only other variants read", ""] = bundle.manifest.weights_bytes - sum(read)
    found["padding between constants", ""] = bundle.manifest.weights_bytes - sum(found.values())
    found["library: kernels, tables, runtime", ""] = bundle.library.stat().st_size
    total = sum(found.values())
    rows = [
        {"part": part, "dtype": dtype, "bytes": size, "share": size / total} for (part, dtype), size in found.items()
    ]
    return sorted(rows, key=lambda row: -int(row["bytes"]))


def constants(manifest: Manifest) -> Counter[tuple[str, str]]:
    """Bytes of the constants by (graph and op that reads them first, dtype), each constant once."""
    seen: set[int] = set()
    found: Counter[tuple[str, str]] = Counter()
    for node in manifest.nodes:
        for operand in node.inputs:
            if operand.source == "weights" and operand.offset not in seen:
                seen.add(operand.offset)
                size = math.prod(operand.shape) * np.dtype(operand.dtype).itemsize
                found[f"{node.graph}: {node.op}", operand.dtype] += size
    return found
