"""What a report says besides parity: hashes, versions, the machine, sizes, and the time of a step."""

import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import edgedm
from edgedm.bench.sizes import float32_bytes, sizes
from edgedm.bundle import Bundle
from edgedm.bundle.store import LIBRARY, MANIFEST, WEIGHTS, place_of
from edgedm.models import Checkpoint
from edgedm.models.checkpoint import ZOO
from edgedm.runtime.choice import is_local
from edgedm.verify.probe import Probe
from edgedm.verify.torch_reference import Moment, TorchReference
from edgedm.verify.whole_graph import WholeGraph

WARM, TIMED = 2, 7
"""Steps before the clock runs, and steps whose median is taken."""

BUDGET_SECONDS = 20.0
"""Of a big model fewer steps are timed than `TIMED`, at least one."""


class Steps(Protocol):
    """What runs single steps by labels."""

    def prepare(self, steps: int = ..., sampler: str = ...) -> object:
        """Choose a schedule."""

    def run_step(self, step: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output at one step."""


def bundle_sizes(bundle: Bundle) -> dict[str, float]:
    """See `edgedm.bench.sizes`."""
    return sizes(bundle)


def graph_sizes(graph: WholeGraph) -> dict[str, float]:
    """Bytes of the graph's files, of the architecture in float32, and how many times more that is."""
    names = (graph.path, graph.path.with_suffix(".prepare.onnx"), graph.path.with_suffix(".decoder.onnx"))
    own = sum(each.stat().st_size for each in names if each.is_file())
    found = {"bytes.graph": float(own)}
    full = float32_bytes(graph.info.config, graph.path)
    if full is not None:
        found |= {"bytes.float32": float(full), "size.ratio": full / own}
    return found


def step_speed(probe: Probe, runner: Steps, reference: TorchReference) -> dict[str, float]:
    """Milliseconds of a step on one thread: `edgedm` and `torch`; empty for a bundle of another machine."""
    if not is_local(probe.bundle):
        return {}
    rng = np.random.default_rng(0)
    x = rng.standard_normal(reference.shape, dtype=np.float32)
    schedule = probe.manifest.schedule
    runner.prepare(schedule.steps, schedule.sampler)
    step = schedule.steps // 2
    timestep = int(reference.schedule.timesteps(schedule.steps, schedule.sampler)[step])
    labels = np.array([reference.null_class], np.int64)
    state = tuple(np.zeros((1, *shape[1:]), np.float32) for shape in _states(reference))
    moment = Moment(step, timestep, labels, x[None], state, bool(state))
    return {
        "edgedm": _median_ms(lambda: runner.run_step(step, x)),
        "torch": _median_ms(lambda: reference.predict(32, moment)),
    }


def _states(reference: TorchReference) -> list[tuple[int, ...]]:
    module = reference.modules[32]
    return [tuple(shape) for shape in module.state_shapes(*reference.shape[1:])] if module.taps else []


def _median_ms(run: Callable[[], object]) -> float:
    seconds: list[float] = []
    for turn in range(WARM + TIMED):
        started = time.perf_counter()
        run()
        spent = time.perf_counter() - started
        if turn >= WARM or spent * (WARM + TIMED) > BUDGET_SECONDS:
            seconds.append(spent)
        if sum(seconds) > BUDGET_SECONDS:
            break
    return 1e3 * statistics.median(seconds)


def bundle_facts(bundle: Bundle, against: Checkpoint | str) -> dict[str, str]:
    """Name -> value: what was compared, by hash, and with what."""
    manifest = bundle.manifest
    manifest_hash = hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    return {
        "bundle's manifest": f"sha256 {manifest_hash}",
        "weights": f"sha256 {manifest.files[WEIGHTS].sha256}",
        "library": f"sha256 {manifest.files[place_of(LIBRARY, manifest.files)].sha256}",
        "target": f"{manifest.target.name} ({manifest.target.triple})",
        "compiled with": ", ".join(f"{name} {text}" for name, text in sorted(manifest.toolchain.items())),
        **_common(against, str(manifest.config["method"])),
    }


def graph_facts(path: Path, against: Checkpoint | str) -> dict[str, str]:
    """As `bundle_facts`, of a graph file."""
    method = str(WholeGraph(path).info.config["method"])
    return {"graph": f"sha256 {_sha256(path)}", **_common(against, method)}


def _common(against: Checkpoint | str, method: str) -> dict[str, str]:
    packages = ("torch", "onnxruntime", "onnx", "numpy")
    return {
        **_checkpoint(against),
        "method": method,
        "edgedm": edgedm.__version__,
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "Python": platform.python_version(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}",
    }


def _checkpoint(against: Checkpoint | str) -> dict[str, str]:
    """The hashes of a checkpoint that is a folder or of the zoo."""
    if not isinstance(against, str):
        return {}
    folder = ZOO / against.removeprefix("zoo:") if against.startswith("zoo:") else Path(against)
    files = [folder / name for name in ("config.json", "model.safetensors")]
    return {f"checkpoint's {each.name}": f"sha256 {_sha256(each)}" for each in files if each.is_file()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
