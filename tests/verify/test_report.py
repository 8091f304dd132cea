"""What verify returns and prints."""

import json
from dataclasses import replace

from edgedm.verify.report import UNBOUNDED, Level, Row, number, outcome_of, render, verdict

GOOD = Level("op", "integers equal", (Row("BinaryConv", True, {"use": 0.25}),), {"kernels": 1.0})
BAD = Level("layer", "within rounding", (Row("a", True), Row("mid.conv1[0, 3]", False, note="expected -1, got [1]")))


def test_figures_are_flat_and_json() -> None:
    outcome = outcome_of([GOOD], "b", "c")
    assert outcome.ok
    assert outcome.figures["op.kernels"] == 1.0 and outcome.figures["op.failed"] == 0.0
    assert json.loads(json.dumps(outcome.details))["levels"][0]["rows"][0]["figures"] == {"use": 0.25}
    assert "first_failure" not in outcome.details


def test_the_first_row_that_is_off_is_named() -> None:
    outcome = outcome_of([GOOD, BAD], "b", "c")
    assert not outcome.ok
    failure = outcome.details["first_failure"]
    assert failure["level"] == "layer" and failure["where"] == "mid.conv1[0, 3]"
    assert failure["what"] == "expected -1, got [1]"


def test_what_introduced_it_is_asked_for_the_first_row_that_is_off() -> None:
    outcome = outcome_of([GOOD, BAD], "b", "c", blame=lambda level, row: f"{level.name} of {row.name}")
    assert outcome.details["first_failure"]["introduced_by"] == "layer of mid.conv1[0, 3]"


def test_a_search_that_breaks_leaves_the_verdict_and_says_why() -> None:
    def blame(_level: Level, _row: Row) -> str:
        raise ValueError("no such node")

    outcome = outcome_of([GOOD, BAD], "b", "c", blame=blame)
    assert not outcome.ok and outcome.details["first_failure"]["where"] == "mid.conv1[0, 3]"
    assert outcome.details["first_failure"]["introduced_by"] == "could not be found: ValueError: no such node"


def test_a_level_that_is_not_required_is_shown_and_does_not_decide() -> None:
    outcome = outcome_of([GOOD, replace(BAD, required=False)], "b", "c")
    assert outcome.ok and "first_failure" not in outcome.details
    assert outcome.figures["layer.ok"] == 0.0


def test_a_gate_that_is_off_fails_a_run_whose_levels_hold() -> None:
    gate = Row("layer.max_flip_share", False, {"allowed": 0.0, "actual": 1e-5}, "expected at most 0, got 1e-05")
    outcome = outcome_of([GOOD], "b", "c", [gate])
    assert not outcome.ok
    assert outcome.details["first_failure"]["level"] == "gates"
    assert outcome.details["first_failure"]["where"] == "layer.max_flip_share"


def test_a_level_that_compared_nothing_does_not_hold() -> None:
    assert not Level("op", "", ()).ok
    assert not outcome_of([], "b", "c").ok


def test_the_table_shows_levels_failures_and_verdict(capsys) -> None:
    render(outcome_of([GOOD, BAD], "b", "c"))
    shown = capsys.readouterr().out
    assert "mid.conv1[0, 3]" in shown and "expected -1, got [1]" in shown
    assert "parity does not hold" in shown
    render(outcome_of([GOOD], "b", "c"))
    assert "parity holds" in capsys.readouterr().out


def test_the_verdict_names_what_is_off_and_does_not_decide(capsys) -> None:
    shown = replace(BAD, required=False)
    assert (
        verdict(outcome_of([GOOD, shown], "b", "c")) == "parity holds where it is required; off and not required: layer"
    )
    assert verdict(outcome_of([shown], "b", "c")) == "nothing was required; off: layer"
    assert (
        verdict(outcome_of([replace(GOOD, required=False)], "b", "c")) == "nothing was required, and everything holds"
    )
    held = outcome_of([shown], "b", "c", [Row("size.min_ratio", True)])
    assert verdict(held) == "thresholds hold; no level was required; off: layer"
    render(outcome_of([shown], "b", "c"))
    assert "parity holds" not in capsys.readouterr().out


def test_numbers_are_short() -> None:
    assert number(12345.0) == "12,345"
    assert number(0.000123456) == "0.000123"


def test_json_has_no_infinities() -> None:
    level = Level("op", "", (Row("a", False, {"use": float("inf")}, "off"),), {"worst": float("nan")})
    outcome = outcome_of([level], "b", "c")
    json.loads(json.dumps([outcome.figures, outcome.details], allow_nan=False))
    assert outcome.figures["op.worst"] == UNBOUNDED


def test_minus_infinity_stays_the_worst_of_ratios() -> None:
    row = Row("a", False, {"snr_db": float("-inf")}, "off", ({"step": 0.0, "snr_db": float("-inf")},))
    (shown,) = outcome_of([Level("op", "", (row,))], "b", "c").details["levels"][0]["rows"]
    assert shown["figures"]["snr_db"] == shown["moments"][0]["snr_db"] == -UNBOUNDED
