"""`edgedm compile`: a deployed graph, its prepare graph and a latent model's decoder -> a bundle."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgedm import progress
from edgedm.atomic_files import check_settled
from edgedm.bundle import Manifest, Port
from edgedm.bundle import write as write_bundle
from edgedm.bundle.manifest import GraphName, Schedule
from edgedm.bundle.store import LIBRARY, SAMPLER, place_of
from edgedm.diffusion import SAMPLERS
from edgedm.errors import UnsupportedError
from edgedm.export.decoder_file import load_decoder
from edgedm.export.graph_io import graph_info, serialize_graph
from edgedm.lower.assemble import Lowered, assemble
from edgedm.lower.cache import fetch, keep, key_of
from edgedm.lower.codegen import Graph, Variant, identifier
from edgedm.lower.importer import import_graph, is_ours
from edgedm.lower.interface import load_pair, output_roles
from edgedm.lower.layout import lay_out
from edgedm.lower.plan import Plan, make_plan, move_weights
from edgedm.lower.tidy import WORKSPACE_BYTES, tidy, workspace_bytes
from edgedm.lower.weights import Weights
from edgedm.outcome import Outcome
from edgedm.passes.editing import dims
from edgedm.targets import Target, resolve_variants

_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}
_DTYPES |= {ir.DataType.UINT8: "uint8", ir.DataType.INT8: "int8", ir.DataType.BOOL: "bool"}


def compile(
    graph_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    target: str | Sequence[str] = "host",
    steps: int = 50,
    sampler: str = "ddim",
    cache: bool = True,
) -> Outcome:
    """Compile the graph at `graph_path` (with `<stem>.prepare.onnx` beside it) into the bundle `output`.

    A latent model's `<stem>.decoder.onnx` is compiled too. `target` may be several of one kind of machine, separated by
    commas or as a sequence: the bundle then holds a variant of the kernels for each, of which a machine runs the best
    that it can.

    `steps` and `sampler` become the bundle's default schedule. Raises InvalidModelError for broken graphs,
    UnsupportedError for what has no kernel or a schedule outside the trained timesteps, ToolchainError without a
    compiler. Figures: bytes of weights, program, library, arena and a step's rows, seconds, kernels, MACs, and how many
    nodes no fast kernel serves (`details["slow"]` names those), of the most demanding variant where there are several;
    and for each of several `bytes.kernels.<name>` and `bytes.weights.<name>`, what it alone reads. With `cache` a
    bundle that was compiled from the same files before, by the same edgedm, is copied (`cached` 1).
    """
    started = time.perf_counter()
    if sampler not in SAMPLERS:
        raise UnsupportedError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    graph_path, chosen = Path(graph_path), resolve_variants(target)
    check_settled(graph_path)
    key = key_of(graph_path, chosen, steps, sampler) if cache else None
    kept = fetch(key, output) if key else None
    if kept is not None:
        return _outcome(kept, Path(output), time.perf_counter() - started, cached=True)
    step, prepare, interface = load_pair(graph_path)
    decoder = load_decoder(graph_path, interface.config)
    interface.check_schedule(steps, sampler)

    def fill(folder: Path) -> Manifest:
        models: dict[GraphName, ir.Model] = {"step": step, "prepare": prepare}
        if decoder is not None:
            models["decoder"] = decoder
        prefix = _prefix(models, chosen)
        laid_out = {name: _lay_out(name, model) for name, model in models.items()}
        weights, variants = Weights(), []
        for reader, each in enumerate(chosen):
            progress.stage(f"lowering for {each.name}")
            graphs = {name: _lower(graph, models[name], each, weights, reader) for name, graph in laid_out.items()}
            own = prefix if len(chosen) == 1 else f"{prefix}{identifier(each.name)}_"
            variants.append(Variant(each, own, graphs))
        file = weights.file()
        for variant in variants:
            move_weights([graph.plan for graph in variant.graphs.values()], file.moved)
        lowered = Lowered(
            variants=variants,
            models=models,
            weights=file,
            interface=interface,
            prefix=prefix,
            schedule=Schedule.model_validate({"steps": steps, "sampler": sampler}),
            golden=graph_path.with_suffix(".golden.safetensors"),
        )
        return assemble(folder, lowered)

    manifest = write_bundle(output, fill)  # a place that cannot be written is found before anything is lowered
    if key and key_of(graph_path, chosen, steps, sampler) == key:
        keep(key, output)
    elif key:
        progress.stage("the graphs or the golden data changed meanwhile: the bundle is not kept")
    return _outcome(manifest, Path(output), time.perf_counter() - started)


@dataclass(frozen=True)
class _LaidOut:
    """A graph in the kernels' layout, which is the same for all targets."""

    name: GraphName
    inputs: list[Port]
    outputs: list[Port]
    slow: tuple[str, ...]


