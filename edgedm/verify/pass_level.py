"""Level "pass": the pipeline once more on the checkpoint's own export, every pass checked against the graph before."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.export import export
from edgedm.export.decoder_file import load_decoder
from edgedm.export.graph_io import graph_info, load_graph
from edgedm.lower.split_gemm import SplitGemm
from edgedm.lower.widen_codes import WidenCodes
from edgedm.models import Checkpoint
from edgedm.passes import optimize
from edgedm.verify.graphs import Graph
from edgedm.verify.report import Level, Row
from edgedm.verify.wiring import wiring_row

_INTEGERS = (ir.DataType.UINT4, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.INT8)

DEMAND = "exact, or within rounding region by region"


def pass_level(against: Checkpoint | str, graphs: Mapping[str, Graph], steps: int, sampler: str) -> Level:
    """Export `against`, optimise with `check=True`, and compare the bundle's weights and nodes with the fresh ones."""
    with tempfile.TemporaryDirectory(prefix="edgedm-") as folder:
        exported, deployed = Path(folder) / "model.onnx", Path(folder) / "deploy.onnx"
        export(against, exported)
        outcome = optimize(exported, deployed, check=True, steps=steps, sampler=sampler)
        rows = [_row(verdict) for verdict in outcome.details["check"]]
        if outcome.ok:
            rows.append(constants_row(_load(deployed), graphs))
            nodes = wiring_row(_load(deployed), graphs)
            rows += [nodes] if nodes else []
        elif all(row.ok for row in rows):
            rows.append(Row("pipeline", False, note=str(outcome.details.get("broken", "failed"))))
    exact = sum(bool(verdict["exact"]) for verdict in outcome.details["check"])
    figures = {
        "passes": float(len(outcome.details["check"])),
        "exact": float(exact),
        "worst_use_of_bound": max((row.figures.get("use of bound", 0.0) for row in rows), default=0.0),
    }
    return Level("pass", DEMAND, tuple(rows), figures)


def _load(deployed: Path) -> dict[str, ir.Model]:
    models = {"step": load_graph(deployed), "prepare": load_graph(deployed.with_suffix(".prepare.onnx"))}
    decoder = load_decoder(deployed, graph_info(models["step"]).config)
    return models if decoder is None else {**models, "decoder": decoder}


def _row(verdict: Mapping[str, Any]) -> Row:
    kind = "exact" if verdict["exact"] else "reassociating"
    figures = {
        "compared": float(verdict["regions"]),
        "identical": float(verdict["identical"]),
        "use of bound": float(verdict["use"]),
    }
    return Row(f"{verdict['name']} ({kind})", verdict["failure"] is None, figures, verdict["failure"] or "")


def constants_row(fresh: Mapping[str, ir.Model], graphs: Mapping[str, Graph], lowered: bool = True) -> Row:
    """Compare the constants of the bundle's graphs with those of `fresh`, which is `lowered` in place, bit for bit.

    The checkpoint's integers, and the weights that run as floats, must all be there. Any other constant (floats that no
    phase made, shapes, edges) is compared where the bundle's graph has its name, since lowering drops some. What
    lowering itself adds to the bundle's graph has nothing to be compared with. A row without a comparison fails.
    """
    compared, note = 0, ""
    for name, model in fresh.items():
        before = set(model.graph.initializers)
        for phase in (WidenCodes(), SplitGemm()) if lowered else ():
            phase(model)
        for key, value in model.graph.initializers.items():
            if value.const_value is None:
                continue
            own, held = value.const_value.numpy(), graphs[name].constants.get(key)
            if held is None and value.const_value.dtype not in _INTEGERS and key in before:
                continue
            compared += 1
            if held is None:
                note = note or f"{name}: {key} is not in the bundle's graph"
            elif own.shape != held.shape or own.dtype != held.dtype or own.tobytes() != held.tobytes():
                note = note or f"{name}: {key}: {_difference(own, held)}"
    if not compared:
        note = "nothing to compare: the bundle's graphs share no constant with the checkpoint's"
    return Row("weights", not note, {"compared": float(compared)}, note)


def _difference(own: NDArray[Any], held: NDArray[Any]) -> str:
    """How many bits of bytes, else how many numbers, are other ones, and the first of them."""
    if own.shape != held.shape or own.dtype != held.dtype:
        return (
            f"all {own.size} numbers differ from the checkpoint's; "
            f"expected {own.dtype}{list(own.shape)}, got {held.dtype}{list(held.shape)}"
        )
    bytewise = _bytes(own) ^ _bytes(held)  # tells zeros of both signs apart, and NaN not from itself
    off = bytewise.any(axis=-1)
    place = tuple(int(i) for i in np.argwhere(off)[0])
    count = (
        f"{int(np.unpackbits(bytewise).sum())} bits"
        if own.dtype == np.uint8
        else f"{np.count_nonzero(off)} of {own.size} numbers"
    )
    return f"{count} differ from the checkpoint's; first at {list(place)}: expected {own[place]}, got {held[place]}"


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(values.tobytes(), np.uint8).reshape(*values.shape, values.itemsize)
