"""The demo's page stands alone, escapes what it shows and says what it was given."""

import base64
import re
from html.parser import HTMLParser

import numpy as np

from edgedm.demo.page import Page, Section, Table, TableRow, Tile, bars, bytes_text, image_row, render_page

VOID = {"meta", "img"}


class _Balance(HTMLParser):
    """Collects unbalanced tags and everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page() -> Page:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 16, 16)).astype(np.float32)
    rows = (TableRow(("op <all>", "12"), bar=0.5, ok=True), TableRow(("layer", "3"), ok=False, emphasis=True))
    section = Section(
        "W1A1",
        "One bit.",
        ("0", "1", "2"),
        (image_row("torch", "50 steps", images),),
        (Table("parity", ("a", "b"), rows),),
    )
    return Page("digits & bits", "It works.", (Tile("12.3x", "smaller", True),), (section,), {"machine": "2 cores"})


def test_the_page_is_balanced_html_that_fetches_nothing() -> None:
    parser = _Balance()
    parser.feed(render_page(page()))
    assert parser.open == []
    assert len(parser.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "http" not in render_page(page())


def test_texts_are_escaped() -> None:
    html = render_page(page())
    assert "op &lt;all&gt;" in html and "digits &amp; bits" in html


def test_the_page_adapts_to_dark_mode_and_phones() -> None:
    html = render_page(page())
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_images_are_png_files() -> None:
    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', render_page(page()))
    assert all(base64.b64decode(text).startswith(b"\x89PNG\r\n") for text in encoded)


def test_sizes_and_bars() -> None:
    assert [bytes_text(size) for size in (12, 1234, 56_000, 3_210_000)] == ["12 B", "1.23 kB", "56.0 kB", "3.21 MB"]
    assert bars([1.0, 4.0]) == [0.25, 1.0]
    assert bars([0.0]) == [0.0]
