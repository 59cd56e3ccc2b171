"""Figures as SVG that is as wide as its page: axes, lines, dots, bands and notes.

Across, everything stands at a share of the plot's width; down, at pixels. So a figure grows and
shrinks with its page, while letters, dots and strokes keep their size, and it needs no script. A
colour is the name of a CSS variable of `report.css`, so that figures follow the page from light to
dark and to paper. What a mark stands for is its `<title>`, which browsers show under the pointer.
Names come from strangers: every text is escaped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

UNITS = 10_000  # of a drawn line, across and down its area: a tenth of a pixel at 1000 pixels
DASHES = {"solid": "", "dash": "8 6", "dot": "2 4"}


@dataclass(frozen=True)
class Axis:
    """What one direction of an area measures, from its low end (left, bottom) to its high end.

    ticks: values with their labels.
    log: equal ratios are equally far apart.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]] = ()
    title: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """How far along the axis a value stands, 0 at the low end and 1 at the high end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Area:
    """Part of a figure with axes of its own. top, height: pixels."""

    x: Axis
    y: Axis
    height: float
    top: float = 0

    def across(self, x: float) -> str:
        return f"{100 * self.x.share(x):.2f}%"

    def down(self, y: float) -> str:
        return f"{self.top + self.height * (1 - self.y.share(y)):.1f}"


@dataclass(frozen=True)
class Margin:
    """Pixels around the areas of a figure, for labels and values."""

    top: int = 12
    right: int = 12
    bottom: int = 44
    left: int = 58


def figure(
    marks: Iterable[Markup], *, height: float, margin: Margin, names: Sequence[str] = ()
) -> Markup:
    """The marks in a plot of this height, later ones above earlier ones.

    names: of the plot's lines, from the top; they stand left of it, each at the height of its line.
    """
    plot = Markup(
        '<div class="plot" style="padding:{top}px {right}px {bottom}px {left}px">'
        '<svg width="100%" height="{height}">{marks}</svg></div>'
    ).format(
        top=margin.top,
        right=margin.right,
        bottom=margin.bottom,
        left=margin.left,
        height=f"{height:g}",
        marks=Markup("").join(marks),
    )
    if not names:
        return plot
    lines = Markup("").join(
        Markup('<span style="height:{}px" title="{}"><bdi>{}</bdi></span>').format(
            f"{height / len(names):g}", name, name
        )
        for name in names
    )
    return Markup('<div class="names" style="padding-top:{}px">{}</div>{}').format(
        margin.top, lines, plot
    )


def round_ticks(low: float, high: float, *, most: int) -> list[tuple[float, str]]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten between two values."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(value, f"{value:.10g}".replace("-", "\N{MINUS SIGN}")) for value in values]


# --- marks ----------------------------------------------------------------------------------------


def axes(area: Area) -> Markup:
    """Grid lines, labels and titles. Ticks between the first, middle and last leave where room is
    short."""
    marks: list[Markup] = []
    below = area.top + area.height
    for i, (value, label) in enumerate(area.x.ticks):
        sparse = "" if i in (0, len(area.x.ticks) // 2, len(area.x.ticks) - 1) else " between"
        at = area.across(value)
        marks.append(_stroke("grid", at, f"{area.top:g}", at, f"{below:g}", color="--line"))
        marks.append(
            Markup(
                '<text class="x tick{}" x="{}" y="{:.1f}" text-anchor="middle">{}</text>'
            ).format(sparse, at, below + 18, label)
        )
    for value, label in area.y.ticks:
        at = area.down(value)
        marks.append(_stroke("grid", "0", at, "100%", at, color="--line"))
        marks.append(
            Markup(
                '<text class="y tick" x="-8" y="{}" dy=".35em" text-anchor="end">{}</text>'
            ).format(at, label)
        )
    if area.x.title:
        marks.append(
            Markup('<text class="title" x="50%" y="{:.1f}" text-anchor="middle">{}</text>').format(
                below + 38, area.x.title
            )
        )
    if area.y.title:
        middle = area.top + area.height / 2
        marks.append(
            Markup(
                '<text class="title" transform="translate(-44 {:.1f}) rotate(-90)"'
                ' text-anchor="middle">{}</text>'
            ).format(middle, area.y.title)
        )
    return Markup("").join(marks)


def line(
    area: Area,
    points: Sequence[tuple[float, float]],
    *,
    kind: str,
    color: str,
    width: float,
    title: str = "",
    dash: str = "solid",
    steps: str | None = None,
    fill: str | None = None,
) -> Markup:
    """A line through these points of the area.

    kind: the class of the mark, by which tests and style sheets find it.
    steps: "back" where each step goes up or down at the point before it, "ahead" where it does at
        its own.
    fill: the colour inside of the closed line.
    """
    x = [round(UNITS * area.x.share(x)) for x, _ in points]
    y = [round(UNITS * (1 - area.y.share(y))) for _, y in points]
    path = [f"M{x[0]} {y[0]}"]
    for i in range(1, len(points)):
        match steps:
            case "back":
                path.append(f"V{y[i]}H{x[i]}")
            case "ahead":
                path.append(f"H{x[i]}V{y[i]}")
            case _:
                path.append(f"L{x[i]} {y[i]}")
    return Markup(
        '<svg y="{top:g}" width="100%" height="{height:g}" viewBox="0 0 {units} {units}"'
        ' preserveAspectRatio="none" overflow="visible"><path class="{kind}" d="{path}"'
        ' fill="{fill}" stroke="{stroke}" stroke-width="{width:g}"{dashes}'
        ' vector-effect="non-scaling-stroke">{title}</path></svg>'
    ).format(
        top=area.top,
        height=area.height,
        units=UNITS,
        kind=kind,
        path="".join(path),
        fill="none" if fill is None else f"var({fill})",
        stroke=f"var({color})" if width else "none",
        width=width,
        dashes=_dashes(dash),
        title=_title(title),
    )


def across(
    area: Area,
    x0: float,
    x1: float,
    y: float,
    *,
    kind: str,
    color: str,
    width: float,
) -> Markup:
    """A level stroke from one value to another."""
    at = area.down(y)
    return _stroke(kind, area.across(x0), at, area.across(x1), at, color=color, width=width)


def level(area: Area, y: float, *, dash: str, color: str = "--muted") -> Markup:
    """A line across the whole area at this value."""
    at = area.down(y)
    return _stroke("level", "0", at, "100%", at, color=color, width=1.5, dash=dash)


def upright(
    area: Area, x: float, *, dash: str = "solid", color: str = "--muted", above: float = 0
) -> Markup:
    """A line from top to bottom at this value, that begins so many pixels above the area."""
    top, at = area.top - above, area.across(x)
    below = f"{area.top + area.height:g}"
    return _stroke("upright", at, f"{top:g}", at, below, color=color, width=1.5, dash=dash)


def bar(area: Area, x: float, y: float, *, title: str, color: str = "--muted") -> Markup:
    """A short upright stroke."""
    at, middle = area.across(x), float(area.down(y))
    top, bottom = f"{middle - 7:.1f}", f"{middle + 7:.1f}"
    return _stroke("bar", at, top, at, bottom, color=color, width=2, title=title)


def whisker(area: Area, low: float, high: float, y: float, *, color: str) -> Markup:
    """A thin level line from low to high, with a short stroke at either end."""
    middle = float(area.down(y))
    top, bottom = f"{middle - 5:.1f}", f"{middle + 5:.1f}"
    ends = [
        _stroke("end", area.across(x), top, area.across(x), bottom, color=color, width=1.5)
        for x in (low, high)
    ]
    span = across(area, low, high, y, kind="whisker", color=color, width=1.5)
    return Markup("").join([span, *ends])


def dot(
    area: Area, x: float, y: float, *, title: str, color: str, size: float, shape: str = "circle"
) -> Markup:
    """A mark of this size in pixels: a circle, a diamond, or the outline of a diamond."""
    if shape == "circle":
        return Markup(
            '<circle class="dot" cx="{}" cy="{}" r="{:g}" fill="var({})">{}</circle>'
        ).format(area.across(x), area.down(y), size / 2, color, _title(title))
    radius = f"{0.7 * size:.1f}"
    return Markup(
        '<svg x="{}" y="{}" overflow="visible"><path class="diamond" d="{}"'
        ' fill="{}" stroke="var({})" stroke-width="1.75" pointer-events="all">{}</path></svg>'
    ).format(
        area.across(x),
        area.down(y),
        f"M0-{radius}L{radius} 0 0 {radius}-{radius} 0Z",
        "none" if shape == "outline" else f"var({color})",
        color,
        _title(title),
    )


def band(area: Area, x0: float, x1: float, *, color: str) -> Markup:
    """A filled strip of the area's height between two values."""
    left, right = sorted((area.x.share(x0), area.x.share(x1)))
    return Markup(
        '<rect class="band" x="{:.2f}%" y="{:g}" width="{:.2f}%" height="{:g}" fill="var({})"/>'
    ).format(100 * left, area.top, 100 * (right - left), area.height, color)


