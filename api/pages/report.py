"""The way back from a report: to the job, the model and the data set that it is about.

A report is a file that stands for itself, and is kept and sent as it is. Only to a browser that
looks at it here are the links shown with it.
"""

from collections.abc import Sequence

from markupsafe import Markup

BEGIN = "<main>"  # of a report's page, once

BROWSERS = "application/xhtml+xml"  # what they all accept, and programs that save reports do not


def with_ways(report: str, ways: Sequence[tuple[str, str]]) -> str:
    """The page of a report with these links, each with its words, before all else."""
    links = Markup(", ").join(Markup('<a href="{}"><bdi>{}</bdi></a>').format(*way) for way in ways)
    nav = Markup('<nav aria-label="Pages"><p class="eyebrow"><span>{}</span></p></nav>')
    return report.replace(BEGIN, f"{BEGIN}\n{nav.format(links)}", 1)
