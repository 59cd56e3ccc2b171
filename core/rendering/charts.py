"""The figures of a report's page: which marks each has, and what a mark says when pointed at.

Each function takes figures and gives SVG, drawn by `adap.core.rendering.svg`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from adap.core.config.threats import Threat
from adap.core.figures.ranking import precision_recall_curve
from adap.core.rendering import svg
from adap.core.report import (
    APFigure,
    BudgetPoint,
    Difference,
    EpsilonCurve,
    GroupFigures,
    SmallestFigures,
    TaskReport,
)
from adap.core.scores import Scores

HISTOGRAM_BINS = 40
LINES = 40  # of a figure with a line a task or a group; the tables hold all of them

ATTACK_COLORS = ("--attack-1", "--attack-2", "--attack-3", "--attack-4", "--attack-5")
ATTACK_DASHES = ("solid", "dash", "dot")

AP_TICKS = ((0, "0"), (0.2, "0.2"), (0.4, "0.4"), (0.6, "0.6"), (0.8, "0.8"), (1, "1"))
ACROSS = svg.Axis(0, 1.015, AP_TICKS, title="average precision")
UPWARDS = svg.Axis(0, 1.02, AP_TICKS, title="average precision")
VALUES = svg.Margin(left=18, right=58)  # room for a value at the right end of each line


@dataclass(frozen=True)
class Row:
    """One line of the table and of the figures: clean images, an attack, or the worst case."""

    name: str
    color: str
    dash: str
    figure: APFigure
    logits: NDArray[np.float64]
    lost: Difference | None = None
    margin_drop: float | None = None
    settings: str = ""
    strongest: int | None = None


def ap_text(value: float) -> str:
    """Two decimals, and more only where two would read as 1 or lose half of a small figure."""
    for decimals in (2, 3, 4):
        text = f"{value:.{decimals}f}"
        if value >= 1 or (value >= 10 ** (1 - decimals) and float(text) < 1):
            return text
    return text


# --- a line for each attack, task or group --------------------------------------------------------


def ap_chart(task: TaskReport, rows: Sequence[Row]) -> Markup:
    """A dot a row, with its interval and the way it fell from the clean AP; chance and floor.

    With a certified floor there is one row more, and a band from it to the worst case.
    """
    last, certified = len(rows) - 1, task.certified_floor
    names = [row.name for row in rows] + (["Certified floor"] if certified else [])
    area = _lines(len(names), height=44)
    marks = [svg.axes(area)]
    if certified is not None:
        marks.append(svg.band(area, certified.ap, task.worst_case.ap, color="--proven-fill"))
    # Two heights, since chance and floor are often too close for two labels side by side.
    for name, ap, above, dash in (
        ("chance", task.chance, 16, "dash"),
        ("floor", task.floor, 40, "dot"),
    ):
        marks.append(svg.upright(area, ap, dash=dash, above=above))
        marks.append(svg.note(f"{name} {ap_text(ap)}", x=area.across(ap), y=9 - above, shift=4))
    for i, row in enumerate(rows):
        if i > 0:
            marks.append(_fall(area, task.clean.ap, row.figure.ap, i))
        size = 15 if i in (0, last) else 11
        marks.append(_dot(area, row.figure, i, name=row.name, color=row.color, size=size))
        marks.append(_value(area, row.figure, i))
    if certified is not None:
        marks.append(
            _dot(
                area,
                certified,
                last + 1,
                name=names[-1],
                color="--good",
                size=14,
                shape="diamond",
            )
        )
        marks.append(_value(area, certified, last + 1))
    margin = replace(VALUES, top=52)
    return svg.figure(marks, height=area.height, margin=margin, names=names)


def tasks_chart(tasks: Sequence[tuple[str, TaskReport]]) -> Markup:
    """Clean and worst-case AP of each task with its interval, and its chance as a bar across.

    tasks: (name, figures) in the order of the lines; the first LINES are drawn.
    """
    drawn = tasks[:LINES]
    area = _lines(len(drawn), height=34)
    marks = [svg.axes(area)]
    for i, (_, task) in enumerate(drawn):
        marks += [
            _fall(area, task.clean.ap, task.worst_case.ap, i),
            svg.bar(area, task.chance, i, title=f"chance {task.chance:.4f}"),
            _dot(area, task.clean, i, name="Clean", color="--clean", size=12),
            _dot(area, task.worst_case, i, name="Worst case", color="--worst", size=12),
            _value(area, task.worst_case, i),
        ]
    names = [name for name, _ in drawn]
    return svg.figure(marks, height=area.height, margin=VALUES, names=names)


def groups_chart(groups: Sequence[GroupFigures]) -> Markup:
    """Two dots a group, clean above and worst case below, each with its interval; the hollow
    diamond beside it is the AP at the prevalence of the whole task.

    groups: in the order of the lines; of those that have figures, the first LINES are drawn.
    """
    drawn = [group for group in groups if group.clean and group.worst_case][:LINES]
    area = _lines(len(drawn), height=48)
    marks = [svg.axes(area)]
    for i, group in enumerate(drawn):
        for name, color, height, figure, carried in (
            ("Clean", "--clean", i - 0.17, group.clean, group.clean_at_prevalence),
            ("Worst case", "--worst", i + 0.17, group.worst_case, group.worst_case_at_prevalence),
        ):
            if figure is not None:
                marks.append(_dot(area, figure, height, name=name, color=color, size=10))
            if carried is not None:
                marks.append(
                    svg.dot(
                        area,
                        carried,
                        height,
                        title=f"{name}, at the task's prevalence: {carried:.4f}",
                        color="--ink",
                        size=10,
                        shape="outline",
                    )
                )
    names = [group.group for group in drawn]
    return svg.figure(marks, height=area.height, margin=replace(VALUES, right=14), names=names)


# --- curves ---------------------------------------------------------------------------------------


def curves_chart(rows: Sequence[Row], targets: NDArray[np.int64], *, points: int) -> Markup:
    """Precision over recall, as steps that reach back: the area under a curve is its AP.

    points: how many a curve has at most; pointed at, it is read at an eighth as many recalls.
    """
    area = svg.Area(
        svg.Axis(0, 1.01, AP_TICKS, title="recall"),
        svg.Axis(0, 1.02, AP_TICKS, title="precision"),
        height=384,
    )
    marks = [svg.axes(area), svg.level(area, float(targets.mean()), dash="dash")]
    stops = (np.arange(points // 8) + 0.5) / (points // 8)
    texts = [f"recall {stop:.3f}" for stop in stops]
    for i, row in enumerate(rows):
        recall, precision = precision_recall_curve(row.logits, targets)
        for j, at in enumerate(np.searchsorted(recall, stops)):
            texts[j] += f"\n{row.name} {precision[at]:.3f}"
        recall, precision = _thinned(recall, precision, points=points)
        # Recall 0 is not a point of the curve: the first step reaches back to it.
        steps = [(0.0, float(precision[0])), *zip(recall.tolist(), precision.tolist(), strict=True)]
        marks.append(
            svg.line(
                area,
                steps,
                kind="curve",
                title=row.name,
                color=row.color,
                width=3 if i in (0, len(rows) - 1) else 1.75,
                dash=row.dash,
                steps="back",
            )
        )
    marks.append(svg.readings(area, list(zip(stops.tolist(), texts, strict=True))))
    return svg.figure(marks, height=area.height, margin=svg.Margin())


def _thinned(
    recall: NDArray[np.float64], precision: NDArray[np.float64], *, points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `points` points of the curve: both ends, lowest and highest of each slice."""
    if len(recall) <= points:
        return recall, precision
    slices = (np.arange(len(recall)) * (points // 2 - 1)) // len(recall)
    by_height = np.lexsort((precision, slices))
    starts = np.flatnonzero(np.diff(slices[by_height], prepend=-1))
    lowest, highest = by_height[starts], by_height[np.append(starts[1:], len(recall)) - 1]
    kept = np.unique(np.concatenate([lowest, highest, [0, len(recall) - 1]]))
    return recall[kept], precision[kept]


def epsilon_chart(task: TaskReport, curve: EpsilonCurve, threat: Threat) -> Markup:
    """AP over epsilon under one attack, from the clean AP on; the audited epsilon is marked, with
    the worst case of all attacks on it."""
    points = curve.points
    top = max([threat.epsilon, *(point.epsilon for point in points)]) or 1.0
    low, high = -0.03 * top, 1.03 * top
    across = svg.Axis(low, high, svg.round_ticks(0, high, most=6), title="epsilon")
    area = svg.Area(across, UPWARDS, height=288)
    marks = [
        svg.axes(area),
        svg.level(area, task.chance, dash="dash"),
        svg.level(area, task.floor, dash="dot"),
        svg.upright(area, threat.epsilon, color="--worst"),
        svg.note("audited", x=area.across(threat.epsilon), y=-10, anchor="middle"),
    ]
    banded = [(point.epsilon, point.interval) for point in points if point.interval]
    if banded:
        outline = [(x, i.low) for x, i in banded] + [(x, i.high) for x, i in reversed(banded)]
        marks.append(
            svg.line(
                area, outline, kind="interval", color="--attack-1", width=0, fill="--curve-fill"
            )
        )
    if points and points[0].epsilon > 0:
        from_clean = [(0.0, task.clean.ap), (points[0].epsilon, points[0].ap)]
        marks.append(
            svg.line(area, from_clean, kind="from-clean", color="--attack-1", width=1.5, dash="dot")
        )
    if points:
        line = [(point.epsilon, point.ap) for point in points]
        marks.append(svg.line(area, line, kind="curve", color="--attack-1", width=2.5))
    for name, x, y, color, size in (
        *(("robust AP", point.epsilon, point.ap, "--attack-1", 8) for point in points),
        ("clean", 0.0, task.clean.ap, "--clean", 12),
        ("worst case", threat.epsilon, task.worst_case.ap, "--worst", 12),
    ):
        title = f"{name}, epsilon {x:.4g}: AP {y:.4f}"
        marks.append(svg.dot(area, x, y, title=title, color=color, size=size))
    return svg.figure(marks, height=area.height, margin=svg.Margin(top=28, right=18))


def smallest_chart(found: SmallestFigures, threat: Threat) -> Markup:
    """Share of positives that stay among the first k over epsilon, falling where one leaves."""
    top = max([threat.epsilon, *(point.epsilon for point in found.curve)]) or 1.0
    low, high = -0.03 * top, 1.03 * top
    across = svg.Axis(low, high, svg.round_ticks(0, high, most=6), title="epsilon")
    upwards = svg.Axis(0, 1.02, AP_TICKS, title="share that stays")
    area = svg.Area(across, upwards, height=240)
    line = [(0.0, 1.0)]
    for point in found.curve:  # in steps: who leaves at an epsilon has stayed until then
        line += [(point.epsilon, line[-1][1]), (point.epsilon, point.kept)]
    line.append((top, line[-1][1]))
    marks = [
        svg.axes(area),
        svg.upright(area, threat.epsilon, color="--worst"),
        svg.note("audited", x=area.across(threat.epsilon), y=-10, anchor="middle"),
        svg.line(area, line, kind="curve", color="--positives", width=2.5),
    ]
    for point in found.curve:
        title = f"epsilon {point.epsilon:.4g}: {point.kept:.1%} stay"
        marks.append(
            svg.dot(area, point.epsilon, point.kept, title=title, color="--positives", size=8)
        )
    return svg.figure(marks, height=area.height, margin=svg.Margin(top=28, right=18))


BUDGET_ROLES = (
    ("both", "hide positives and push negatives", "--worst", "solid"),
    ("hide_positives", "hide positives", "--positives", "dash"),
    ("push_negatives", "push negatives", "--attack-3", "dot"),
)


def budget_chart(task: TaskReport) -> Markup:
    """AP left over the number of images that may be changed, on a log axis, for three roles."""
    points: Sequence[BudgetPoint] = task.budget_curve
    images = [point.images for point in points]
    low, high = min(images), max(images)
    ticks: list[int] = []
    for k in images:  # as many of the budgets as have room
        if not ticks or k / ticks[-1] >= (high / low) ** (1 / 9):
            ticks.append(k)
    across = svg.Axis(
        low / 1.15,
        high * 1.15,
        [(k, f"{k:,}") for k in ticks],
        title="images changed",
        log=True,
    )
    area = svg.Area(across, UPWARDS, height=304)
    marks = [
        svg.axes(area),
        svg.level(area, task.clean.ap, dash="solid", color="--clean"),
        svg.level(area, task.chance, dash="dash"),
        svg.level(area, task.floor, dash="dot"),
    ]
    texts = [f"{k:,} images" for k in images]
    for role, name, color, dash in BUDGET_ROLES:
        left: list[float] = [getattr(point, role) for point in points]
        texts = [f"{text}\n{name} {ap:.4f}" for text, ap in zip(texts, left, strict=True)]
        line = list(zip(images, left, strict=True))
        marks.append(
            svg.line(area, line, kind="curve", title=name, color=color, width=2.25, dash=dash)
        )
        marks += [svg.dot(area, k, ap, title=name, color=color, size=7) for k, ap in line]
    marks.append(svg.readings(area, list(zip(images, texts, strict=True))))
    return svg.figure(marks, height=area.height, margin=svg.Margin())


def scores_chart(scores: Scores, worst: NDArray[np.float64]) -> Markup:
    """Histograms of the logits of positives and negatives, clean above and attacked below."""
    both = np.concatenate([scores.clean, worst])
    edges = np.histogram_bin_edges(both[np.isfinite(both)], HISTOGRAM_BINS)
    classes = (("positives", scores.targets == 1), ("negatives", scores.targets == 0))
    # Infinite logits rank like any others; here they stand in the outermost bars.
    shares = {
        (images, name): np.histogram(np.clip(logits[chosen], edges[0], edges[-1]), edges)[0]
        / chosen.sum()
        for images, logits in (("clean", scores.clean), ("worst case", worst))
        for name, chosen in classes
    }
    top = 1.16 * max(float(share.max()) for share in shares.values())
    upwards = svg.Axis(0, top, [(y, f"{100 * y:g} %") for y, _ in svg.round_ticks(0, top, most=5)])
    low, high = float(edges[0]), float(edges[-1])
    ticks = svg.round_ticks(low, high, most=8)
    marks: list[Markup] = []
    for images, above, across in (
        ("clean", 0, svg.Axis(low, high, [(x, "") for x, _ in ticks])),
        ("worst case", 209, svg.Axis(low, high, ticks, title="logit of the positive class")),
    ):
        area = svg.Area(across, upwards, height=178, top=above)
        marks.append(svg.axes(area))
        texts = [
            f"{images}, logits from {start:.2f} to {end:.2f}" for start, end in pairwise(edges)
        ]
        for name, _ in classes:
            bars = shares[images, name].tolist()
            texts = [
                f"{text}\n{100 * share:.1f} % of {name}"
                for text, share in zip(texts, bars, strict=True)
            ]
            outline = [
                (low, 0.0),
                *zip(edges.tolist(), [*bars, bars[-1]], strict=True),
                (high, 0.0),
            ]
            marks.append(
                svg.line(
                    area,
                    outline,
                    kind="outline",
                    title=f"{images}, {name}",
                    color=f"--{name}",
                    width=1.75,
                    steps="ahead",
                    fill=f"--{name}-fill",
                )
            )
        middles = ((edges[:-1] + edges[1:]) / 2).tolist()
        marks.append(svg.note(images, x="1%", y=above + 10, bold=True))
        marks.append(svg.readings(area, list(zip(middles, texts, strict=True))))
    return svg.figure(marks, height=209 + 178, margin=svg.Margin())


# --- parts ----------------------------------------------------------------------------------------


def _lines(count: int, *, height: int) -> svg.Area:
    """AP across, and down a line for each name, the first on top; height: of a line, in pixels."""
    return svg.Area(ACROSS, svg.Axis(count - 0.5, -0.5), height=height * count)


def _dot(
    area: svg.Area,
    figure: APFigure,
    height: float,
    *,
    name: str,
    color: str,
    size: float,
    shape: str = "circle",
) -> Markup:
    """A mark at the AP, with its interval as whiskers."""
    title = f"{name}: AP {figure.ap:.4f}"
    whiskers = Markup("")
    if figure.interval is not None:
        low, high = figure.interval.low, figure.interval.high
        whiskers = svg.whisker(area, low, high, height, color=color)
        title += f", {low:.4f} to {high:.4f}"
    return whiskers + svg.dot(
        area, figure.ap, height, title=title, color=color, size=size, shape=shape
    )


def _fall(area: svg.Area, start: float, end: float, line: int) -> Markup:
    """A grey track from one AP to another."""
    return svg.across(area, start, end, line, kind="fall", color="--track", width=7)


def _value(area: svg.Area, figure: APFigure, line: int) -> Markup:
    """The AP in bold, at the right end of its line."""
    return svg.note(f"{figure.ap:.3f}", x="100%", y=float(area.down(line)), shift=10, bold=True)
