"""A whole denoising step of a bundle against peers that run its full-precision twin, in turns in one run.

Everything of a step is inside the timer: packing, norms, attention, shortcuts, carried state. Every engine, ours too,
runs in a process of its own that is stopped outside its turn.
"""

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgedm import progress
from edgedm.bench.footprint import footprint
from edgedm.bench.peers import ALIASES, OURS, PEERS, Peer, environment, resolve_peers, unlimited
from edgedm.bench.timing import Sample, Timing, interleave_turns, summary
from edgedm.bench.twin import Twin
from edgedm.bench.worker import Worker, check_threads
from edgedm.bundle import Bundle, load
from edgedm.errors import EdgedmError, ToolchainError, UnsupportedError
from edgedm.outcome import Outcome
from edgedm.runtime.choice import choose
from edgedm.runtime.opening import require_native

SETUP_SECONDS = 120.0
"""An engine of `all` that takes longer to be set up is left out; one that is asked for by name gets its time."""


@dataclass
class _Run:
    """What a run has found so far; it fails without the engines that it is `bound_to`.

    `setup_seconds` is how long any engine may take to be set up; None: those it isn't bound to `SETUP_SECONDS`.
    """

    bound_to: frozenset[str]
    setup_seconds: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: list[dict[str, str]] = field(default_factory=list)

    def patience(self, engine: str) -> float | None:
        """Seconds that an engine may take to be set up; None: as long as it takes."""
        own = engine == OURS or (engine in self.bound_to and self.setup_seconds is None)
        return None if own else self.setup_seconds or SETUP_SECONDS

    def failed(self, engine: str, error: EdgedmError) -> None:
        """Go on without an engine, or raise `error`."""
        if engine in self.bound_to:
            raise error
        self.absent.append({"engine": engine, "why": str(error), "install": PEERS[engine].install})


def bench_model(
    bundle: str | os.PathLike[str],
    against: Sequence[str] = ("onnxruntime",),
    threads: Sequence[int] = (1, 2),
    seconds: float = 3.0,
    setup_seconds: float | None = None,
    variant: str | None = None,
) -> Outcome:
    """Time one step (batch 1) of `bundle` and of the peers, interleaved, once for each number of threads.

    Figures: `step_ms.<engine>.t<n>` (median; `.decile1` and `.decile9` the spread), `processor_ms.<engine>.t<n>`
    (processor time of all threads, which other programs on the machine change little), `ratio.<engine>.t<n>` (the
    engine's time over edgedm's), at one thread `processor_ratio.<engine>.t1` likewise, and those of `footprint`.
    `details["absent"]` names engines of `all` that are not installed, failed, or took longer than `setup_seconds` (by
    default `SETUP_SECONDS`, where they are not asked for by name) to be set up; `details["not_limited"]` those that use
    instructions which the bundle's target lacks. `variant` names the kernels to run of a bundle that has several; None:
    the best that this machine can. Raises UnsupportedError for an unknown peer or more threads than
    cores, ToolchainError for a peer asked for by name that is missing or fails, InvalidModelError for an altered
    bundle.
    """
    peers, absent = resolve_peers(against)
    cores = len(os.sched_getaffinity(0))
    for count in threads:
        if not 1 <= count <= cores:
            raise UnsupportedError(f"bench: {count} threads on {cores} cores")
    loaded = choose(load(bundle), variant)
    require_native(loaded)
    run = _Run(frozenset({OURS, *(ALIASES.get(name, name) for name in against)}), setup_seconds, absent=absent)
    with tempfile.TemporaryDirectory(prefix="edgedm-bench-") as scratch:
        twin = Twin(loaded.manifest.config, Path(scratch)) if peers else None
        for count in threads:
            _measure(run, loaded, twin, peers, count, seconds)
            failed = {row["engine"] for row in run.absent}
            peers = [peer for peer in peers if peer.name not in failed]
        run.figures |= footprint(loaded)
    details: dict[str, Any] = {"bundle": os.fspath(bundle), "target": loaded.manifest.target.name}
    details |= {"timings": run.timings, "absent": run.absent}
    details["not_limited"] = unlimited(peers, loaded.manifest.target.features)
    return Outcome(True, run.figures, details)


def _measure(run: _Run, bundle: Bundle, twin: Twin | None, peers: Sequence[Peer], threads: int, seconds: float) -> None:
    plural = "s" if threads > 1 else ""
    with ExitStack() as stack:
        workers = {OURS: stack.enter_context(_worker(OURS, bundle, bundle.path, threads))}
        for peer in peers:
            assert twin is not None
            try:
                for file in peer.files:
                    twin.need(file)
                progress.stage(f"setting up {peer.name} with {threads} thread{plural}")
                workers[peer.name] = stack.enter_context(
                    _worker(peer.name, bundle, twin.folder, threads, run.patience(peer.name))
                )
            except EdgedmError as error:
                run.failed(peer.name, error)
        progress.stage(f"timing {len(workers)} engines with {threads} thread{plural}, in turns")
        samples = interleave_turns({name: worker.turn for name, worker in workers.items()}, seconds, run.failed)
    _report(run, samples, threads)


def _worker(engine: str, bundle: Bundle, source: Path, threads: int, patience: float | None = None) -> Worker:
    target = bundle.manifest.target
    job = {"engine": engine, "source": str(source.absolute()), "threads": threads, "target": target.name}
    variables = environment(engine, threads, target.name, target.features)
    if engine != OURS:
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(source)
    return Worker(job, variables, patience)


def _report(run: _Run, samples: dict[str, list[Sample]], threads: int) -> None:
    timing: dict[str, Timing] = {}
    processor: dict[str, float] = {}
    rows = {}
    for name, found in samples.items():
        try:
            shared = check_threads(name, threads, found)
        except ToolchainError as error:
            run.failed(name, error)
            continue
        timing[name] = summary([each.seconds for each in found])
        processor[name] = summary([each.processor for each in found]).median
        rows[name] = {**asdict(timing[name]), "processor": processor[name], "threads": shared}
    run.timings[f"t{threads}"] = rows
    run.figures |= step_figures(timing, processor, threads)


def step_figures(timing: dict[str, Timing], processor: dict[str, float], threads: int) -> dict[str, float]:
    """Name the figures of one number of threads; `processor` are seconds of processor time a step."""
    figures: dict[str, float] = {}
    for name, each in timing.items():
        figures[f"step_ms.{name}.t{threads}"] = each.median * 1e3
        figures[f"step_ms.{name}.t{threads}.decile1"] = each.low * 1e3
        figures[f"step_ms.{name}.t{threads}.decile9"] = each.high * 1e3
        figures[f"processor_ms.{name}.t{threads}"] = processor[name] * 1e3
    for name, each in timing.items():
        if name != OURS:
            figures[f"ratio.{name}.t{threads}"] = each.median / timing[OURS].median
    if threads == 1:  # with more, processor time counts waiting for each other
        peers = [name for name in processor if name != OURS]
        figures |= {f"processor_ratio.{name}.t1": processor[name] / processor[OURS] for name in peers}
    return figures
