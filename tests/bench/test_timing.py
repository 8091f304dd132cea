"""Interleaved timing measures what it says."""

import time

import pytest

from edgedm.bench.timing import Sample, interleave, interleave_turns, summary
from edgedm.errors import ToolchainError


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


@pytest.mark.parametrize("last", [0, 1, 3])
def test_the_others_go_on_where_one_fails_and_that_is_allowed(last: int) -> None:
    left, why = [last], {}

    def dying(_calls: int) -> Sample:
        if not left[0]:
            raise ToolchainError("out of memory")
        left[0] -= 1
        return Sample(0.05)

    turns = {"a": lambda _calls: Sample(0.05), "b": dying}
    samples = interleave_turns(turns, 0.3, lambda name, error: why.update({name: str(error)}))
    assert set(samples) == {"a"} and len(samples["a"]) == 6
    assert why == {"b": "out of memory"}
    with pytest.raises(ToolchainError, match="out of memory"):
        interleave_turns(turns, 0.3)
