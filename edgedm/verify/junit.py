"""`--junit`: the rows of a run as JUnit XML, which every CI shows: a suite a level, a case a row; gates are a suite.

XML 1.0 cannot hold control characters, not even escaped: names and notes of an outcome have none.
"""

import math
from typing import Any
from xml.etree import ElementTree

from edgedm.errors import readable
from edgedm.outcome import Outcome


def junit(outcome: Outcome) -> bytes:
    """The outcome of `verify` as a JUnit file, UTF-8."""
    details = outcome.details
    root = ElementTree.Element("testsuites", name=readable(f"edgedm verify {details['artefact']}"))
    for level in details["levels"]:
        seconds = outcome.figures.get(f"{level['name']}.seconds", 0.0)
        _suite(root, level["name"], level["rows"], seconds, level["required"])
    if details["gates"]:
        _suite(root, "gates", details["gates"], 0.0, True)
    for key in ("tests", "failures", "skipped"):
        root.set(key, str(sum(int(each.get(key, "0")) for each in root)))
    root.set("time", f"{math.fsum(float(each.get('time', '0')) for each in root):.3f}")
    blame = details.get("first_failure")
    if blame:
        ElementTree.SubElement(root[-1], "system-out").text = (
            f"first off at level {blame['level']}: {blame['where']}: {blame['what']}; "
            f"introduced by {blame['introduced_by']}"
        )
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _suite(root: ElementTree.Element, name: str, rows: list[dict[str, Any]], seconds: float, required: bool) -> None:
    """What a level that does not decide finds is skipped with its message: it shows and does not fail.

    A level that compared nothing does not hold, so it has a case that says so.
    """
    rows = rows or [{"name": "(nothing was compared)", "ok": False, "note": "the level compared nothing"}]
    failed = sum(not row["ok"] for row in rows)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=name,
        tests=str(len(rows)),
        failures=str(failed if required else 0),
        skipped=str(0 if required else failed),
        time=f"{seconds:.3f}",
    )
    for row in rows:
        each = seconds / len(rows)
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"edgedm.verify.{name}", name=row["name"], time=f"{each:.3f}"
        )
        if not row["ok"]:
            note = row["note"] or "off"
            ElementTree.SubElement(case, "failure" if required else "skipped", message=note).text = note
