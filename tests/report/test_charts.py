"""Plots as SVG: well formed, within their frame, readable without colour or a mouse."""

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from edgedm.report.charts import HEIGHT, WIDTH, Heat, Line, Plot, draw, draw_heat, legend, nice_ticks, shade

SVG = "{http://www.w3.org/2000/svg}"
finite = st.floats(-1e12, 1e12, allow_nan=False)


@given(finite, finite)
def test_ticks_are_round_and_hold_what_is_plotted(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high), 1e-300)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 12 and all(math.isfinite(each) for each in ticks)


@given(st.lists(st.tuples(st.integers(0, 999), st.floats(0, 300)), min_size=1, max_size=40, unique_by=lambda p: p[0]))
def test_a_plot_is_well_formed_and_stays_in_its_frame(points) -> None:
    plot = Plot("a < b & c", "note", "dB", [Line("edgedm", "ours", points), Line("none", "theirs", [])])
    root = ElementTree.fromstring(draw(plot))
    dots = root.findall(f"{SVG}circle")
    assert len(dots) == len(points)
    for dot in dots:
        assert 0 <= float(dot.get("cx", "nan")) <= WIDTH and 0 <= float(dot.get("cy", "nan")) <= HEIGHT
        assert dot.find(f"{SVG}title") is not None
    assert root.get("role") == "img" and "a < b & c" in str(root.get("aria-label"))


def test_a_plot_with_a_floor_begins_there_even_if_nothing_rises() -> None:
    svg = draw(Plot("flips", "note", "per million", [Line("flips", "worst", [(0, 0.0), (5, 0.0)])], floor=0.0))
    texts = [each.text for each in ElementTree.fromstring(svg).findall(f"{SVG}text")]
    assert "0" in texts and not [each for each in texts if each and each.startswith("-")]


def test_a_heat_map_has_a_cell_a_value_and_leaves_out_what_was_not_looked_at() -> None:
    heat = Heat("t", "n", "dB", {"a<b": {0: 50.0, 2: 100.0}, "c": {1: 150.0}}, (60, 90, 120))
    root = ElementTree.fromstring(draw_heat(heat))
    assert [each.get("class") for each in root.findall(f"{SVG}rect")] == ["h0", "h2", "h3"]
    assert [words for _, words in legend(heat)] == ["below 60 dB", "60 to 90 dB", "90 to 120 dB", "from 120 dB"]


def test_where_more_is_worse_the_first_class_is_the_most() -> None:
    heat = Heat("t", "n", "flips", {"a": {0: 5.0}}, (10, 100), more_is_worse=True)
    assert (shade(heat, 500), shade(heat, 50), shade(heat, 5)) == (0, 1, 2)
    assert legend(heat)[0] == ("h0", "from 100 flips")
