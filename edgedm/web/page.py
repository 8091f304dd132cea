"""A bundle for WebAssembly -> one HTML file that draws in a browser and needs nothing but itself."""

import base64
import html
import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

from edgedm.atomic import atomic_file
from edgedm.bundle import Bundle, load
from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome
from edgedm.runtime.library import SAMPLERS

TARGET = "wasm32+simd128"
_MARK = re.compile(r"@(\w+)@")
_TRAIN_TIMESTEPS = 1000  # of a schedule that does not say


def web(
    bundle: str | os.PathLike[str], output: str | os.PathLike[str] = "page.html", *, title: str | None = None
) -> Outcome:
    """Write the page that draws with `bundle` to `output`, whole or not at all.

    The page holds module and weights, asks no server for anything and works from any of them, or from a file.
    `title` is the bundle's name if None. Figures: bytes of page, module and weights. Raises UnsupportedError for a
    bundle of another target or a model that needs a text condition, InvalidModelError for an altered bundle.
    """
    opened = load(bundle)
    _check(opened)
    module, weights = opened.library.read_bytes(), opened.weights.read_bytes()
    parts = {
        "title": html.escape(title or opened.path.resolve().name.removesuffix(".bundle")),
        "style": _asset("page.css"),
        "description": _json(_description(opened)),
        "module": base64.b64encode(module).decode(),
        "weights": base64.b64encode(weights).decode(),
        "worker": _asset("worker.js"),
        "app": _asset("app.js"),
    }
    text = _MARK.sub(lambda mark: parts[mark[1]], _asset("page.html"))
    with atomic_file(Path(output)) as scratch:
        scratch.write_text(text, encoding="utf-8")
    figures = {"bytes.page": len(text.encode()), "bytes.module": len(module), "bytes.weights": len(weights)}
    return Outcome(True, {name: float(value) for name, value in figures.items()}, {"written": [os.fspath(output)]})


def _check(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if manifest.target.name != TARGET:
        raise UnsupportedError(
            f"{bundle.path} is compiled for {manifest.target.name}, which no browser runs: compile it with "
            f"--target {TARGET}"
        )
    if manifest.condition_shape is not None:
        raise UnsupportedError(f"{bundle.path}: the model draws after a text condition, which a page cannot make")


def _description(bundle: Bundle) -> dict[str, Any]:
    """What the page has to know, besides module and weights."""
    manifest = bundle.manifest
    schedule = manifest.config.get("noise_schedule")
    trained = schedule.get("num_train_timesteps") if isinstance(schedule, dict) else None
    return {
        "shape": manifest.image_shape,
        "decoded": manifest.decoded_shape,
        "classes": manifest.classes,
        "null_class": manifest.null_class,
        "steps": manifest.schedule.steps,
        "most_steps": trained or _TRAIN_TIMESTEPS,
        "sampler": SAMPLERS[manifest.schedule.sampler],
        "facts": _facts(bundle),
    }


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    """Name and text of what a curious person may want to know."""
    manifest = bundle.manifest
    _, height, width = manifest.decoded_shape or manifest.image_shape
    step = [node for node in manifest.nodes if node.graph == "step"]
    macs: dict[str, int] = {}
    for node in step:
        family = node.family.split()[0]
        macs[family] = macs.get(family, 0) + node.macs
    families = [f"{name} {count / 1e6:,.1f} million" for name, count in sorted(macs.items()) if count]
    return [
        ("Images", f"{width} x {height} pixels"),
        ("Method", str(manifest.config.get("method", "none"))),
        ("Weights", f"{manifest.weights_bytes:,} bytes"),
        ("Program", f"{bundle.library.stat().st_size:,} bytes of WebAssembly with 128-bit vectors"),
        ("A step", f"{len(step)} kernel calls"),
        ("Multiplications in a step, by kind of kernel", ", ".join(families)),
        ("Compiled by", f"edgedm {manifest.edgedm} for {manifest.target.name}"),
    ]


def _json(value: object) -> str:
    """JSON that may stand in a script element, whose text ends at the first `</script`."""
    return json.dumps(value).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")
