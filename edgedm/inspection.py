"""Describe a checkpoint, a graph or a bundle: layers, bits, bytes, MACs, tables, kernels, hashes."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from edgedm.errors import InvalidModelError, UnsupportedError, readable
from edgedm.files import check_regular
from edgedm.outcome import Outcome

Row = dict[str, Any]


def inspect(path: str | Path, variant: str | None = None) -> Outcome:
    """Describe `path`: a checkpoint (folder, zoo:NAME or preset:NAME), an ONNX graph, or a bundle.

    Of a bundle with several variants that is the one that would run here, or `variant`. `details["tables"]` maps a
    title to rows (dicts with the same keys). Raises `InvalidModelError` where `path` is none of the three, or broken,
    UnsupportedError for a variant that is not there.
    """
    text = str(path)
    if variant is not None and not (Path(path) / "manifest.json").is_file():
        raise UnsupportedError(f"--variant: {path} is no bundle, and has no variants")
    if text.startswith(("zoo:", "preset:")) or (Path(path) / "config.json").is_file():
        return _checkpoint(text)
    if (Path(path) / "manifest.json").is_file():
        return _bundle(Path(path), variant)
    if Path(path).is_file():
        return _graph(Path(path))
    raise InvalidModelError(
        f"{path}: expected a checkpoint (a folder with config.json, zoo:NAME, preset:NAME), an ONNX file, or a bundle "
        "(a folder with manifest.json)"
    )


def render(outcome: Outcome) -> None:
    """Print an inspection: the summary, then each table."""
    for name, value in outcome.details["summary"].items():
        click.echo(f"{name:<18} {readable(str(value))}")
    for title, rows in outcome.details["tables"].items():
        click.echo(f"\n{title}")
        click.echo(_table(rows))


def _checkpoint(path: str) -> Outcome:
    from edgedm.models import load, locate
    from edgedm.models.roles import roles

    checkpoint = load(path)
    module, config = checkpoint.module, checkpoint.config
    # The roles of the float architecture name every layer, those that a low-bit module took the place of included.
    float_roles = roles(config.float_unet())
    macs = _layer_macs(checkpoint, float_roles)
    rows: list[Row] = []
    for name, role in float_roles.items():
        layer = module.unet.get_submodule(name)
        rows.append(
            {
                "layer": name,
                "role": role,
                "bits": _bits(layer, config.roles.get(role, "float")),
                "in": getattr(layer, "in_channels", getattr(layer, "in_features", 0)),
                "out": getattr(layer, "out_channels", getattr(layer, "out_features", 0)),
                "kernel": "x".join(map(str, getattr(layer, "kernel_size", (1, 1)))),
                "macs": macs[name],
                "bytes": sum(_stored_bytes(tensor) for tensor in layer.state_dict().values()),
            }
        )
    figures = {
        "layers": float(len(rows)),
        "layers.low_bit": float(sum(row["bits"] != "float" for row in rows)),
        "bytes.layers": float(sum(row["bytes"] for row in rows)),
        "macs": float(sum(row["macs"] for row in rows)),
        **{f"macs.{row['bits']}": 0.0 for row in rows},
    }
    for row in rows:
        figures[f"macs.{row['bits']}"] += row["macs"]
    summary = {
        "checkpoint": path,
        "architecture": config.architecture.class_name,
        "method": config.method,
        "prediction": config.prediction_type,
        "carried state": ", ".join(module.taps) or "none",
        "text condition": _size(config.condition_shape),
        "decoder": config.decoder.class_name if config.decoder else "none",
    }
    if checkpoint.decoder is not None:
        figures["bytes.decoder"] = float(sum(map(_stored_bytes, checkpoint.decoder.state_dict().values())))
    tables = {"Layers": rows, "By role": _by_role(rows), "Attention operands": _operands(module)}
    tables["Per-timestep tables"] = _timestep_tables(module)
    if not path.startswith("preset:"):  # which is made, not stored
        tables["Files"] = _files(locate(path))
    return Outcome(True, figures, {"summary": summary, "tables": tables})


def _bits(layer: Any, role_bits: str) -> str:
    """Bits of a layer as it runs; those of its role for a binary one."""
    from edgedm.quant.integer import QuantLayer
    from edgedm.quant.running import RUNNING_LAYERS

    if isinstance(layer, QuantLayer):
        return f"W{layer.weight_bits}A{32 if layer.activation is None else layer.activation.bits}"
    return role_bits if isinstance(layer, RUNNING_LAYERS) else "float"


def _operands(module: Any) -> list[Row]:
    """Quantisers that belong to no layer: those of attention's operands."""
    from edgedm.quant.integer import QuantLayer, UniformQuantizer
    from edgedm.quant.running import RUNNING_QUANTIZERS

    inside = {id(each.activation) for each in module.modules() if isinstance(each, QuantLayer)}
    return [
        {
            "operand": path,
            "bits": f"A{each.bits}",
            "heads": each.heads if isinstance(each, UniformQuantizer) else 1,
            "rows": len(each.table) if isinstance(each, UniformQuantizer) else 1,
        }
        for path, each in module.unet.named_modules()
        if isinstance(each, RUNNING_QUANTIZERS) and id(each) not in inside
    ]


