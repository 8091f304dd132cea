"""The report as one HTML page: style, images and plots inside it, no script, nothing fetched."""

from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edgedm.outcome import Outcome
from edgedm.report.charts import draw, draw_heat, legend
from edgedm.report.content import content_of, figure, table_of
from edgedm.verify.evidence import Evidence


def render(outcome: Outcome, evidence: Evidence) -> str:
    """The page; every text is escaped."""
    folder = resources.files("edgedm.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {
        "draw": lambda plot: Markup(draw(plot)),  # the plots escape their own texts
        "draw_heat": lambda heat: Markup(draw_heat(heat)),
        "legend": legend,
        "table_of": table_of,
        "figure": figure,
        "style": Markup(folder.joinpath("style.css").read_text("utf-8")),
    }
    source = folder.joinpath("report.html.jinja").read_text("utf-8")
    return environment.from_string(source).render(it=content_of(outcome, evidence))
