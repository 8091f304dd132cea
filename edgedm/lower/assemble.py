"""A lowered model -> the files of a bundle: objects, generated C, libraries, golden data, manifest."""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import tvm_ffi

import edgedm
from edgedm import progress
from edgedm.bundle import Manifest, Section
from edgedm.bundle import Variant as VariantEntry
from edgedm.bundle.limits import check_limits
from edgedm.bundle.manifest import FileEntry, GraphName, Schedule, TargetEntry
from edgedm.bundle.store import IN_WEBASSEMBLY, LIBRARY, PROBE, SAMPLER, WEIGHTS
from edgedm.export.graph_io import labels, serialize_graph
from edgedm.lower import toolchain
from edgedm.lower.codegen import (
    HEADERS,
    LIBRARY_SOURCES,
    PAGE_SOURCES,
    PROBE_SOURCES,
    PROGRAM_SOURCES,
    TEMPLATES,
    GoldenFiles,
    Graph,
    Variant,
    lay_out,
    manifest_nodes,
    write_sources,
)
from edgedm.lower.golden import flat_golden
from edgedm.lower.interface import Interface
from edgedm.lower.layer_golden import layer_golden, layers_path
from edgedm.lower.objects import write_helpers, write_object
from edgedm.lower.package import write_package
from edgedm.lower.weights import WeightsFile
from edgedm.targets import Target, common_ground


@dataclass(frozen=True)
class Lowered:
    """Everything that a bundle is made of: its graphs (step, prepare, of a latent model decoder) as the channels-last
    `models`, and as lowered for each target, the most demanding first. `golden` may not exist."""

    variants: Sequence[Variant]
    models: Mapping[GraphName, ir.Model]
    weights: WeightsFile
    interface: Interface
    prefix: str
    schedule: Schedule
    golden: Path

    @property
    def graphs(self) -> Mapping[GraphName, Graph]:
        """Those of the first variant; their inputs and outputs are the same in all."""
        return self.variants[0].graphs


def assemble(folder: Path, lowered: Lowered) -> Manifest:
    """Write every file of the bundle but the manifest, which is returned without the files' hashes."""
    for name in ("bin", "lib", "include", "src", "golden"):
        (folder / name).mkdir()
    (folder / WEIGHTS).write_bytes(lowered.weights.data)
    kernel_bytes = _write_kernels(lowered.variants, lowered.prefix, folder)
    manifest = _manifest(lowered, kernel_bytes)
    check_limits(manifest)  # what it would be refused for when it is loaded is our bug
    golden = _golden(folder / "golden", lowered, manifest)
    default = (lowered.schedule.steps, lowered.schedule.sampler)
    write_sources(folder / "src", lowered.prefix, lowered.variants, lowered.interface, lowered.weights, default, golden)
    target = lowered.variants[0].target  # the others are built by the same tools
    if target.isa == "wasm32":
        for source in PAGE_SOURCES:
            (folder / "src" / source).parent.mkdir()
            shutil.copyfile(TEMPLATES / source, folder / "src" / source)
    first = ", the first time with the target's C library: about a minute" if target.base.emulator else ""
    progress.stage(f"compiling the runtime{first}")
    _link(folder, lowered.prefix, target)
    for header in HEADERS:
        (folder / "src" / header).rename(folder / "include" / header)
    if target.isa != "wasm32":  # which no C project links, but a page loads
        shutil.copyfile(TEMPLATES / "CMakeLists.txt", folder / "CMakeLists.txt")
        write_package(folder, target)
    return manifest


def _write_kernels(variants: Sequence[Variant], prefix: str, folder: Path) -> list[int]:
    """Write all kernels into `folder`/kernels.o; returns how many bytes the object of each variant has."""
    with tempfile.TemporaryDirectory(prefix="edgedm-") as scratch:
        objects = [Path(scratch) / f"variant{number}.o" for number in range(len(variants))]
        for variant, path in zip(variants, objects, strict=True):
            if len(variants) > 1:
                progress.stage(f"kernels for {variant.target.name}")
            write_object(_functions(variant), variant.prefix, variant.target.tvm(), path)
        if len(variants) == 1:
            shutil.copyfile(objects[0], folder / "kernels.o")
        else:
            # TVM brings helpers that all kernels of a program share, and the linker takes the first. All machines must
            # run it, but of two variants each may have what the other lacks.
            shared = Path(scratch) / "shared.o"
            write_helpers(f"{prefix}shared_", common_ground([each.target for each in variants]).tvm(), shared)
            toolchain.merge_objects([shared.name, *(each.name for each in objects)], "kernels.o", Path(scratch))
            shutil.copyfile(Path(scratch) / "kernels.o", folder / "kernels.o")
        return [each.stat().st_size for each in objects]


def _functions(variant: Variant) -> dict[str, Any]:
    functions: dict[str, Any] = {}
    for graph in variant.graphs.values():
        for name, function in graph.plan.functions.items():
            if name in functions and not tvm_ffi.structural_equal(functions[name], function):
                raise AssertionError(f"two kernels are called {name}")
            functions[name] = function
    return functions


