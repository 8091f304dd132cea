"""What both forms of a report say: everything, escaped, from nothing but itself."""

import math
import re
from html.parser import HTMLParser

import numpy as np

from edgedm.report import html_page, markdown_page
from edgedm.report.content import LEAST_DB, content_of, figure
from edgedm.report.markdown import sparkline
from edgedm.verify.evidence import FRAMES, SHOWN, Evidence
from edgedm.verify.report import UNBOUNDED, Level, Row, outcome_of

VOID = {"meta", "link", "img", "br"}


class Checker(HTMLParser):
    """Collects elements and addresses, and sees that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("href", "src", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_fetches_nothing_runs_nothing_and_escapes_every_text(run) -> None:
    page = html_page(*run)
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert "script" not in checker.tags and "iframe" not in checker.tags
    assert all(each.startswith(("data:", "#")) for each in checker.addresses)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert "@import" not in page and "url(" not in page
    assert "&lt;script&gt;" in page
    assert len(set(checker.ids)) == len(checker.ids)
    assert {each[1:] for each in checker.addresses if each.startswith("#")} <= set(checker.ids)


def test_the_page_says_what_is_off_what_was_expected_and_what_introduced_it(run) -> None:
    page = html_page(*run)
    assert "parity does not hold" in page
    assert "First off: QuantConv down_blocks.0.resnets.7.conv1" in page and "pass MergeScales" in page
    assert "speed.max_step_ms" in page and "not measured" in page
    assert "(not required)" in page and "∞" in page
    assert "16.7 times" in page and "10.1 times" in page and "0123456789abcdef" in page
    assert page.count("<svg") == 5  # steps, layers, flips; two heat maps
    assert page.count('class="pixels"') == 3 * 4 + 2 * FRAMES


def test_markdown_holds_the_same_and_its_tables_are_whole(run) -> None:
    text = markdown_page(*run)
    assert "✗ parity does not hold" in text and "pass MergeScales" in text and "| speed.max\\_step\\_ms |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1  # a bar in a cell is escaped
    assert "<script>" not in text
    assert text.count("![") == 3 * 0 + 2 * 4 + 2 * FRAMES + 5


def test_a_run_without_images_or_moments_is_a_page_too() -> None:
    outcome = outcome_of([Level("op", "equal", (Row("a", True),))], "b", "c")
    outcome.details["schedule"] = {"steps": 5, "sampler": "ddim"}
    page, text = html_page(outcome, Evidence()), markdown_page(outcome, Evidence())
    assert "parity holds" in page and "Images from" not in page and "<svg" not in page
    assert "✓ parity holds" in text and "Over the timesteps" not in text


def test_evidence_is_bounded_and_shows_images_that_are_not_finite() -> None:
    evidence = Evidence()
    for label in range(SHOWN + 5):
        evidence.add(label, [np.zeros((4, 8, 8))] * 60, [np.full((4, 8, 8), np.nan)] * 60)
    assert len(evidence.ours) == SHOWN and len(evidence.strip) == FRAMES
    outcome = outcome_of([Level("op", "equal", (Row("a", True),))], "b", "c")
    outcome.details["schedule"] = {"steps": 5, "sampler": "ddim"}
    assert "not finite" in html_page(outcome, evidence)


def test_a_layer_without_signal_is_drawn_as_the_worst() -> None:
    ratios = {"broken": -math.inf, "right": 120.0}
    rows = tuple(Row(each, True, {}, moments=({"step": 0.0, "snr_db": db},)) for each, db in ratios.items())
    outcome = outcome_of([Level("layer", "", rows)], "b", "c")
    outcome.details["schedule"] = {"steps": 1, "sampler": "ddim"}
    content = content_of(outcome, Evidence())
    assert content.heats[0].rows == {"broken": {0: LEAST_DB}, "right": {0: 120.0}}
    assert [line.points for line in content.plots[0].lines] == [[(0.0, (LEAST_DB + 120) / 2)], [(0.0, LEAST_DB)]]
    assert figure(-UNBOUNDED) == "-∞" and figure(UNBOUNDED) == "∞"


def test_a_text_that_looks_like_an_image_is_escaped() -> None:
    outcome = outcome_of([Level("op", "equal", (Row("a", True),))], "b", "c")
    outcome.details["schedule"] = {"steps": 5, "sampler": "ddim"}
    text = markdown_page(outcome, Evidence(facts={"compiled with": "![x](https://example.org/x.png) | <b>"}))
    assert "![" not in text and "!\\[x\\](https://example.org/x.png) \\| \\<b\\>" in text


def test_a_sparkline_goes_from_the_least_to_the_most() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3]) == "▁▁"