def _lay_out(name: GraphName, model: ir.Model) -> _LaidOut:
    """Do what no target matters to; `model` becomes channels-last in place."""
    slow = lay_out(model)
    before, after = graph_info(model).inputs, output_roles(model)
    inputs = [_port(value, before[value.name or ""]) for value in model.graph.inputs]
    outputs = [_port(value, after[value.name or ""]) for value in model.graph.outputs]
    return _LaidOut(name, inputs, outputs, slow)


def _lower(graph: _LaidOut, model: ir.Model, target: Target, weights: Weights, reader: int) -> Graph:
    module, calls = import_graph(ir.serde.serialize_model(model), target)
    plan = _tidied(make_plan(module, calls, weights, reader, target), graph.name)
    return Graph(graph.name, plan, graph.inputs, graph.outputs, graph.slow)


def _port(value: ir.Value, role: str) -> Port:
    if value.dtype not in _DTYPES:
        raise UnsupportedError(f"{value.name!r}: dtype {value.dtype} at the border of a graph")
    return Port(name=value.name or "", role=role, shape=dims(value), dtype=_DTYPES[value.dtype])


def _tidied(plan: Plan, graph: str) -> Plan:
    """Tidy the functions that Relax made and name them after the graph; kernels of ours are shared by both graphs."""
    ours = {name for name, function in plan.functions.items() if is_ours(function)}

    def rename(name: str) -> str:
        return name if name in ours else f"{graph}_{name}"

    calls = [replace(call, function=rename(call.function)) for call in plan.calls]  # `before` is always ours
    functions = {rename(name): f if name in ours else tidy(f) for name, f in plan.functions.items()}
    for name, function in functions.items():
        if workspace_bytes(function) > WORKSPACE_BYTES:
            raise UnsupportedError(
                f"kernel {name} needs {workspace_bytes(function)} bytes of workspace, the runtime has {WORKSPACE_BYTES}"
            )
    return replace(plan, calls=calls, functions=functions)


def _prefix(models: Mapping[GraphName, ir.Model], targets: Sequence[Target]) -> str:
    names = ",".join(target.name for target in targets)
    digest = hashlib.sha256(b"".join(map(serialize_graph, models.values())) + names.encode())
    return f"edm_{digest.hexdigest()[:8]}_"


def _outcome(manifest: Manifest, path: Path, seconds: float, cached: bool = False) -> Outcome:
    steps = [node for node in manifest.nodes if node.graph == "step"]
    figures = {
        "seconds": seconds,
        "cached": float(cached),
        "bytes.weights": float(manifest.weights_bytes),
        "bytes.program": float(manifest.files[place_of(SAMPLER, manifest.files)].bytes),
        "bytes.library": float(manifest.files[place_of(LIBRARY, manifest.files)].bytes),
        "bytes.arena": float(manifest.arena_bytes),
        "bytes.row": float(manifest.row_bytes),
        "kernels": float(len({node.kernel for node in manifest.nodes})),
        "calls.step": float(len(steps)),
        "calls.prepare": float(sum(node.graph == "prepare" for node in manifest.nodes)),
    }
    if manifest.decoded_shape is not None:
        figures["calls.decoder"] = float(sum(node.graph == "decoder" for node in manifest.nodes))
    for family in sorted({node.family for node in steps if node.macs}):
        figures[f"macs.{family}"] = float(sum(node.macs for node in steps if node.family == family))
    assert manifest.slow is not None  # this edgedm wrote it, cached or not
    figures["slow"] = float(len(manifest.slow))
    figures |= _variant_figures(manifest)
    return Outcome(True, figures, {"bundle": str(path), "target": ",".join(manifest.variants()), "slow": manifest.slow})


def _variant_figures(manifest: Manifest) -> dict[str, float]:
    """What each of several variants takes: its kernels, and the weights that it alone reads."""
    if not manifest.others:
        return {}
    figures = {"bytes.weights.shared": float(sum(each.bytes for each in manifest.sections if len(each.variants) > 1))}
    for name in manifest.variants():
        figures[f"bytes.kernels.{name}"] = float(manifest.of(name).kernel_bytes or 0)
        alone = [each.bytes for each in manifest.sections if each.variants == [name]]
        figures[f"bytes.weights.{name}"] = float(sum(alone))
    return figures
