"""JUnit XML of a run, as a CI reads it."""

from dataclasses import replace
from xml.etree import ElementTree

from edgedm.verify.junit import junit
from edgedm.verify.report import Level, Row, outcome_of

GOOD = Level("op", "", (Row("BinaryConv", True), Row("PackBits", True)), seconds=1.5)
BAD = Level(
    "layer", "", (Row("mid <conv> & \x00", False, note='expected "1", got \ud800'), Row("b", True)), seconds=0.5
)
GATE = Row("step.min_snr_db", False, {"allowed": 30.0, "actual": 12.0}, "expected at least 30, got 12")


def test_levels_are_suites_and_rows_cases() -> None:
    root = ElementTree.fromstring(junit(outcome_of([GOOD, BAD], "b", "c", [GATE], lambda *_: "pass MergeScales")))
    assert [suite.get("name") for suite in root] == ["op", "layer", "gates"]
    assert (root.get("tests"), root.get("failures"), root.get("time")) == ("5", "2", "2.000")
    failure = root.find("testsuite[@name='layer']/testcase/failure")
    assert failure is not None and failure.get("message") == r'expected "1", got \ud800'
    assert "introduced by pass MergeScales" in root.findtext("testsuite/system-out", "")


def test_a_run_without_gates_or_failures_has_none() -> None:
    root = ElementTree.fromstring(junit(outcome_of([GOOD], "b", "c")))
    assert (root.get("tests"), root.get("failures")) == ("2", "0")
    assert root.find(".//failure") is None


def test_a_level_that_compared_nothing_fails() -> None:
    root = ElementTree.fromstring(junit(outcome_of([Level("op", "", ())], "b", "c")))
    assert (root.get("tests"), root.get("failures")) == ("1", "1")
    failure = root.find("testsuite/testcase/failure")
    assert failure is not None and "compared nothing" in failure.get("message", "")


def test_what_is_not_required_is_skipped_with_its_message() -> None:
    root = ElementTree.fromstring(junit(outcome_of([replace(BAD, required=False)], "b", "c")))
    assert (root.get("failures"), root.get("skipped")) == ("0", "1")
    assert root.find(".//skipped") is not None
