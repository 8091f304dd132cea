"""Time several engines side by side: short turns, so that a change of the machine's mood meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgedm.errors import ToolchainError

TURN_SECONDS = 0.05
"""Length of one engine's turn: far above the clock's resolution, far below a change of frequency or load."""


MIN_TURNS = 3
"""Every engine gets this many turns, however slow it is."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over all turns: the median, and the first and last decile as the spread."""

    median: float
    low: float
    high: float
    turns: int


@dataclass(frozen=True)
class Sample:
    """One call's share of a turn: seconds on the clock, and of processor time: of all threads, of the busiest."""

    seconds: float
    processor: float = 0.0
    busiest: float = 0.0


Turn = Callable[[int], Sample]
"""Runs a number of calls, returns their mean."""

Failed = Callable[[str, ToolchainError], None]
"""Is told which engine failed and why; raises where the run shall not go on without it."""


def insist(_engine: str, error: ToolchainError) -> None:
    """Go on without no engine: a `Failed`."""
    raise error


def interleave(engines: Mapping[str, Callable[[], object]], seconds: float = 2.0) -> dict[str, Timing]:
    """Call every engine in turns until each has run for about `seconds`; two calls first warm it up.

    A turn is as many calls as fill `TURN_SECONDS`, at least one; its mean is one sample.
    """
    turns = {name: _in_process(engine) for name, engine in engines.items()}
    samples = interleave_turns(turns, seconds)
    return {name: summary([each.seconds for each in found]) for name, found in samples.items()}


def interleave_turns(
    turns: Mapping[str, Turn], seconds: float = 2.0, failed: Failed = insist
) -> dict[str, list[Sample]]:
    """Let engines run in turns until each has had about `seconds` and `MIN_TURNS`; their samples, in order.

    An engine whose turn raises ToolchainError has no samples, where `failed` lets the others go on.
    """
    calls: dict[str, int] = {}
    samples: dict[str, list[Sample]] = {name: [] for name in turns}
    spent = dict.fromkeys(turns, 0.0)

    def warm_up(name: str) -> None:
        calls[name] = _calls_per_turn(turns[name])

    def run(name: str) -> None:
        sample = turns[name](calls[name])
        samples[name].append(sample)
        spent[name] += sample.seconds * calls[name]

    def in_turn(names: Sequence[str], act: Callable[[str], None]) -> list[str]:
        """Those of `names` that did not fail."""
        for name in names:
            try:
                act(name)
            except ToolchainError as error:
                failed(name, error)
                del samples[name]
        return [name for name in names if name in samples]

    running = in_turn(list(turns), warm_up)
    while running:
        running = [name for name in in_turn(running, run) if spent[name] < seconds or len(samples[name]) < MIN_TURNS]
    return samples


def each_call(engines: Mapping[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, Timing]:
    """Like `interleave`, but every call is a sample: for calls of 10 microseconds to 10 milliseconds.

    Other programs that take the processor away then spoil single samples, and the first decile none of them.
    """
    turns = {name: _in_process(engine) for name, engine in engines.items()}
    calls = {name: _calls_per_turn(turn) for name, turn in turns.items()}
    samples: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(max(3, round(seconds / TURN_SECONDS))):
        for name, engine in engines.items():
            samples[name] += [_turn(engine, 1) for _ in range(calls[name])]
    return {name: summary(times) for name, times in samples.items()}


def summary(samples: list[float]) -> Timing:
    """Median and deciles of samples in seconds."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def _in_process(engine: Callable[[], object]) -> Turn:
    return lambda calls: Sample(_turn(engine, calls))


def _calls_per_turn(turn: Turn) -> int:
    turn(1)
    return max(1, int(TURN_SECONDS / max(turn(1).seconds, 1e-9)))


def _turn(engine: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        engine()
    return (time.perf_counter() - started) / calls
