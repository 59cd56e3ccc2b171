"""Plots of pages: models by clean and robust AP, and what trainings reached epoch by epoch.

The marks are those of a report (`adap.core.rendering.svg`); on a page, whose policy allows no style
in it, the room around them is the style sheet's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from adap.core.rendering import svg
from adap.core.report import APFigure

SMALLEST_SPAN = 0.1  # of an axis, so that equal models are not torn apart
AP_COLORS = {"clean_ap": "--clean", "robust_ap": "--worst", "surrogate_ap": "--attack-1"}


@dataclass(frozen=True)
class Point:
    """A model, or a trial, by two figures; `number` stands beside it."""

    name: str
    number: str
    clean: APFigure
    robust: APFigure
    on_front: bool
    faded: bool = False


@dataclass(frozen=True)
class Line:
    """A figure at some epochs."""

    name: str
    color: str
    dash: str
    points: Sequence[tuple[float, float]]


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each point whether no other is as good at both figures and better at one."""
    return [
        not any(x >= clean and y >= robust and (x, y) != (clean, robust) for x, y in points)
        for clean, robust in points
    ]


def scatter(points: Sequence[Point], *, robust: str) -> Markup:
    """Clean AP across, AP under attack upwards, with intervals; a line through the Pareto front.

    robust: what the other figure is called.
    """
    across = _axis([one.clean for one in points], "clean AP")
    upwards = _axis([one.robust for one in points], robust)
    area = svg.Area(across, upwards, height=340)
    marks = [svg.axes(area)]
    best = sorted({(one.clean.ap, one.robust.ap) for one in points if one.on_front})
    if len(best) > 1:
        # between two points of the front nothing was reached but the lower of their figures
        marks.append(
            svg.line(area, best, kind="front", color="--good", width=2, dash="dash", steps="back")
        )
    for one in points:
        color = "--muted" if one.faded else "--good" if one.on_front else "--clean"
        x, y = one.clean.ap, one.robust.ap
        if one.clean.interval is not None:
            low, high = one.clean.interval.low, one.clean.interval.high
            marks.append(svg.across(area, low, high, y, kind="whisker", color=color, width=1))
        if one.robust.interval is not None:
            ends = [(x, one.robust.interval.low), (x, one.robust.interval.high)]
            marks.append(svg.line(area, ends, kind="whisker", color=color, width=1))
        title = f"{one.number} {one.name}: clean AP {x:.4f}, {robust} {y:.4f}"
        shape = "diamond" if one.on_front else "circle"
        marks.append(svg.dot(area, x, y, title=title, color=color, size=11, shape=shape))
        marks.append(
            svg.note(one.number, x=area.across(x), y=float(area.down(y)) - 13, shift=6, bold=True)
        )
    return _framed(marks, area)


def intervals(points: Sequence[Point], *, robust: str) -> Markup:
    """A line a model: its AP under attack and its clean AP, each with its interval."""
    axis = svg.Axis(0, 1, svg.round_ticks(0, 1, most=5), title="average precision")
    area = svg.Area(axis, svg.Axis(len(points) - 0.5, -0.5), height=52 * len(points))
    marks = [svg.axes(area)]
    for line, one in enumerate(points):
        level = line + 0.16
        ends = sorted((one.clean.ap, one.robust.ap))
        marks.append(
            svg.across(area, ends[0], ends[1], level, kind="fall", color="--track", width=7)
        )
        for name, figure, color in (
            ("clean AP", one.clean, "--clean"),
            (robust, one.robust, "--worst"),
        ):
            if figure.interval is not None:
                low, high = figure.interval.low, figure.interval.high
                marks.append(svg.whisker(area, low, high, level, color=color))
            title = f"{one.name}: {name} {figure.ap:.4f}"
            marks.append(svg.dot(area, figure.ap, level, title=title, color=color, size=11))
        marks.append(
            svg.note(f"{one.number} {one.name}", x="0", y=float(area.down(line - 0.28)), shift=8)
        )
    return _framed(marks, area, tight=True)


def curves(lines: Sequence[Line], *, title: str, chosen: float | None, whole: bool) -> Markup:
    """Figures over epochs. chosen: the epoch of the weights that are kept.

    whole: whether the axis upwards is that of an AP, from 0 to 1.
    """
    epochs = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points]
    first, last = min(epochs), max(max(epochs), min(epochs) + 1)
    top = 1.0 if whole else max(values) * 1.08 or 1.0
    across = svg.Axis(first, last, _whole_ticks(first, last), title="epoch")
    upwards = svg.Axis(0, top, svg.round_ticks(0, top, most=5 if whole else 3))
    area = svg.Area(across, upwards, height=220 if whole else 120)
    marks = [svg.axes(area), svg.note(title, x="0", y=-12)]
    if chosen is not None and first <= chosen <= last:
        marks.append(svg.upright(area, chosen, dash="dot"))
    for line in lines:
        marks.append(
            svg.line(
                area,
                line.points,
                kind="curve",
                color=line.color,
                width=2,
                dash=line.dash,
                title=line.name,
            )
        )
        for x, y in line.points if len(line.points) <= 60 else ():
            said = f"{line.name}, epoch {x:g}: {y:.4g}"
            marks.append(svg.dot(area, x, y, title=said, color=line.color, size=6))
    return _framed(marks, area)


def _whole_ticks(first: float, last: float) -> list[tuple[float, str]]:
    ticks = svg.round_ticks(first, last, most=6)
    return [(value, label) for value, label in ticks if value == int(value)]


def _axis(figures: Sequence[APFigure], title: str) -> svg.Axis:
    """An axis that shows these with their intervals, and not much else of 0 to 1."""
    ends = [figure.ap for figure in figures]
    for figure in figures:
        if figure.interval is not None:
            ends += [figure.interval.low, figure.interval.high]
    low, high = min(ends), max(ends)
    room = max(SMALLEST_SPAN - (high - low), 0.1 * (high - low)) / 2
    low, high = max(0.0, low - room), min(1.0, high + room)
    return svg.Axis(low, high, svg.round_ticks(low, high, most=5), title=title)


def _framed(marks: Sequence[Markup], area: svg.Area, *, tight: bool = False) -> Markup:
    """The marks in a figure that readers of screens pass by: tables hold the same."""
    return Markup(
        '<div class="framed{}"><svg width="100%" height="{:g}" aria-hidden="true">{}</svg></div>'
    ).format(" tight" if tight else "", area.height, Markup("").join(marks))
