"""Time several engines side by side: short turns, so that a change of the machine's mood meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

TURN_SECONDS = 0.05
"""Length of one engine's turn: far above the clock's resolution, far below a change of frequency or load."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over all turns: the median, and the first and last decile as the spread."""

    median: float
    low: float
    high: float
    turns: int


def interleave(engines: Mapping[str, Callable[[], object]], seconds: float = 2.0) -> dict[str, Timing]:
    """Call every engine in turns until each has run for about `seconds`; two calls first warm it up.

    A turn is as many calls as fill `TURN_SECONDS`, at least one; its mean is one sample.
    """
    calls = {name: _calls_per_turn(engine) for name, engine in engines.items()}
    samples: dict[str, list[float]] = {name: [] for name in engines}
    turns = max(3, round(seconds / TURN_SECONDS))
    budget = seconds * len(engines)
    started = time.perf_counter()
    for turn in range(turns):
        for name, engine in engines.items():
            samples[name].append(_turn(engine, calls[name]))
        if turn >= 2 and time.perf_counter() - started > budget:
            break
    return {name: summary(times) for name, times in samples.items()}


def summary(samples: list[float]) -> Timing:
    """Median and deciles of samples in seconds."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def _calls_per_turn(engine: Callable[[], object]) -> int:
    engine()
    return max(1, int(TURN_SECONDS / max(_turn(engine, 1), 1e-9)))


def _turn(engine: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        engine()
    return (time.perf_counter() - started) / calls
