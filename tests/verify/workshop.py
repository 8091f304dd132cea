"""Build broken bundles quickly: one kernel, one C file or some weights of a right bundle are replaced, nothing else.

The C files of the right bundle are compiled once. A broken kernel is compiled alone and linked before the right ones,
so that its symbol is the one that the linker takes.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import numpy as np
import onnx
import pytest
import tvm_ffi

from edgedm.bundle import Manifest, Node, load
from edgedm.bundle.store import LIBRARY, WEIGHTS
from edgedm.diffusion import normals
from edgedm.export.graph_io import load_graph
from edgedm.lower import importer, toolchain
from edgedm.lower.codegen import HEADERS, LIBRARY_SOURCES
from edgedm.lower.objects import write_object
from edgedm.runtime import LocalRunner
from edgedm.targets import resolve
from edgedm.verify import attempt, op_level
from edgedm.verify.graphs import Graph
from edgedm.verify.judge import Verdict, judge
from edgedm.verify.probe import open_probe


@dataclass(frozen=True)
class Selected:
    """How a kernel of the right bundle was chosen."""

    arguments: tuple[Any, ...]
    kernel: Any


class Workshop:
    """A right bundle, and what is needed to break a copy of it."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        self.manifest: Manifest = load(bundle).manifest
        self.target = resolve(self.manifest.target.name)
        self.triple = self.target.base.library_triple
        folder.mkdir(parents=True)
        shutil.copytree(bundle / "src", folder, dirs_exist_ok=True)
        for header in HEADERS:
            shutil.copyfile(bundle / "include" / header, folder / header)
        shutil.copyfile(bundle / "kernels.o", folder / "kernels.o")
        (folder / "exports.map").write_text(f"{{ global: {self.manifest.prefix}*; local: *; }};\n")
        made = toolchain.compile_objects(LIBRARY_SOURCES, folder, self.triple, ["-DEDM_PROBE"])
        self.objects = dict(zip(LIBRARY_SOURCES, made, strict=True))
        self.selected = self._selected()

    def _selected(self) -> list[Selected]:
        found: list[Selected] = []
        select = importer.select

        def recording(*arguments: Any) -> Any:
            kernel = select(*arguments)
            found.append(Selected(arguments, kernel))
            return kernel

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importer, "select", recording)
            importer.import_graph(onnx.load(self.bundle / "golden" / "step.onnx"), self.target)
        return found

    def broken_source(self, target: Path, source: str, old: str, new: str) -> Path:
        """A bundle with `old` in one C file replaced by `new`."""
        text = (self.folder / source).read_text()
        assert text.count(old) == 1, f"{source}: {text.count(old)} times {old!r}"
        broken = f"broken-{source}"
        (self.folder / broken).write_text(text.replace(old, new))
        (made,) = toolchain.compile_objects([broken], self.folder, self.triple, ["-DEDM_PROBE"])
        return self._link(target, {**self.objects, source: made}, ["kernels.o"])

    def broken_kernel(
        self, target: Path, op: str, patch: Callable[[pytest.MonkeyPatch], None], module: str = ""
    ) -> tuple[Path, Node]:
        """A bundle in which one kernel of `op` is broken: of `module`, or with the most work that changes."""
        nodes = {node.kernel.removeprefix(self.manifest.prefix): node for node in reversed(self.manifest.nodes)}
        own = [each for each in self.selected if each.arguments[0] == op]
        names = {id(each): str(each.kernel.function.attrs["global_symbol"]) for each in own}
        own = [each for each in own if names[id(each)] in nodes]
        own = [each for each in own if module in ("", nodes[names[id(each)]].module)]
        for each in sorted(own, key=lambda each: -nodes[names[id(each)]].macs):
            with pytest.MonkeyPatch.context() as monkeypatch:
                patch(monkeypatch)
                broken = importer.select(*each.arguments)
            if not tvm_ffi.structural_equal(broken.function, each.kernel.function):
                name = names[id(each)]
                write_object({name: broken.function}, self.manifest.prefix, self.target.tvm(), self.folder / "broken.o")
                merged = ["-z", "muldefs", "-o", "merged.o", "broken.o", "kernels.o"]  # the first of a name is taken
                toolchain.zig(["ld.lld", "-r", *merged], self.folder)
                return self._link(target, self.objects, ["merged.o"]), nodes[name]
        raise AssertionError(f"no kernel of {op} changed")

    def broken_weights(self, target: Path, edit: Callable[[np.ndarray, Manifest], None]) -> Path:
        """A bundle with other weights; the digest inside the compiled code follows."""
        shutil.copytree(self.bundle, target)
        weights = np.frombuffer((target / WEIGHTS).read_bytes(), np.uint8).copy()
        before = weights.tobytes()
        edit(weights, self.manifest)
        faults.replace_weights(target, before, weights.tobytes())
        return target

    def _link(self, target: Path, objects: dict[str, str], kernels: list[str]) -> Path:
        shutil.copytree(self.bundle, target)
        flags = ["-shared", "-Wl,--version-script=exports.map", "-Wl,-soname,libedgedm.so"]
        base = self.target.base
        linked = ["-target", self.triple, *(base.link_flags or toolchain.LINK), *flags]
        toolchain.zig_cc([*linked, *objects.values(), *kernels, "-o", "linked"], self.folder)
        shutil.copyfile(self.folder / "linked", target / LIBRARY)
        faults.seal(target)
        return target


