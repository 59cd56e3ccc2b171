"""The figures of a report's page, as plain JSON that Plotly draws in the reader's browser.

Each function takes figures and gives `{"data": …, "layout": …}`. A colour is a CSS variable of
`report.css`, which `report.js` resolves, light or dark. Names come from strangers: whatever Plotly
would read as markup goes through `_plain` first.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.core.config import Threat
from adap.core.figures.ranking import precision_recall_curve
from adap.core.report import (
    APFigure,
    BudgetPoint,
    Difference,
    EpsilonCurve,
    GroupFigures,
    TaskReport,
)
from adap.core.scores import Scores

HISTOGRAM_BINS = 40
LINES = 40  # of a figure with a line a task or a group; the tables hold all of them
TICK_LETTERS = 28  # a longer name of a task or a group would leave no room on a narrow screen

ATTACK_COLORS = ("--attack-1", "--attack-2", "--attack-3", "--attack-4", "--attack-5")
ATTACK_DASHES = ("solid", "dash", "dot")

Figure = dict[str, Any]


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


def ap_chart(task: TaskReport, rows: Sequence[Row]) -> Figure:
    """A dot a row, with its interval and the way it fell from the clean AP; chance and floor.

    With a certified floor there is one row more, and a band from it to the worst case.
    """
    last, certified = len(rows) - 1, task.certified_floor
    dots = [
        _dots(
            [row.figure],
            [i],
            name=row.name,
            color=row.color,
            size=15 if i in (0, last) else 11,
        )
        for i, row in enumerate(rows)
    ]
    named = [(row.name, row.figure) for row in rows]
    shapes: list[Figure] = []
    if certified is not None:
        name = "Certified floor"
        named.append((name, certified))
        dots.append(
            _dots([certified], [last + 1], name=name, color="--good", size=14, symbol="diamond")
        )
        shapes.append(
            {
                "type": "rect",
                "layer": "below",
                "yref": "paper",
                "x0": certified.ap,
                "x1": task.worst_case.ap,
                "y0": 0,
                "y1": 1,
                "line": {"width": 0},
                "fillcolor": "--proven-fill",
            }
        )
    height = 44 * len(named)
    # Two heights, since chance and floor are often too close for two labels side by side.
    levels = (("chance", task.chance, 1.0, "dash"), ("floor", task.floor, 1.0 + 24 / height, "dot"))
    return {
        "data": [_falls([(task.clean.ap, row.figure.ap) for row in rows[1:]], first=1), *dots],
        "layout": _layout(
            height=height + 92,
            margin={"l": 12, "r": 58, "t": 52, "b": 40},
            hovermode="closest",
            xaxis=_axis("average precision", range=[0, 1.015]),
            yaxis=_lines([name for name, _ in named]),
            shapes=shapes
            + [
                {
                    "type": "line",
                    "yref": "paper",
                    "x0": x,
                    "x1": x,
                    "y0": 0,
                    "y1": top + 16 / height,
                    "line": {"color": "--muted", "width": 1.5, "dash": dash},
                }
                for _, x, top, dash in levels
            ],
            annotations=[
                _note(f"{name} {ap_text(x)}", x=x, y=top, yref="paper", yanchor="bottom", xshift=3)
                for name, x, top, _ in levels
            ]
            + [_value(figure, i) for i, (_, figure) in enumerate(named)],
        ),
    }


def tasks_chart(tasks: Sequence[tuple[str, TaskReport]]) -> Figure:
    """Clean and worst-case AP of each task with its interval, and its chance as a bar across.

    tasks: (name, figures) in the order of the lines; the first LINES are drawn.
    """
    drawn = tasks[:LINES]
    figures = [task for _, task in drawn]
    lines = list(range(len(drawn)))
    return {
        "data": [
            _falls([(task.clean.ap, task.worst_case.ap) for task in figures]),
            _bars([task.chance for task in figures], lines, name="chance", color="--muted"),
            _dots([task.clean for task in figures], lines, name="Clean", color="--clean", size=12),
            _dots(
                [task.worst_case for task in figures],
                lines,
                name="Worst case",
                color="--worst",
                size=12,
            ),
        ],
        "layout": _layout(
            height=34 * len(drawn) + 64,
            margin={"l": 12, "r": 58, "t": 12, "b": 40},
            hovermode="closest",
            xaxis=_axis("average precision", range=[0, 1.015]),
            yaxis=_lines([_short(name) for name, _ in drawn]),
            annotations=[_value(task.worst_case, i) for i, task in enumerate(figures)],
        ),
    }


def groups_chart(groups: Sequence[GroupFigures]) -> Figure:
    """Two dots a group, clean above and worst case below, each with its interval; the hollow
    diamond beside it is the AP at the prevalence of the whole task.

    groups: in the order of the lines; of those that have figures, the first LINES are drawn.
    """
    drawn = [group for group in groups if group.clean and group.worst_case][:LINES]
    data: list[Figure] = []
    for name, color, shift, figures, carried in (
        (
            "Clean",
            "--clean",
            -0.17,
            [group.clean for group in drawn],
            [group.clean_at_prevalence for group in drawn],
        ),
        (
            "Worst case",
            "--worst",
            0.17,
            [group.worst_case for group in drawn],
            [group.worst_case_at_prevalence for group in drawn],
        ),
    ):
        heights = [i + shift for i in range(len(drawn))]
        data.append(_dots([f for f in figures if f], heights, name=name, color=color, size=10))
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{name}, same prevalence",
                "x": carried,
                "y": heights,
                "marker": {
                    "size": 11,
                    "symbol": "diamond-open",
                    "color": "--ink",
                    "line": {"width": 1.75},
                },
                "cliponaxis": False,
                "hovertemplate": f"{name}, at the task's prevalence: %{{x:.4f}}<extra></extra>",
            }
        )
    return {
        "data": data,
        "layout": _layout(
            height=48 * len(drawn) + 64,
            hovermode="closest",
            xaxis=_axis("average precision", range=[0, 1.015]),
            yaxis=_lines([_short(group.group) for group in drawn]),
        ),
    }


# --- curves ---------------------------------------------------------------------------------------


def curves_chart(rows: Sequence[Row], targets: NDArray[np.int64], *, points: int) -> Figure:
    """Precision over recall, as steps that reach back: the area under a curve is its AP.

    points: how many a curve has at most.
    """
    curves: list[Figure] = []
    for i, row in enumerate(rows):
        recall, precision = _thinned(*precision_recall_curve(row.logits, targets), points=points)
        ends = i in (0, len(rows) - 1)
        curves.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": _plain(row.name),
                # Recall 0 is not a point of the curve: the first step reaches back to it.
                "x": [0, *recall.round(6).tolist()],
                "y": [float(precision[0].round(6)), *precision.round(6).tolist()],
                "line": {
                    "shape": "vh",
                    "width": 3 if ends else 1.75,
                    "dash": row.dash,
                    "color": row.color,
                },
                "hovertemplate": "%{y:.3f}",
            }
        )
    return {
        "data": curves,
        "layout": _layout(
            height=440,
            hovermode="x unified",
            xaxis=_axis(
                "recall",
                range=[0, 1.01],
                unifiedhovertitle={"text": "recall %{x:.3f}"},
                spikethickness=-2,  # negative: without its bright edge
            ),
            yaxis=_axis("precision", range=[0, 1.02]),
            shapes=[_level(float(targets.mean()), dash="dash")],
        ),
    }


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


def epsilon_chart(task: TaskReport, curve: EpsilonCurve, threat: Threat) -> Figure:
    """AP over epsilon under one attack, from the clean AP on; the audited epsilon is marked, with
    the worst case of all attacks on it."""
    points = curve.points
    banded = [(point.epsilon, point.interval) for point in points if point.interval]
    band: Figure = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in banded] + [x for x, _ in reversed(banded)],
        "y": [i.low for _, i in banded] + [i.high for _, i in reversed(banded)],
        "fill": "toself",
        "fillcolor": "--curve-fill",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    hover = "epsilon %{x:.4g}: AP %{y:.4f}<extra></extra>"
    line: Figure = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "robust AP",
        "x": [point.epsilon for point in points],
        "y": [point.ap for point in points],
        "line": {"color": "--attack-1", "width": 2.5},
        "marker": {"color": "--attack-1", "size": 8},
        "hovertemplate": hover,
    }
    data = [*([band] if banded else []), line]
    if points and points[0].epsilon > 0:
        from_clean: Figure = {
            "type": "scatter",
            "mode": "lines",
            "x": [0, points[0].epsilon],
            "y": [task.clean.ap, points[0].ap],
            "line": {"color": "--attack-1", "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }
        data.append(from_clean)
    for name, x, y, color in (
        ("clean", 0.0, task.clean.ap, "--clean"),
        ("worst case", threat.epsilon, task.worst_case.ap, "--worst"),
    ):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [x],
                "y": [y],
                "marker": {"color": color, "size": 12},
                "hovertemplate": f"{name}, {hover}",
            }
        )
    top = max([threat.epsilon, *(point.epsilon for point in points)])
    return {
        "data": data,
        "layout": _layout(
            height=360,
            margin={"l": 12, "r": 18, "t": 28, "b": 40},
            hovermode="closest",
            xaxis=_axis("epsilon", range=[-0.03 * top, 1.03 * top] if top > 0 else [-0.03, 1]),
            yaxis=_axis("average precision", range=[0, 1.02]),
            shapes=[
                _level(task.chance, dash="dash"),
                _level(task.floor, dash="dot"),
                {
                    "type": "line",
                    "yref": "paper",
                    "x0": threat.epsilon,
                    "x1": threat.epsilon,
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": "--worst", "width": 1.5},
                },
            ],
            annotations=[
                _note(
                    "audited",
                    x=threat.epsilon,
                    y=1,
                    yref="paper",
                    yanchor="bottom",
                    xanchor="center",
                )
            ],
        ),
    }


BUDGET_ROLES = (
    ("both", "hide positives and push negatives", "--worst", "solid"),
    ("hide_positives", "hide positives", "--positives", "dash"),
    ("push_negatives", "push negatives", "--attack-3", "dot"),
)


def budget_chart(task: TaskReport) -> Figure:
    """AP left over the number of images that may be changed, on a log axis, for three roles."""
    points: Sequence[BudgetPoint] = task.budget_curve
    images = [point.images for point in points]
    low, high = math.log10(min(images)), math.log10(max(images))
    ticks: list[int] = []
    for k in images:  # as many of the budgets as have room
        if not ticks or math.log10(k / ticks[-1]) >= (high - low) / 9:
            ticks.append(k)
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": images,
                "y": [getattr(point, role) for point in points],
                "line": {"color": color, "width": 2.25, "dash": dash},
                "marker": {"color": color, "size": 7},
                "hovertemplate": "%{y:.4f}",
            }
            for role, name, color, dash in BUDGET_ROLES
        ],
        "layout": _layout(
            height=360,
            hovermode="x unified",
            xaxis=_axis(
                "images changed",
                type="log",
                range=[low - 0.06, high + 0.06],
                tickvals=ticks,
                unifiedhovertitle={"text": "%{x} images"},
                spikethickness=-2,
            ),
            yaxis=_axis("average precision", range=[0, 1.02]),
            shapes=[
                _level(task.clean.ap, dash="solid", color="--clean"),
                _level(task.chance, dash="dash"),
                _level(task.floor, dash="dot"),
            ],
        ),
    }


def scores_chart(scores: Scores, worst: NDArray[np.float64]) -> Figure:
    """Histograms of the logits of positives and negatives, clean above and attacked below."""
    both = np.concatenate([scores.clean, worst])
    edges = np.histogram_bin_edges(both[np.isfinite(both)], HISTOGRAM_BINS)
    outlines: list[Figure] = []
    for axis, logits in (("y", scores.clean), ("y2", worst)):
        for name, target in (("positives", 1), ("negatives", 0)):
            # Infinite logits rank like any others; here they stand in the outermost bars.
            chosen = np.clip(logits[scores.targets == target], edges[0], edges[-1])
            counts, _ = np.histogram(chosen, edges)
            shares = (counts / counts.sum()).round(6).tolist()
            outlines.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "yaxis": axis,
                    "x": [*edges.round(6).tolist(), float(edges[-1].round(6))],
                    "y": [*shares, shares[-1], 0],
                    "line": {"shape": "hv", "width": 1.75, "color": f"--{name}"},
                    "fill": "tozeroy",
                    "fillcolor": f"--{name}-fill",
                    "hovertemplate": f"%{{y:.1%}} of {name}<br>from logit %{{x:.2f}}"
                    "<extra></extra>",
                }
            )
    top = 1.08 * max(max(outline["y"]) for outline in outlines)
    share = {"range": [0, top], "tickformat": ".0%", "nticks": 5}
    return {
        "data": outlines,
        "layout": _layout(
            height=440,
            xaxis=_axis("logit of the positive class", anchor="y2"),
            yaxis=_axis("", domain=[0.54, 1], **share),
            yaxis2=_axis("", domain=[0, 0.46], **share),
            annotations=[
                _note(f"<b>{name}</b>", x=0.01, y=y, xref="paper", yref="paper", yanchor="top")
                for name, y in (("clean", 1), ("worst case", 0.46))
            ],
        ),
    }


# --- parts ----------------------------------------------------------------------------------------


def _dots(
    figures: Sequence[APFigure],
    heights: Sequence[float],
    *,
    name: str,
    color: str,
    size: int,
    symbol: str = "circle",
) -> Figure:
    """A dot for each figure at its height, with its interval as whiskers."""
    dots: Figure = {
        "type": "scatter",
        "mode": "markers",
        "name": _plain(name),
        "x": [figure.ap for figure in figures],
        "y": list(heights),
        "marker": {"size": size, "color": color, "symbol": symbol},
        "cliponaxis": False,
        "hovertemplate": "AP %{x:.4f}<extra></extra>",
    }
    if any(figure.interval for figure in figures):
        spans = [(figure.ap, figure.interval) for figure in figures]
        dots["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [span.high - ap if span else 0 for ap, span in spans],
            "arrayminus": [ap - span.low if span else 0 for ap, span in spans],
            "thickness": 1.5,
            "width": 5,
            "color": color,
        }
    return dots


def _falls(spans: Sequence[tuple[float, float]], *, first: int = 0) -> Figure:
    """A grey track from one AP to another on each line, from line `first` on."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for start, end in spans for x in (start, end, None)],
        "y": [y for i in range(first, first + len(spans)) for y in (i, i, None)],
        "line": {"width": 7, "color": "--track"},
        "hoverinfo": "skip",
    }


