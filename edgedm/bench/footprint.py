"""Memory and size of a bundle: the arena against what liveness needs, the program's peak, bytes against float32."""

import math
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from edgedm.bench.sizes import sizes
from edgedm.bundle import Bundle, Manifest, Node, Operand
from edgedm.bundle.limits import strips_bytes
from edgedm.errors import ToolchainError

ALLOWED_ARENA = 1.15
"""The arena should be at most this many times its lower bound."""

_STEPS = 4
_IMAGES = (1, 16, 1024)
_ENOUGH = 5  # readings
_SAMPLING_SECONDS = 0.001


def footprint(bundle: Bundle) -> dict[str, float]:
    """Figures on memory and size.

    `bytes.arena` is the planned memory for what lies between kernels, `bytes.live` its lower bound (see
    `live_bytes`), `arena.over_live` their quotient; both are left out for a bundle that doesn't record its scratch.
    `bytes.peak_rss` is the most that the bundle's own program had resident while it drew one image on one thread (see
    `peak_rss`). To these come those of `sizes`.
    """
    manifest = bundle.manifest
    live = live_bytes(manifest)
    figures = {"bytes.arena": float(manifest.arena_bytes)}
    if live is not None:
        figures["bytes.live"] = float(live)
    if live:
        figures["arena.over_live"] = manifest.arena_bytes / live
    figures["bytes.peak_rss"] = float(peak_rss(bundle))
    return {**figures, **sizes(bundle)}


def live_bytes(manifest: Manifest) -> int | None:
    """The most bytes of the arena that are live at one time, in any graph: no plan can do with less.

    A buffer lives from the call that writes it to the last call that reads it, scratch during its call, and all that a
    chain touches as long as the chain, whose calls take turns. None for
    a bundle of an edgedm that didn't record scratch.
    """
    if any(node.scratch is None for node in manifest.nodes):
        return None
    graphs = {node.graph for node in manifest.nodes}
    return max((_live([node for node in manifest.nodes if node.graph == graph]) for graph in graphs), default=0)


def _live(nodes: list[Node]) -> int:
    intervals: list[tuple[int, int, int]] = []  # first call, last call, bytes
    current: dict[int, int] = {}  # offset in the arena -> number of the interval that holds it
    ends = {node.strips.first: index for index, node in enumerate(nodes) if node.strips}
    for index, node in enumerate(nodes):
        begin, end = (node.strips.first, ends[node.strips.first]) if node.strips else (index, index)
        for operand in _in_arena(node.inputs):
            first, _, size = intervals[current[operand.offset]]
            intervals[current[operand.offset]] = (first, end, size)
        for operand in _in_arena([*node.outputs, *(node.scratch or ())]):
            current[operand.offset] = len(intervals)
            intervals.append((begin, end, _bytes(operand, node)))
    return max(
        (sum(size for first, last, size in intervals if first <= index <= last) for index in range(len(nodes))),
        default=0,
    )


def _in_arena(operands: list[Operand]) -> list[Operand]:
    return [each for each in operands if each.source in ("arena", "strips")]


def _bytes(operand: Operand, node: Node) -> int:
    size = math.prod(operand.shape) * np.dtype(operand.dtype).itemsize
    return strips_bytes(size, node.strips) if operand.source == "strips" and node.strips else size


def peak_rss(bundle: Bundle) -> int:
    """The largest resident size in bytes of the bundle's program while it draws an image on one thread.

    It is read while the program runs a few steps, whatever its default schedule: memory is taken before the first is
    over, the others give time to read how much. (A child's resource usage would count its parent's pages from before
    exec.) Each further step of a schedule adds the manifest's `row_bytes`. Of a model so small that this is too fast,
    more images are drawn. Raises ToolchainError where the program doesn't run here.
    """
    for images in _IMAGES:
        readings = _watch(bundle, images)
        if len(readings) >= _ENOUGH:
            break
    return max(readings, default=0)


def _watch(bundle: Bundle, images: int) -> list[int]:
    """Readings of the program's high-water mark from its start to its end."""
    readings = []
    with tempfile.TemporaryDirectory(prefix="edgedm-bench-") as scratch, open(Path(scratch) / "log", "w+") as log:
        wanted = ["-n", str(images), "--steps", str(_STEPS), "-o", f"{scratch}/image.npy"]
        if bundle.manifest.condition_shape is not None:
            np.save(f"{scratch}/condition.npy", np.zeros(bundle.manifest.condition_shape, np.float32))
            wanted += ["--condition", f"{scratch}/condition.npy"]
        if bundle.variant is not None:
            wanted += ["--variant", bundle.variant]
        try:
            process = subprocess.Popen([str(bundle.sampler.absolute()), *wanted], stdout=log, stderr=log)
        except OSError as error:
            raise ToolchainError(
                f"{bundle.sampler}: cannot run here: {error.strerror}; compile for this machine"
            ) from error
        with process:
            try:
                while process.poll() is None:
                    mark = high_water(Path(f"/proc/{process.pid}/status").read_text())
                    readings += [mark] if mark else []
                    time.sleep(_SAMPLING_SECONDS)
            finally:
                process.kill()  # it is over unless this is interrupted
                process.wait()
        if process.returncode:
            log.seek(0)
            raise ToolchainError(f"{bundle.sampler}: exit code {process.returncode}: {log.read().strip()[-300:]}")
    return readings


def high_water(status: str) -> int:
    """Bytes of `VmHWM` in the text of /proc/PID/status; 0 where a process has no memory any more."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else 0
