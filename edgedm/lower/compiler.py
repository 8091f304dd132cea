"""`edgedm compile`: a deployed graph and its prepare graph -> a bundle."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass

import edgedm
from edgedm import progress
from edgedm.bundle import Manifest, Port
from edgedm.bundle import write as write_bundle
from edgedm.bundle.manifest import Schedule, TargetEntry
from edgedm.bundle.store import LIBRARY, SAMPLER, WEIGHTS
from edgedm.diffusion.sampler import SAMPLERS
from edgedm.errors import UnsupportedError
from edgedm.export.graph_io import serialize_graph
from edgedm.lower import toolchain
from edgedm.lower.channels_last import ChannelsLast
from edgedm.lower.codegen import (
    HEADERS,
    LIBRARY_SOURCES,
    PROGRAM_SOURCES,
    TEMPLATES,
    Graph,
    lay_out,
    manifest_nodes,
    write_sources,
)
from edgedm.lower.golden import flat_golden
from edgedm.lower.importer import import_graph
from edgedm.lower.interface import Interface, load_pair, output_roles
from edgedm.lower.objects import write_object
from edgedm.lower.plan import Plan, make_plan
from edgedm.lower.split_gemm import SplitGemm
from edgedm.lower.tidy import WORKSPACE_BYTES, tidy, workspace_bytes
from edgedm.lower.weights import Weights
from edgedm.lower.widen_codes import WidenCodes
from edgedm.ops import DOMAIN, infer_shapes
from edgedm.outcome import Outcome
from edgedm.passes.editing import dims
from edgedm.targets import Target, resolve
from edgedm.targets.kernels.select import OPS

_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}
_DTYPES |= {ir.DataType.UINT8: "uint8", ir.DataType.INT8: "int8", ir.DataType.BOOL: "bool"}


def compile(
    graph_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    target: str = "host",
    steps: int = 50,
    sampler: str = "ddim",
) -> Outcome:
    """Compile the graph at `graph_path` (with `<stem>.prepare.onnx` beside it) into the bundle `output`.

    `steps` and `sampler` become the bundle's default schedule. Raises InvalidModelError for broken graphs,
    UnsupportedError for what has no kernel or a schedule outside the trained timesteps, ToolchainError without a
    compiler. Figures: bytes of weights, program, library and arena, seconds, kernels, MACs.
    """
    started = time.perf_counter()
    if sampler not in SAMPLERS:
        raise UnsupportedError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    step, prepare, interface = load_pair(graph_path)
    interface.check_schedule(steps)
    chosen = resolve(target)
    prefix = _prefix(step, prepare, chosen)
    progress.stage(f"lowering for {chosen.name}")
    weights = Weights()
    graphs = [_lower(name, model, chosen, weights) for name, model in (("step", step), ("prepare", prepare))]

    def fill(folder: Path) -> Manifest:
        _fill(folder, Path(graph_path), (step, prepare), graphs, weights.tobytes(), prefix, chosen, interface, schedule)
        return _manifest(graphs, prefix, chosen, interface, schedule, len(weights.tobytes()))

    schedule = Schedule(steps=steps, sampler=sampler)  # type: ignore[arg-type]  # checked above
    manifest = write_bundle(output, fill)
    return _outcome(manifest, Path(output), time.perf_counter() - started)


def _lower(name: str, model: ir.Model, target: Target, weights: Weights) -> Graph:
    """Lower one graph; `model` becomes channels-last in place."""
    InlinePass(criteria=lambda function: function.domain == DOMAIN and function.name not in OPS)(model)
    RemoveUnusedFunctionsPass()(model)
    infer_shapes(model)
    for phase in (SplitGemm(), WidenCodes(), ChannelsLast()):
        phase(model)
    module, calls = import_graph(ir.serde.serialize_model(model), target)
    plan = make_plan(module, calls, weights, target.tvm())
    roles = {value.name or "": role for value, role in zip(model.graph.inputs, _input_roles(model), strict=True)}
    inputs = [_port(value, roles[value.name or ""]) for value in model.graph.inputs]
    outputs = [_port(value, output_roles(model)[value.name or ""]) for value in model.graph.outputs]
    return Graph(name, _named(plan, name), inputs, outputs)


def _input_roles(model: ir.Model) -> list[str]:
    from edgedm.export.graph_io import graph_info

    roles = graph_info(model).inputs
    return [roles[value.name or ""] for value in model.graph.inputs]


def _port(value: ir.Value, role: str) -> Port:
    if value.dtype not in _DTYPES:
        raise UnsupportedError(f"{value.name!r}: dtype {value.dtype} at the border of a graph")
    return Port(name=value.name or "", role=role, shape=dims(value), dtype=_DTYPES[value.dtype])


def _named(plan: Plan, graph: str) -> Plan:
    """Tidy functions that Relax made and give them a name of their graph; kernels of ours are shared between graphs."""
    ours = {call.function for call in plan.calls if call.origin is not None}

    def rename(name: str) -> str:
        return name if name in ours else f"{graph}_{name}"

    calls = [replace(call, function=rename(call.function)) for call in plan.calls]
    functions = {rename(name): f if name in ours else tidy(f) for name, f in plan.functions.items()}
    for name, function in functions.items():
        if workspace_bytes(function) > WORKSPACE_BYTES:
            raise UnsupportedError(
                f"kernel {name} needs {workspace_bytes(function)} bytes of workspace, the runtime has {WORKSPACE_BYTES}"
            )
    return replace(plan, calls=calls, functions=functions)


def _prefix(step: ir.Model, prepare: ir.Model, target: Target) -> str:
    digest = hashlib.sha256(serialize_graph(step) + serialize_graph(prepare) + target.name.encode())
    return f"edm_{digest.hexdigest()[:8]}_"


def _fill(
    folder: Path,
    graph_path: Path,
    models: tuple[ir.Model, ir.Model],
    graphs: list[Graph],
    weights: bytes,
    prefix: str,
    target: Target,
    interface: Interface,
    schedule: Schedule,
) -> None:
    """Write every file of the bundle but the manifest."""
    for name in ("bin", "lib", "include", "src", "golden"):
        (folder / name).mkdir()
    (folder / WEIGHTS).write_bytes(weights)
    functions: dict[str, Any] = {}
    for graph in graphs:
        functions |= _checked(functions, graph.plan.functions)
    progress.stage(f"compiling {len(functions)} kernels")
    write_object(functions, prefix, target.tvm(), folder / "kernels.o")
    layout = lay_out(*graphs)
    write_sources(folder / "src", prefix, graphs, layout, interface, weights, (schedule.steps, schedule.sampler))
    progress.stage("compiling the runtime")
    _link(folder, prefix)
    for header in HEADERS:
        (folder / "src" / header).rename(folder / "include" / header)
    shutil.copyfile(TEMPLATES / "CMakeLists.txt", folder / "CMakeLists.txt")
    for model, name in zip(models, ("step", "prepare"), strict=True):
        (folder / "golden" / f"{name}.onnx").write_bytes(serialize_graph(model))
    golden = graph_path.with_suffix(".golden.safetensors")
    if golden.is_file():
        shutil.copyfile(golden, folder / "golden" / "golden.safetensors")
        states = [port for port in graphs[0].inputs if port.role == "state"]
        (folder / "golden" / "golden.bin").write_bytes(flat_golden(golden, states))


def _checked(known: Mapping[str, Any], more: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, function in more.items():
        if name in known and not _same(known[name], function):
            raise AssertionError(f"two kernels are called {name}")
    return more


def _same(a: Any, b: Any) -> bool:
    import tvm

    return bool(tvm.ir.structural_equal(a, b))


def _link(folder: Path, prefix: str) -> None:
    """Compile the C files in a folder of their own, by relative names, so that no path reaches the objects."""
    with tempfile.TemporaryDirectory(prefix="edgedm-") as scratch:
        work = Path(scratch)
        for source in (folder / "src").iterdir():
            shutil.copyfile(source, work / source.name)
        shutil.copyfile(folder / "kernels.o", work / "kernels.o")
        (work / "exports.map").write_text(f"{{ global: {prefix}*; local: *; }};\n")
        triple = toolchain.LINUX_X86_64
        objects = toolchain.compile_objects([*LIBRARY_SOURCES, *PROGRAM_SOURCES], work, triple, ["-DEDM_PROBE"])
        library = [*objects[: len(LIBRARY_SOURCES)], "kernels.o"]
        link = ["-target", triple, *toolchain.LINK]
        shared = ["-shared", "-Wl,--version-script=exports.map", "-Wl,-soname,libedgedm.so"]
        toolchain.zig_cc([*link, *shared, *library, "-o", "libedgedm.so"], work)
        toolchain.zig_cc([*link, *objects, "kernels.o", "-o", "edgedm-sample"], work)
        shutil.copyfile(work / "libedgedm.so", folder / LIBRARY)
        shutil.copyfile(work / "edgedm-sample", folder / SAMPLER)


def _manifest(
    graphs: list[Graph],
    prefix: str,
    target: Target,
    interface: Interface,
    schedule: Schedule,
    weights_bytes: int,
) -> Manifest:
    step, prepare = graphs
    layout = lay_out(step, prepare)
    return Manifest(
        edgedm=edgedm.__version__,
        prefix=prefix,
        target=TargetEntry(name=target.name, features=sorted(target.features), triple=target.triple),
        toolchain={
            "tvm": version("apache-tvm"),
            "zig": toolchain.zig_version(),
            "onnx": version("onnx"),
        },
        files={},
        config=interface.config,
        image_shape=interface.image_shape,
        classes=interface.classes,
        null_class=interface.null_class,
        trained_timesteps=interface.trained,
        schedule=schedule,
        arena_bytes=max(graph.plan.arena_bytes for graph in graphs),
        weights_bytes=weights_bytes,
        row_bytes=layout.row_bytes,
        inputs={"step": step.inputs, "prepare": prepare.inputs},
        outputs={"step": step.outputs, "prepare": prepare.outputs},
        nodes=[*manifest_nodes(step, prefix), *manifest_nodes(prepare, prefix)],
    )


def _outcome(manifest: Manifest, path: Path, seconds: float) -> Outcome:
    steps = [node for node in manifest.nodes if node.graph == "step"]
    figures = {
        "seconds": seconds,
        "bytes.weights": float(manifest.weights_bytes),
        "bytes.program": float(manifest.files[SAMPLER].bytes),
        "bytes.library": float(manifest.files[LIBRARY].bytes),
        "bytes.arena": float(manifest.arena_bytes),
        "kernels": float(len({node.kernel for node in manifest.nodes})),
        "calls.step": float(len(steps)),
        "calls.prepare": float(len(manifest.nodes) - len(steps)),
    }
    for family in sorted({node.family for node in steps if node.macs}):
        figures[f"macs.{family}"] = float(sum(node.macs for node in steps if node.family == family))
    return Outcome(True, figures, {"bundle": str(path), "target": manifest.target.name})
