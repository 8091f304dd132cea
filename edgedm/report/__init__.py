"""Reports: what `verify` found as one HTML page that needs nothing but itself, and as Markdown.

html_page(outcome, evidence)      the page
markdown_page(outcome, evidence)  the same as text, images and plots inside it as data
"""

from typing import TYPE_CHECKING

from edgedm.outcome import Outcome

if TYPE_CHECKING:
    from edgedm.verify.evidence import Evidence

__all__ = ["html_page", "markdown_page"]


def html_page(outcome: Outcome, evidence: "Evidence") -> str:
    """The outcome of `verify` as HTML, UTF-8; every text is escaped."""
    from edgedm.report.html import render

    return render(outcome, evidence)


def markdown_page(outcome: Outcome, evidence: "Evidence") -> str:
    """The outcome of `verify` as Markdown, UTF-8."""
    from edgedm.report.markdown import render

    return render(outcome, evidence)