def note(
    text: str, *, x: str, y: float, shift: float = 0, anchor: str = "start", bold: bool = False
) -> Markup:
    """Text at a share of the width and pixels down, moved right by `shift` pixels."""
    return Markup(
        '<text class="{}" x="{}" y="{:.1f}" dx="{:g}" dy=".35em" text-anchor="{}">{}</text>'
    ).format("value" if bold else "note", x, y, shift, anchor, text)


def readings(area: Area, stops: Sequence[tuple[float, str]]) -> Markup:
    """What a reader sees who points at the area: at the nearest stop an upright line, and a text.

    stops: (x, text), in the order of the axis.
    """
    at = [area.x.share(x) for x, _ in stops]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(at)), 1.0]
    below = area.top + area.height
    return Markup("").join(
        Markup(
            '<g class="reading"><rect x="{left:.2f}%" y="{top:g}" width="{width:.2f}%"'
            ' height="{height:g}"/><line x1="{at:.2f}%" x2="{at:.2f}%" y1="{top:g}"'
            ' y2="{below:g}"/>{title}</g>'
        ).format(
            left=100 * left,
            width=100 * (right - left),
            at=100 * share,
            top=area.top,
            height=area.height,
            below=below,
            title=_title(text),
        )
        for share, left, right, (_, text) in zip(at, edges, edges[1:], stops, strict=False)
    )


def _stroke(
    kind: str,
    x1: str,
    y1: str,
    x2: str,
    y2: str,
    *,
    color: str,
    width: float = 1,
    dash: str = "solid",
    title: str = "",
) -> Markup:
    return Markup(
        '<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}" stroke="var({})" stroke-width="{:g}"{}>'
        "{}</line>"
    ).format(kind, x1, y1, x2, y2, color, width, _dashes(dash), _title(title))


def _dashes(dash: str) -> Markup:
    return Markup(' stroke-dasharray="{}"').format(DASHES[dash]) if DASHES[dash] else Markup("")


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")