def changes(right: Path, broken: Path, node: Node) -> bool:
    """Whether one kernel gives other bits on seeded inputs; signs are decided where x + threshold is exactly 0."""
    with open_probe(load(right)) as probe:
        inputs = _inputs(node)
        if node.op.startswith("PackBits"):
            inputs[0][:] = -probe.constant(node.inputs[1])
        expected = probe.run_node(node, inputs)
    with open_probe(load(broken)) as probe:
        got = probe.run_node(node, inputs)
    return not all(same(*each) for each in zip(expected, got, strict=True))


def results_of(bundle: Path, node: Node) -> list[bytes]:
    """What one kernel gives on the inputs that try its op, whatever anybody thinks of it."""
    found: list[bytes] = []

    def keeping(op: str, part: Any, feeds: Any, got: dict[str, np.ndarray], ceiling: Any) -> Verdict:
        found.extend(array.tobytes() for array in got.values())
        return judge(op, part, feeds, got, ceiling)

    graph = Graph(load_graph(bundle / "golden" / f"{node.graph}.onnx"))
    with open_probe(load(bundle)) as probe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "judge", keeping)
        op_level._try(probe, graph, node)
    return found


def _inputs(node: Node) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = []
    for operand in node.inputs:
        if operand.source == "weights":
            continue
        if operand.dtype == "float32":
            inputs.append(rng.standard_normal(operand.shape).astype(np.float32))
        elif operand.dtype == "uint64":
            inputs.append(rng.integers(0, 2**63, operand.shape, dtype=np.uint64))
        elif operand.dtype == "int64":
            inputs.append(np.full(operand.shape, 700, np.int64))
        else:
            inputs.append(rng.integers(12, 16, operand.shape).astype(operand.dtype))
    return inputs


def behaviour_of(bundle: Path) -> dict[str, np.ndarray]:
    """What the runtime makes of everything that an app can ask for: samplers, guidance, starts, state, noise."""
    found = {}
    shape = load(bundle).manifest.image_shape
    start = normals(5, 0, 0, int(np.prod((2, *shape)))).reshape(2, *shape)
    with LocalRunner(load(bundle), 1, 1) as runner:
        found["noise"] = runner.normals(2**40 + 1, 3, 2, 64)
        for sampler in ("ddim", "ddpm", "dpm-solver++"):
            runner.prepare(6, sampler, label=1)
            found[sampler] = runner.sample(2, 2**40 + 3)
        runner.prepare(4, eta=1.0, label=1)
        found["eta"] = runner.sample(2, 1)
        found["stepwise"] = np.stack([x for x, _ in runner.previews(1, 1)])
        runner.prepare(4, label=1, guidance=3.0)
        found["guided"] = runner.sample(2, 1)
        runner.prepare(4, label=1)
        found["started"] = runner.sample(2, 1, start=start, strength=0.5)
    with LocalRunner(load(bundle), 2, 2) as runner:
        runner.prepare(4, eta=1.0, label=1)
        found["two lanes"] = runner.sample(4, 1, progress=lambda _done, _total: not time.sleep(0.002))
    return found


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays have the same bits."""
    return left.tobytes() == right.tobytes()


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`edgedm ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgedm.cli", *arguments], capture_output=True, text=True, check=False, timeout=280
    )