def _bars(values: Sequence[float], heights: Sequence[float], *, name: str, color: str) -> Figure:
    """A short upright bar for each value."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(values),
        "y": list(heights),
        "marker": {"symbol": "line-ns", "size": 14, "line": {"width": 2, "color": color}},
        "hovertemplate": f"{name} %{{x:.4f}}<extra></extra>",
    }


def _level(y: float, *, dash: str, color: str = "--muted") -> Figure:
    """A line across the whole figure at this AP."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"color": color, "width": 1.5, "dash": dash},
    }


def _lines(names: Sequence[str]) -> Figure:
    """The axis of a figure that has a line for each name, the first on top."""
    return _axis(
        "",
        range=[len(names) - 0.4, -0.6],
        tickvals=list(range(len(names))),
        ticktext=[_plain(name) for name in names],
        showgrid=False,
        fixedrange=True,
    )


def _value(figure: APFigure, line: int) -> Figure:
    """The AP in bold, at the right end of its line."""
    return _note(f"<b>{figure.ap:.3f}</b>", x=1, y=line, xref="paper", xshift=10, size=14)


def _short(name: str) -> str:
    return (
        name if len(name) <= TICK_LETTERS else name[: TICK_LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )


def _layout(**own: Any) -> Figure:
    quiet: Figure = {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "--ink"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "--card",
        "margin": {"l": 12, "r": 12, "t": 12, "b": 40},
        "showlegend": False,  # the page has its own, which wraps well and can be read aloud
        "hoverlabel": {
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "--ink"},
            "bgcolor": "--card",
            "bordercolor": "--muted",
            "namelength": -1,
        },
    }
    return quiet | own


def _axis(title: str, **own: Any) -> Figure:
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13, "color": "--muted"}},
        "automargin": True,
        "zeroline": False,
        "gridcolor": "--line",
        "linecolor": "--line",
        "ticks": "",
    } | own


def _note(text: str, *, size: int = 12, **own: Any) -> Figure:
    """Text in a figure; it must hold no name of a stranger that `_plain` has not seen."""
    return {
        "text": text,
        "showarrow": False,
        "xanchor": "left",
        "font": {"size": size, "color": "--ink"},
    } | own


def _plain(name: str) -> str:
    """A name that Plotly shows letter by letter: it would read tags, and between $ signs TeX."""
    return html.escape(name, quote=False).replace("$", "&#36;")
