"""The demo's report: one HTML file that needs nothing but itself."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from edgedm.images import encode_png, to_pixels


@dataclass(frozen=True)
class Tile:
    """One number that a reader should leave with."""

    value: str
    label: str
    good: bool | None = None  # None: neither


@dataclass(frozen=True)
class ImageRow:
    """Images of one engine, left to right; `note` says what drew them."""

    name: str
    note: str
    pngs: tuple[str, ...]  # data URIs


@dataclass(frozen=True)
class TableRow:
    """One line of a table; `bar` in 0..1 draws a bar behind the cells, `ok` a mark before the first."""

    cells: tuple[str, ...]
    bar: float | None = None
    ok: bool | None = None
    emphasis: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a title and a sentence on how to read it; all columns but `texts` are numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str = ""
    texts: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Section:
    """One model: its images and its tables."""

    title: str
    lead: str
    columns: tuple[str, ...] = ()  # what stands above each image
    images: tuple[ImageRow, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    lead: str
    tiles: tuple[Tile, ...] = ()
    sections: tuple[Section, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)  # machine, versions, time


def image_row(name: str, note: str, images: NDArray[np.float32]) -> ImageRow:
    """A row of images f32[N, C, H, W] in -1..1."""
    return ImageRow(name, note, tuple(_data_uri(pixels) for pixels in to_pixels(images)))


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8[C, H, W] as a PNG inside the page."""
    png = encode_png(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def render_page(page: Page) -> str:
    """The page as HTML; every text is escaped."""
    source = resources.files("edgedm.demo").joinpath("page.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(page=page)


def bytes_text(count: float) -> str:
    """A size in the unit that leaves one to four digits."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}" if count < 10 * size else f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def bars(values: Sequence[float]) -> list[float]:
    """Lengths 0..1 of bars for `values`, the largest one 1."""
    top = max(values, default=0.0)
    return [value / top if top > 0 else 0.0 for value in values]
