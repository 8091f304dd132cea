"""A whole denoising step of a bundle against peers that run its full-precision twin, in turns in one run.

Everything of a step is inside the timer: packing, norms, attention, shortcuts, carried state. The peers run the same
architecture in float32, which is what a user has today: no runtime runs the low-bit model.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgedm import progress
from edgedm.bench.timing import Timing, interleave
from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome
from edgedm.runtime.local import LocalRunner

PEERS = {"onnxruntime": "onnxruntime_fp32", "torch": "torch_eager"}
_STEPS = 50  # any schedule does: a step's work does not depend on the timestep

Engine = Callable[[], object]


def bench_model(
    bundle: str | os.PathLike[str],
    against: Sequence[str] = ("onnxruntime",),
    threads: Sequence[int] = (1, 2),
    seconds: float = 3.0,
) -> Outcome:
    """Time one step (batch 1) of `bundle` and of the peers, interleaved, once for each number of threads.

    Figures: `step_ms.<engine>.t<n>` (median) and `ratio.<engine>.t<n>` (the engine's time over edgedm's).
    `details["timings"]` holds median and first and last decile in seconds. Raises `UnsupportedError` for an unknown
    peer or more threads than cores, `InvalidModelError` for an altered bundle.
    """
    unknown = [peer for peer in against if peer not in PEERS]
    if unknown:
        raise UnsupportedError(f"bench: unknown peer {', '.join(unknown)}; known are {', '.join(PEERS)}")
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, float] = {}
    timings: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        with LocalRunner(os.fspath(bundle)) as runner:
            config = runner.manifest.config
        progress.stage("building the full-precision twin for the peers")
        twin = _Twin(config, Path(scratch)) if against else None
        for count in threads:
            if not 1 <= count <= cores:
                raise UnsupportedError(f"bench: {count} threads on {cores} cores")
            progress.stage(f"timing with {count} thread{'s' if count > 1 else ''}")
            timing = _measure(bundle, twin, against, count, seconds)
            ours = timing["edgedm"].median
            timings[f"t{count}"] = {name: vars(each) for name, each in timing.items()}
            figures |= {f"step_ms.{name}.t{count}": each.median * 1e3 for name, each in timing.items()}
            del timing["edgedm"]
            figures |= {f"ratio.{name}.t{count}": each.median / ours for name, each in timing.items()}
    return Outcome(True, figures, {"bundle": os.fspath(bundle), "timings": timings})


def _measure(
    bundle: str | os.PathLike[str], twin: "_Twin | None", against: Sequence[str], threads: int, seconds: float
) -> dict[str, Timing]:
    with LocalRunner(os.fspath(bundle), threads, lanes=1) as runner:
        runner.prepare(_STEPS, label=None)
        x = np.random.default_rng(0).standard_normal(runner.manifest.image_shape, dtype=np.float32)
        engines: dict[str, Engine] = {"edgedm": lambda: runner.run_step(_STEPS // 2, x)}
        for peer in against:
            assert twin is not None
            engines[PEERS[peer]] = getattr(twin, peer)(x, threads)
        return interleave(engines, seconds)


class _Twin:
    """The bundle's architecture in full precision with seeded weights; speed does not depend on their values."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        from edgedm.export import export
        from edgedm.models import CheckpointConfig, build
        from edgedm.models.roles import FLOAT

        full = {**config, "method": "fp32", "roles": FLOAT, "taps": [], "timestep_bins": []}
        self._checkpoint = build(CheckpointConfig.model_validate(full), seed=0)
        self._graph = folder / "fp32.onnx"
        export(self._checkpoint, self._graph)

    def onnxruntime(self, x: np.ndarray[Any, Any], threads: int) -> Engine:
        """ONNX Runtime with all its optimisations, float32."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin into our turn
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])
        feeds = {"x": x[None], "timestep": np.array([500]), "class_labels": np.array([0])}
        return lambda: session.run(None, feeds)

    def torch(self, x: np.ndarray[Any, Any], threads: int) -> Engine:
        """PyTorch, eager, float32."""
        import torch

        inputs = (torch.from_numpy(x[None]), torch.tensor([500]), torch.tensor([0]))

        def step() -> object:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return self._checkpoint.module(*inputs)

        return step