def _link(folder: Path, prefix: str, target: Target) -> None:
    """Compile the C files in a folder of their own, by relative names, so that no path reaches the objects."""
    base = target.base
    with tempfile.TemporaryDirectory(prefix="edgedm-") as scratch:
        work = Path(scratch)
        shutil.copytree(folder / "src", work, dirs_exist_ok=True)
        shutil.copyfile(folder / "kernels.o", work / "kernels.o")
        (work / "exports.map").write_text(f"{{ global: {prefix}*; local: *; }};\n")
        wasm = target.isa == "wasm32"
        everything = (*LIBRARY_SOURCES, *PROGRAM_SOURCES, *PROBE_SOURCES, *(PAGE_SOURCES if wasm else ()))
        sources = {base.library_triple: LIBRARY_SOURCES} if base.system == "linux" else {}
        sources |= {base.program_triple: everything}
        definitions, flags = ["-DEDM_PROBE", *base.c_flags], base.link_flags or toolchain.LINK
        made = {
            triple: dict(zip(names, toolchain.compile_objects(names, work, triple, definitions), strict=True))
            for triple, names in sources.items()
        }

        def link(triple: str, names: tuple[str, ...], output: str, *more: str) -> None:
            objects = [made[triple][name] for name in names]
            toolchain.zig_cc(["-target", triple, *flags, *more, *objects, "kernels.o", "-o", "linked"], work)
            shutil.copyfile(work / "linked", folder / (IN_WEBASSEMBLY[output] if wasm else output))

        link(base.program_triple, (*LIBRARY_SOURCES, *PROGRAM_SOURCES), SAMPLER)
        link(base.program_triple, (*LIBRARY_SOURCES, *PROBE_SOURCES), PROBE)
        if wasm:
            link(base.library_triple, (*LIBRARY_SOURCES, *PAGE_SOURCES), LIBRARY, "-mexec-model=reactor")
        elif base.system == "linux":
            shared = ("-shared", "-Wl,--version-script=exports.map", "-Wl,-soname,libedgedm.so")
            link(base.library_triple, LIBRARY_SOURCES, LIBRARY, *shared)
        else:
            from edgedm.android.build import write_library  # it stands on this package

            write_library(folder, work, prefix, target)


def _golden(folder: Path, lowered: Lowered, manifest: Manifest) -> GoldenFiles:
    for name, model in lowered.models.items():
        (folder / f"{name}.onnx").write_bytes(serialize_graph(model))
    if not lowered.golden.is_file():
        return GoldenFiles()
    shutil.copyfile(lowered.golden, folder / "golden.safetensors")
    states = [port for port in lowered.graphs["step"].inputs if port.role == "state"]
    interface = lowered.interface
    others = (interface.condition_shape, decoded_shape(lowered.graphs))
    steps = flat_golden(lowered.golden, interface.image_shape, states, labels(interface.config), *others)
    (folder / "golden.bin").write_bytes(steps)
    layers = {}
    if layers_path(lowered.golden).is_file():
        models = {str(name): model for name, model in lowered.models.items()}
        for variant in manifest.variants():
            data = layer_golden(models, lowered.golden, manifest.of(variant).nodes)
            (folder / (f"layers.{variant}.bin" if manifest.others else "layers.bin")).write_bytes(data)
            layers[variant] = _entry(data)
    return GoldenFiles(_entry(steps), layers)


def _entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _manifest(lowered: Lowered, kernel_bytes: Sequence[int]) -> Manifest:
    graphs, interface = lowered.graphs, lowered.interface
    best, *others = map(_described, lowered.variants, kernel_bytes)
    names = [each.target.name for each in lowered.variants]
    return Manifest(
        edgedm=edgedm.__version__,
        prefix=lowered.prefix,
        target=best.target,
        toolchain=_tools(lowered.variants[0].target),
        files={},
        config=interface.config,
        image_shape=interface.image_shape,
        decoded_shape=decoded_shape(graphs),
        condition_shape=interface.condition_shape,
        classes=interface.classes,
        null_class=interface.null_class,
        trained_timesteps=interface.trained,
        schedule=lowered.schedule,
        arena_bytes=best.arena_bytes,
        weights_bytes=len(lowered.weights.data),
        row_bytes=lay_out(graphs["step"], graphs["prepare"]).row_bytes,
        inputs={name: graph.inputs for name, graph in graphs.items()},
        outputs={name: graph.outputs for name, graph in graphs.items()},
        nodes=best.nodes,
        slow=best.slow,
        kernel_bytes=best.kernel_bytes,
        sections=[
            Section(
                offset=part.offset,
                bytes=part.bytes,
                sha256=part.sha256,
                variants=[names[reader] for reader in part.readers],
            )
            for part in lowered.weights.sections
        ],
        others=others,
    )


def _tools(target: Target) -> dict[str, str]:
    """What compiles for the target, with versions."""
    tools = {"tvm": version("apache-tvm"), "zig": toolchain.zig_version(), "onnx": version("onnx")}
    if target.base.system == "android":
        from edgedm.android.linker import toolchain_name  # as in _link

        tools["android"] = toolchain_name()
    return tools


def _described(variant: Variant, kernel_bytes: int) -> VariantEntry:
    graphs, target = variant.graphs.values(), variant.target
    return VariantEntry(
        target=TargetEntry(name=target.name, features=sorted(target.features), triple=target.triple),
        arena_bytes=variant.arena_bytes,
        kernel_bytes=kernel_bytes,
        nodes=[node for graph in graphs for node in manifest_nodes(graph, variant.prefix)],
        slow=[
            *(each for graph in graphs for each in graph.slow),
            *(each for graph in graphs for each in _plain_loops(graph)),
        ],
    )


def decoded_shape(graphs: Mapping[GraphName, Graph]) -> tuple[int, int, int] | None:
    """Channels, height and width of what the decoder makes; None without one."""
    if "decoder" not in graphs:
        return None
    _, *shape = graphs["decoder"].outputs[0].shape
    return shape[0], shape[1], shape[2]


def _plain_loops(graph: Graph) -> list[str]:
    """The calls of kernels that are right on every target and fast on none."""
    origins = [call.origin for call in graph.plan.calls if call.origin is not None]
    slow = [origin for origin in origins if origin.kernel.family.startswith("generic")]
    return [f"node {each.node!r} ({each.op}, module {each.module}): a kernel of plain loops" for each in slow]