def _stored_bytes(tensor: Any) -> int:
    """Bytes in the checkpoint's file: floats are stored as float16."""
    return int(tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size()))


def _layer_macs(checkpoint: Any, layers: Iterable[str]) -> dict[str, int]:
    """Multiply-accumulates of each layer for one image; the 1x1 shortcut inside a binary layer is not its own row."""
    import torch

    module = checkpoint.module
    found: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(layer: Any, _inputs: Any, output: Any) -> None:
            taps = math.prod(getattr(layer, "kernel_size", (1, 1)))
            found[name] = output.numel() * taps * getattr(layer, "in_channels", getattr(layer, "in_features", 0))

        return hook

    handles = [module.unet.get_submodule(name).register_forward_hook(count(name)) for name in layers]
    zero = torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        module.record(torch.zeros(1, *checkpoint.config.image_shape), zero, zero)
    for handle in handles:
        handle.remove()
    return found


def _timestep_tables(module: Any) -> list[Row]:
    """Every table with a row a timestep bin; of a quantiser's the range of its steps and of its zero points."""
    from edgedm.quant.integer import UniformQuantizer

    rows: list[Row] = []
    if module.taps:
        for (path, tap), column in zip(module.mixes.items(), module.cache_coefficients.T, strict=True):
            mixed = path if path == tap else f"{path} with {tap}"
            rows.append(_table_row(f"cache_coefficients[{mixed}]", module.edges, column))
    for path, each in module.unet.named_modules():
        if isinstance(each, UniformQuantizer) and len(each.table) > 1:
            rows.append(_table_row(f"{path} step", each.edges, each.table[:, : each.heads]))
            rows.append(_table_row(f"{path} zero", each.edges, each.table[:, each.heads :]))
    return rows


def _table_row(name: str, edges: Any, values: Any) -> Row:
    bins = f"{len(edges)} from {int(edges[0])} to {int(edges[-1])}"
    return {"table": name, "bins": bins, "least": float(values.min()), "most": float(values.max())}


