"""Importers of checkpoints in the layouts that the authors' code writes.

    imported = import_checkpoint("last.ckpt", "bidm-ldm", output="ckpt/", head_channels=32, k="box")

A layout is a method's file format with the names of one UNet; `LAYOUTS` lists them. The module that comes out is the
same function as the authors' module with these tensors, or the import is refused by name. What the authors' code
does differently from its file is an option with both answers.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from edgedm.atomic import check_replaceable
from edgedm.errors import UnsupportedError
from edgedm.models.checkpoint import Checkpoint, save, strangeness
from edgedm.models.importers import bidm, binarydm, dilatequant, efficientdm, full_precision
from edgedm.models.importers.layout import Layout, Report
from edgedm.models.importers.reading import read
from edgedm.outcome import Outcome
from edgedm.quant.option_text import complaint, takes

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            full_precision.LDM,
            full_precision.CIFAR,
            binarydm.BINARYDM_LDM,
            bidm.BIDM_LDM,
            bidm.BIDM_CIFAR,
            efficientdm.EFFICIENTDM_LDM,
            dilatequant.DILATEQUANT_LDM,
            dilatequant.DILATEQUANT_CIFAR,
        )
    }
)


@dataclass(frozen=True)
class Imported:
    """An imported model, and what there is to say about it."""

    checkpoint: Checkpoint
    outcome: Outcome


def import_checkpoint(
    path: str | os.PathLike[str], layout: str, output: str | os.PathLike[str] | None = None, **options: Any
) -> Imported:
    """Read the file `path` of a `layout` (one of `LAYOUTS`) and return its checkpoint; with `output`, write it.

    `options` are the layout's. Raises `InvalidModelError` for a file that is damaged, holds more than tensors, or
    doesn't have the layout, naming the tensor, and `UnsupportedError` for a model or option that edgedm doesn't know.
    """
    chosen = _layout(layout)
    try:
        settings = chosen.options.model_validate(options)
    except ValidationError as error:
        raise UnsupportedError(complaint(error, chosen.options, layout)) from error
    if output is not None:
        check_replaceable(output, strangeness)
    report = Report()
    checkpoint = chosen.build(read(path), os.fspath(path), settings, report)
    figures = {"parameters": float(_size(checkpoint)), **report.figures}
    details: dict[str, Any] = {"notes": report.notes, "architecture": checkpoint.config.architecture.config}
    if output is not None:
        save(checkpoint, output)
        details["written"] = [os.fspath(output)]
    return Imported(checkpoint, Outcome(True, figures, details))


def describe_layout(layout: str) -> Outcome:
    """Return what a layout is and a table of its options. Raises `UnsupportedError` for an unknown one."""
    chosen = _layout(layout)
    rows = [
        {
            "option": name,
            "takes": takes(info),
            "default": "must be given" if info.is_required() else str(info.get_default(call_default_factory=True)),
            "meaning": info.description or "",
        }
        for name, info in chosen.options.model_fields.items()
    ]
    summary = {"layout": layout, "file": chosen.title}
    tables = {"Options (--option NAME=VALUE)": rows}
    return Outcome(True, {"options": float(len(rows))}, {"notes": [], "summary": summary, "tables": tables})


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise UnsupportedError(f"layout: expected one of {', '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]


def _size(checkpoint: Checkpoint) -> int:
    """Count the numbers of the architecture, whatever their width."""
    from edgedm.models.importers.assemble import float_shapes

    total = 0
    for shape in float_shapes(checkpoint.config).values():
        count = 1
        for axis in shape:
            count *= axis
        total += count
    return total
