"""Interleaved timing measures what it says."""

import time

from edgedm.bench.timing import interleave, summary


def test_engines_take_turns() -> None:
    order: list[str] = []
    engines = {name: lambda name=name: (order.append(name), time.sleep(0.06)) for name in "ab"}
    interleave(engines, 0.2)
    assert order[:4] == ["a", "a", "b", "b"]  # warm-up
    assert order[4:10] == ["a", "b"] * 3


def test_a_call_is_timed_by_its_mean_over_a_turn() -> None:
    timing = interleave({"sleep": lambda: time.sleep(0.01)}, 0.2)["sleep"]
    assert 0.01 <= timing.low <= timing.median <= timing.high
    assert timing.median < 0.02
    assert timing.turns >= 3


def test_summary_gives_median_and_deciles() -> None:
    timing = summary([float(value) for value in range(1, 12)])
    assert (timing.median, timing.low, timing.high, timing.turns) == (6.0, 2.0, 10.0, 11)