def _files(folder: Path) -> list[Row]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [
        {"file": path.name, "bytes": check_regular(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    ]


def _by_role(rows: Iterable[Row]) -> list[Row]:
    groups: dict[tuple[str, str], Row] = {}
    for row in rows:
        group = groups.setdefault(
            (row["role"], row["bits"]), {"role": row["role"], "bits": row["bits"], "layers": 0, "macs": 0, "bytes": 0}
        )
        group["layers"] += 1
        group["macs"] += row["macs"]
        group["bytes"] += row["bytes"]
    return list(groups.values())


def _graph(path: Path) -> Outcome:
    from edgedm.export.graph_io import graph_info, load_graph

    model = load_graph(path)
    info = graph_info(model)
    nodes = Counter((node.domain or "onnx", node.op_type) for node in model.graph)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    by_dtype: Counter[str] = Counter()
    for tensor in weights:
        by_dtype[tensor.dtype.name] += tensor.nbytes
    tables = {
        "Inputs and outputs": [
            *(_value_row(value, info.inputs.get(str(value.name), "input")) for value in model.graph.inputs),
            *(_value_row(value, "output") for value in model.graph.outputs),
        ],
        "Nodes": [{"domain": domain, "op": op, "count": count} for (domain, op), count in sorted(nodes.items())],
        "Weights by dtype": [{"dtype": name, "bytes": size} for name, size in sorted(by_dtype.items())],
        "Quantised weights": _graph_weights(model),
        "Per-timestep tables": _graph_tables(model),
    }
    figures = {
        "nodes": float(sum(nodes.values())),
        "nodes.edgedm": float(sum(count for (domain, _), count in nodes.items() if domain == "edgedm")),
        "bytes.weights": float(sum(by_dtype.values())),
        "bytes.file": float(path.stat().st_size),
    }
    summary = {"graph": str(path), "level": info.level, "method": info.config.get("method", "?")}
    return Outcome(True, figures, {"summary": summary, "tables": tables})


def _graph_weights(model: Any) -> list[Row]:
    """Constants that a DequantizeLinear or an op of ours reads packed, by module."""
    packed = {"DequantizeLinear": 0, "UnpackBits": 0, "UnpackBitsLinear": 0}
    packed |= dict.fromkeys(("BinaryConv", "BinaryGemm", "BinaryWeightConv", "BinaryWeightGemm"), 1)
    packed |= dict.fromkeys(("QuantConv", "QuantGemm"), 2)
    rows: list[Row] = []
    for node in model.graph:
        weight = node.inputs[packed[node.op_type]] if node.op_type in packed else None
        if weight is not None and weight.const_value is not None:
            rows.append(
                {
                    "module": node.metadata_props.get("edgedm.module", ""),
                    "read by": node.op_type,
                    "dtype": "1 bit" if packed[node.op_type] < 2 and node.domain else weight.dtype.name.lower(),
                    "shape": "x".join(map(str, weight.shape)),
                    "bytes": weight.const_value.nbytes,
                }
            )
    return rows


def _graph_tables(model: Any) -> list[Row]:
    """Tables that a TimestepLookup reads; an optimised graph keeps them in its prepare graph, as Gather's data."""
    lookups = [node for node in model.graph if node.op_type == "TimestepLookup"]
    return [
        {
            "module": node.metadata_props.get("edgedm.module", ""),
            "rows": int(node.inputs[0].shape[0]),
            "columns": int(node.inputs[0].shape[1]),
            "bins from": int(node.inputs[1].const_value.numpy()[0]),
            "to": int(node.inputs[1].const_value.numpy()[-1]),
        }
        for node in lookups
        if node.inputs[1].const_value is not None
    ]


def _bundle(path: Path, variant: str | None) -> Outcome:
    from edgedm.bench.sizes import parts, sizes
    from edgedm.bundle import load
    from edgedm.runtime.choice import choose

    bundle = choose(load(path), variant)
    manifest = bundle.manifest
    kernels: dict[str, Row] = {}
    for node in manifest.nodes:
        op = node.op or "(fused standard ops)"
        fresh: Row = {"op": op, "family": node.family, "calls": 0, "macs": 0, "kernel": node.kernel}
        row = kernels.setdefault(node.kernel, fresh)
        row["calls"] += 1
        row["macs"] += node.macs
    calls: list[Row] = [
        {
            "graph": node.graph,
            "op": node.op or "(fused)",
            "module": node.module,
            "family": node.family,
            "macs": node.macs,
            "output": "x".join(map(str, node.outputs[0].shape)),
        }
        for node in manifest.nodes
    ]
    files = [{"file": name, "bytes": entry.bytes, "sha256": entry.sha256} for name, entry in manifest.files.items()]
    by_family: Counter[str] = Counter()
    for node in manifest.nodes:
        if node.graph == "step":
            by_family[node.family] += node.macs
    figures = {
        "kernels": float(len(kernels)),
        "calls.step": float(sum(node.graph == "step" for node in manifest.nodes)),
        "calls.prepare": float(sum(node.graph == "prepare" for node in manifest.nodes)),
        "bytes.arena": float(manifest.arena_bytes),
        "bytes.weights": float(manifest.weights_bytes),
        "bytes.row": float(manifest.row_bytes),
        "bytes.files": float(sum(entry.bytes for entry in manifest.files.values())),
        **sizes(bundle),
        **{f"macs.{family or 'fused'}": float(macs) for family, macs in by_family.items()},
    }
    if manifest.decoded_shape is not None:
        decoder = [node for node in manifest.nodes if node.graph == "decoder"]
        figures |= {"calls.decoder": float(len(decoder)), "macs.decoder": float(sum(node.macs for node in decoder))}
    summary = {
        "bundle": str(path),
        "target": manifest.target.name,
        "variants": ", ".join(manifest.variants()),
        "method": manifest.config.get("method", "?"),
        "schedule": f"{manifest.schedule.sampler}, {manifest.schedule.steps} steps (any other can be chosen)",
        "carried state": ", ".join(port.name for port in manifest.states()) or "none",
        "draws": _drawn(manifest.image_shape, manifest.decoded_shape),
        "text condition": _size(manifest.condition_shape),
        "toolchain": ", ".join(f"{name} {version}" for name, version in manifest.toolchain.items()),
    }
    tables = {"Kernels": list(kernels.values()), "Calls": calls, "Files": files, "Shipped bytes": parts(bundle)}
    if manifest.others:
        tables = {"Variants": _variants(manifest), **tables}
    if manifest.slow is not None:
        figures["slow"] = float(len(manifest.slow))
        tables["Slow"] = [{"what no fast kernel serves": each} for each in manifest.slow]
    return Outcome(True, figures, {"summary": summary, "tables": tables})


def _variants(manifest: Any) -> list[Row]:
    """What each variant takes, that which is described first."""
    from edgedm.targets import resolve, runs_natively

    return [
        {
            "variant": name,
            "runs here": "yes" if runs_natively(resolve(name)) else "no",
            "kernels": len({node.kernel for node in manifest.of(name).nodes}),
            "kernel bytes": manifest.of(name).kernel_bytes,
            "arena": manifest.of(name).arena_bytes,
            "weights read": sum(each.bytes for each in manifest.sections if name in each.variants),
            "read by it alone": sum(each.bytes for each in manifest.sections if each.variants == [name]),
        }
        for name in manifest.variants()
    ]


def _drawn(shape: Sequence[int], decoded: Sequence[int] | None) -> str:
    return (
        f"images of {_size(shape)}" if decoded is None else f"images of {_size(decoded)} from latents of {_size(shape)}"
    )


def _size(shape: Sequence[int] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))


def _value_row(value: Any, role: str) -> Row:
    return {"name": value.name, "role": role, "dtype": value.dtype.name, "shape": list(value.shape)}


def _table(rows: Sequence[Row]) -> str:
    """Lay rows out in columns, numbers to the right."""
    if not rows:
        return "  (none)"
    keys = list(rows[0])
    cells = [[_text(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [keys, *cells]) for i in range(len(keys))]
    right = [isinstance(rows[0][key], int | float) for key in keys]

    def line(texts: Sequence[str]) -> str:
        parts = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True))
        return "  " + "  ".join(parts).rstrip()

    return "\n".join([line(keys), *(line(texts) for texts in cells)])


def _text(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else readable(str(value))
