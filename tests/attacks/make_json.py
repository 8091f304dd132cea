"""Hostile manifests (`NAME.manifest.json` stands in a sound bundle) and tuning databases."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORT = {"name": "x", "role": "x", "shape": [1, 4, 4, 1], "dtype": "float32"}
SCALES = {"name": "w", "shape": [4], "dtype": "float32", "source": "weights", "offset": 0}
NODE = {
    "index": 0,
    "graph": "step",
    "kernel": "k",
    "op": "Mul",
    "node": "n",
    "module": "m",
    "family": "f",
    "macs": 1,
    "inputs": [{"name": "x", "shape": [1, 4, 4, 1], "dtype": "float32", "source": "input", "offset": 0}, SCALES],
    "outputs": [{"name": "y", "shape": [1, 4, 4, 1], "dtype": "float32", "source": "output", "offset": 0}],
}
Change = Callable[[dict[str, Any]], Any]


def write(files: Path) -> None:
    """Write `bundle` and `tuning`."""
    _write_bundle(files / "bundle")
    (files / "tuning").mkdir()
    for name, change in TABLES.items():
        values = copy.deepcopy(TABLE)
        result = change(values)
        text = result if isinstance(result, str) else json.dumps(values)
        (files / "tuning" / f"{name}.crossover.json").write_text(text)


def _write_bundle(folder: Path) -> None:
    (folder / "sound").mkdir(parents=True)
    weights = bytes(64)
    (folder / "sound/weights.bin").write_bytes(weights)
    manifest = {
        "format": "edgedm.bundle/1",
        "edgedm": "0.1.0",
        "prefix": "edm_",
        "target": {"name": "x86-64", "features": [], "triple": "x86_64-linux-gnu"},
        "toolchain": {},
        "files": {"weights.bin": {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": 64}},
        "config": {},
        "image_shape": [1, 4, 4],
        "classes": 0,
        "null_class": -1,
        "trained_timesteps": [0, 999],
        "schedule": {"steps": 10, "sampler": "ddim"},
        "arena_bytes": 256,
        "weights_bytes": 64,
        "row_bytes": 64,
        "inputs": {"step": [PORT]},
        "outputs": {"step": [{**PORT, "name": "y", "role": "output"}]},
        "nodes": [NODE],
    }
    (folder / "sound/manifest.json").write_text(json.dumps(manifest))
    for name, change in MANIFESTS.items():
        values = copy.deepcopy(manifest)
        result = change(values)
        text = result if isinstance(result, str) else json.dumps(values)
        (folder / f"{name}.manifest.json").write_text(text)


def _rename(name: str) -> Change:
    return lambda values: values["files"].update({name: values["files"]["weights.bin"]})


def _operand(**changes: Any) -> Change:
    return lambda values: values["nodes"][0]["inputs"][1].update(changes)


def _strips(**changes: Any) -> Change:
    strips = {"first": 0, "heads": 2, "strips": 2, "tasks": 2, **changes}
    return lambda values: values["nodes"][0].update(inputs=[{**SCALES, "source": "strips"}], strips=strips)


def _port(**changes: Any) -> Change:
    return lambda values: values["inputs"]["step"][0].update(changes)


MANIFESTS: dict[str, Change] = {
    "parent": _rename("../../etc/passwd"),
    "parent-inside": _rename("lib/../../x"),
    "absolute": _rename("/etc/passwd"),
    "backslash": _rename("..\\x"),
    "empty-part": _rename("lib//x"),
    "zero-byte": _rename("lib/\0x"),
    "other-size": lambda values: values["files"]["weights.bin"].update(bytes=2**62),
    "other-hash": lambda values: values["files"]["weights.bin"].update(sha256="0" * 64),
    "no-hash": lambda values: values["files"]["weights.bin"].update(sha256=""),
    "missing-file": _rename("other.bin"),
    "unlisted-file": lambda values: values["files"].clear(),
    "name-twice": lambda values: json.dumps(values).replace('"classes": 0', '"classes": 0, "classes": 9'),
    "deep": lambda values: "[" * 10_000,
    "nan": lambda values: json.dumps(values).replace('"config": {}', '"config": {"scale": NaN}'),
    "many-digits": lambda values: json.dumps(values).replace('"macs": 1', '"macs": ' + "9" * 5000),
    "infinite-size": lambda values: json.dumps(values).replace('"arena_bytes": 256', '"arena_bytes": Infinity'),
    "truth-for-arena": lambda values: values.update(arena_bytes=True),
    "text-for-classes": lambda values: values.update(classes="0"),
    "escapes": lambda values: values.update({"\x1b[2J": 1}),
    "huge-arena": lambda values: values.update(arena_bytes=2**63),
    "huge-image": lambda values: values.update(image_shape=[1, 2**40, 2**40]),
    "zero-image": lambda values: values.update(image_shape=[1, 0, 4]),
    "negative-image": lambda values: values.update(image_shape=[-1, -4, 4]),
    "huge-port": _port(shape=[2**40, 2**40]),
    "zero-port": _port(shape=[1, 4, 4, 0]),
    "many-axes": _port(shape=[10**17] * 200),
    "object-dtype": _port(dtype="object"),
    "offset-beyond-weights": _operand(offset=64),
    "offset-wraps": _operand(offset=2**64 - 8),
    "shape-beyond-weights": _operand(shape=[2**40]),
    "operand-in-no-port": lambda values: values["nodes"][0]["inputs"][0].update(offset=7),
    "arena-too-small": lambda values: values["nodes"][0].update(inputs=[{**SCALES, "source": "arena", "offset": 250}]),
    "strips-of-no-chain": lambda values: values["nodes"][0].update(inputs=[{**SCALES, "source": "strips"}]),
    "strips-of-no-heads": _strips(heads=0),
    "strips-beyond-arena": _strips(tasks=2**40),
    "prefix-of-code": lambda values: values.update(prefix="x; rm -rf /"),
    "later-format": lambda values: values.update(format="edgedm.bundle/99"),
}

TABLE: dict[str, Any] = {
    "machine": "m",
    "gmacs": {"x86-64": {"W1A1": {"3x3:8->8@4x4": {"bitserial": 1.0}}}},
    "limits": {},
}


def _speeds(**changes: Any) -> Change:
    return lambda values: values["gmacs"]["x86-64"]["W1A1"]["3x3:8->8@4x4"].update(changes)


def _shape(name: str) -> Change:
    return lambda values: values["gmacs"]["x86-64"]["W1A1"].update({name: {"bitserial": 1.0}})


TABLES: dict[str, Change] = {
    "nan-speed": lambda values: json.dumps(values).replace("1.0", "NaN"),
    "infinite-speed": lambda values: json.dumps(values).replace("1.0", "Infinity"),
    "zero-speed": _speeds(bitserial=0.0),
    "negative-speed": _speeds(bitserial=-1.0),
    "unknown-family": _speeds(magic=1.0),
    "unknown-target": lambda values: values["gmacs"].update({"pdp11": {}}),
    "host": lambda values: values["gmacs"].update({"host": {}}),
    "unknown-widths": lambda values: values["gmacs"]["x86-64"].update({"W1": {}}),
    "zero-bits": lambda values: values["gmacs"]["x86-64"].update({"W0A1": {}}),
    "truth-for-speed": _speeds(bitserial=True),
    "text-for-speed": _speeds(bitserial="5"),
    "other-digits": lambda values: values["gmacs"]["x86-64"].update({"W\u0661A\u0661": {}}),
    "unknown-target-of-limits": lambda values: values["limits"].update({"pdp11": {"W1A1": {"dot": 1.0}}}),
    "unknown-family-of-limits": lambda values: values["limits"].update({"x86-64": {"W1A1": {"magic": 1.0}}}),
    "zero-shape": _shape("3x3:0->8@4x4"),
    "huge-shape": _shape(f"3x3:{'9' * 4000}->8@4x4"),
    "no-shape": _shape("../../etc/passwd"),
    "name-twice": lambda values: json.dumps(values).replace('"machine": "m"', '"machine": "m", "machine": "n"'),
    "unknown-key": lambda values: values.update(surprise=1),
    "deep": lambda values: "[" * 10_000,
}
