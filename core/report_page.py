"""A report as one HTML file that needs nothing else: no network, no font, no script but its own.

`render` arranges and rounds. Everything on the page comes from a `Report` and the `Scores` behind
it, and no model is needed. The page is `templates/report.html.j2`, with `report.css` and
`report.js` beside it; figures are plain JSON that Plotly draws in the reader's browser.

Ids, class names and model names come from strangers. Jinja escapes them in HTML, `tojson` in JSON,
and `_plain` where Plotly would read markup. Should all three fail, the page's own content security
policy still runs two scripts only, known by their hashes, and fetches nothing.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from plotly.offline import get_plotlyjs

from core.attacks.worst_case import worst_case
from core.config import Threat
from core.errors import DataError
from core.ranking import precision_recall_curve
from core.report import APFigure, Difference, Report, TaskReport
from core.scores import Evidence, Scores

CURVE_POINTS = 400  # on screen a curve of 100,000 points looks the same
HISTOGRAM_BINS = 40
CARDS = 12
PICTURE_SIDE = 256  # larger images are shrunk, so that a page never weighs tens of megabytes

# A colour in a figure is a CSS variable of report.css: report.js resolves it, light or dark.
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


@dataclass(frozen=True)
class Card:
    """One damaged positive. The pictures are data URIs; ranks count from 1 among all examples."""

    evidence: Evidence
    clean: str
    attacked: str
    difference: str
    rank_before: int
    rank_after: int


def render(report: Report, scores: Scores) -> str:
    """The page of an audit of one task, as HTML.

    Raises DataError where the report has several tasks, or where the scores are not those of the
    report: other attacks, or another number of examples.
    """
    task = _task_of(report, scores)
    worst, _ = worst_case(scores)
    rows = _rows(task, scores, worst)
    charts = {
        "chart-ap": _ap_chart(task, rows),
        "chart-curves": _curves_chart(rows, scores.targets),
        "chart-scores": _scores_chart(scores, worst),
    }
    factor = _amplification(scores.evidence)
    scripts = [get_plotlyjs(), _source("report.js")]
    return _environment.get_template("report.html.j2").render(
        report=report,
        task=task,
        provenance=report.provenance,
        threat=Threat.model_validate(report.provenance.config["threat"]),
        verdict=_verdict(task),
        rows=rows,
        charts=charts,
        cards=[_card(item, scores, worst, factor) for item in scores.evidence[:CARDS]],
        factor=factor,
        created=datetime.fromisoformat(report.provenance.created_at),
        config_json=json.dumps(report.provenance.config, indent=2, ensure_ascii=False),
        style=Markup(_source("report.css")),  # noqa: S704
        scripts=[Markup(script) for script in scripts],  # noqa: S704
        script_hashes=[_csp_hash(script) for script in scripts],
    )


# --- what the page says ---------------------------------------------------------------------------


def _task_of(report: Report, scores: Scores) -> TaskReport:
    if len(report.tasks) != 1:
        raise DataError(f"expected a report of one task, got {len(report.tasks)}")
    task = report.tasks[0]
    if set(task.attacks) != set(scores.attacked):
        raise DataError(
            f"expected scores under {sorted(task.attacks)}, as in the report, "
            f"got {sorted(scores.attacked)}"
        )
    if task.examples != len(scores):
        raise DataError(f"expected scores of {task.examples} examples, got {len(scores)}")
    return task


def _verdict(task: TaskReport) -> str:
    """One sentence in which every number is a figure of the report."""
    clean, worst, chance = map(_ap, (task.clean.ap, task.worst_case.ap, task.chance))
    if task.clean.ap <= task.chance:
        return f"Ranks no better than chance before any attack: {clean} AP, chance is {chance}."
    count = len(task.attacks)
    attacks = f"the worst of {count} attacks" if count > 1 else "the one attack that was run"
    interval = task.worst_case.interval
    if task.worst_case.ap <= task.chance:
        judgement = "no better than"
    elif interval is not None and interval.low <= task.chance:
        judgement = "not clearly better than"
    else:
        return f"Keeps {worst} of {clean} AP under {attacks}; chance is {chance}."
    return (
        f"Keeps {worst} of {clean} AP under {attacks}: {judgement} a random ranking, "
        f"whose AP is {chance}."
    )


def _rows(task: TaskReport, scores: Scores, worst: NDArray[np.float64]) -> list[Row]:
    won, clean_ap = task.worst_case.won, task.clean.ap
    attacks = [
        Row(
            name=name,
            color=ATTACK_COLORS[i % len(ATTACK_COLORS)],
            dash=ATTACK_DASHES[i % len(ATTACK_DASHES)],
            figure=figure,
            logits=scores.attacked[name],
            lost=Difference(value=clean_ap - figure.ap),
            margin_drop=figure.mean_margin_drop,
            settings=", ".join(
                f"{key} {'default' if value is None else value}"
                for key, value in figure.attack.items()
                if key != "name"
            ),
            strongest=won.get(name, 0),
        )
        for i, (name, figure) in enumerate(task.attacks.items())
    ]
    return [
        Row(
            name="Clean",
            color="--clean",
            dash="solid",
            figure=task.clean,
            logits=scores.clean,
            strongest=won.get("clean", 0),
        ),
        *attacks,
        Row(
            name="Worst case",
            color="--worst",
            dash="solid",
            figure=task.worst_case,
            logits=worst,
            lost=task.worst_case.drop or Difference(value=clean_ap - task.worst_case.ap),
        ),
    ]


def _ap(value: float) -> str:
    """Two decimals, and more only where two would read as 1 or lose half of a small figure."""
    for decimals in (2, 3, 4):
        text = f"{value:.{decimals}f}"
        if value >= 1 or (value >= 10 ** (1 - decimals) and float(text) < 1):
            return text
    return text


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _signed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


# --- pictures -------------------------------------------------------------------------------------


def _amplification(evidence: Sequence[Evidence]) -> int:
    """The whole factor, one for all cards, that takes the largest change to black or white."""
    peak = max((float(np.abs(item.attacked - item.clean).max()) for item in evidence), default=0.0)
    return max(1, int(0.5 / max(peak, 1 / 255) + 0.01))  # 0.01: float32 of 0.1 is above 0.1


def _card(item: Evidence, scores: Scores, worst: NDArray[np.float64], factor: int) -> Card:
    return Card(
        evidence=item,
        clean=_picture(item.clean),
        attacked=_picture(item.attacked),
        difference=_picture(0.5 + factor * (item.attacked - item.clean)),
        rank_before=_rank(item.clean_logit, scores.clean, scores.targets),
        rank_after=_rank(item.attacked_logit, worst, scores.targets),
    )


def _rank(logit: float, logits: NDArray[np.float64], targets: NDArray[np.int64]) -> int:
    """Rank of a positive with this logit, from 1, negatives first in ties."""
    return 1 + int(((logits > logit) | ((logits == logit) & (targets == 0))).sum())


def _picture(pixels: NDArray[np.float32]) -> str:
    """(C, H, W) in [0, 1], rounded to 8 bit, as the data URI of a PNG: grey, or RGB from C >= 3."""
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(levels[:3].transpose(1, 2, 0) if len(levels) >= 3 else levels[0])
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# --- figures: plain JSON for Plotly ---------------------------------------------------------------


def _ap_chart(task: TaskReport, rows: Sequence[Row]) -> Figure:
    """A dot a row, with its interval and the way it fell from the clean AP; chance and floor."""
    clean_ap, last = task.clean.ap, len(rows) - 1
    fall: Figure = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for row in rows[1:] for x in (clean_ap, row.figure.ap, None)],
        "y": [y for i in range(1, len(rows)) for y in (i, i, None)],
        "line": {"width": 7, "color": "--track"},
        "hoverinfo": "skip",
    }
    dots: list[Figure] = []
    for i, row in enumerate(rows):
        dot: Figure = {
            "type": "scatter",
            "mode": "markers",
            "name": _plain(row.name),
            "x": [row.figure.ap],
            "y": [i],
            "marker": {"size": 15 if i in (0, last) else 11, "color": row.color},
            "hovertemplate": "AP %{x:.4f}<extra></extra>",
        }
        if row.figure.interval is not None:
            dot["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [row.figure.interval.high - row.figure.ap],
                "arrayminus": [row.figure.ap - row.figure.interval.low],
                "thickness": 1.5,
                "width": 5,
                "color": row.color,
            }
        dots.append(dot)
    # Two heights, since chance and floor are often too close for two labels side by side.
    levels = (
        ("chance", task.chance, 1.0, "dash"),
        ("floor", task.floor, 1.0 + 24 / _height(rows), "dot"),
    )
    return {
        "data": [fall, *dots],
        "layout": _layout(
            height=_height(rows) + 92,
            margin={"l": 12, "r": 58, "t": 52, "b": 40},
            hovermode="closest",
            xaxis=_axis("average precision", range=[0, 1.015]),
            yaxis=_axis(
                "",
                range=[last + 0.6, -0.6],
                tickvals=list(range(len(rows))),
                ticktext=[_plain(row.name) for row in rows],
                showgrid=False,
                fixedrange=True,
            ),
            shapes=[
                {
                    "type": "line",
                    "yref": "paper",
                    "x0": x,
                    "x1": x,
                    "y0": 0,
                    "y1": top + 16 / _height(rows),
                    "line": {"color": "--muted", "width": 1.5, "dash": dash},
                }
                for _, x, top, dash in levels
            ],
            annotations=[
                _note(f"{name} {_ap(x)}", x=x, y=top, yref="paper", yanchor="bottom", xshift=3)
                for name, x, top, _ in levels
            ]
            + [
                _note(f"<b>{row.figure.ap:.3f}</b>", x=1, y=i, xref="paper", xshift=10, size=14)
                for i, row in enumerate(rows)
            ],
        ),
    }


def _height(rows: Sequence[Row]) -> int:
    """Pixels of the AP figure's plotting area."""
    return 44 * len(rows)


def _curves_chart(rows: Sequence[Row], targets: NDArray[np.int64]) -> Figure:
    """Precision over recall, as steps that reach back: the area under a curve is its AP."""
    prevalence = float(targets.mean())
    curves: list[Figure] = []
    for i, row in enumerate(rows):
        recall, precision = _thinned(*precision_recall_curve(row.logits, targets))
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
            shapes=[
                {
                    "type": "line",
                    "x0": 0,
                    "x1": 1,
                    "y0": prevalence,
                    "y1": prevalence,
                    "line": {"color": "--muted", "width": 1.5, "dash": "dash"},
                }
            ],
        ),
    }


def _thinned(
    recall: NDArray[np.float64], precision: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most CURVE_POINTS points of the curve: both ends, lowest and highest of each slice."""
    if len(recall) <= CURVE_POINTS:
        return recall, precision
    slices = (np.arange(len(recall)) * (CURVE_POINTS // 2 - 1)) // len(recall)
    by_height = np.lexsort((precision, slices))
    starts = np.flatnonzero(np.diff(slices[by_height], prepend=-1))
    lowest, highest = by_height[starts], by_height[np.append(starts[1:], len(recall)) - 1]
    kept = np.unique(np.concatenate([lowest, highest, [0, len(recall) - 1]]))
    return recall[kept], precision[kept]


def _scores_chart(scores: Scores, worst: NDArray[np.float64]) -> Figure:
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


# --- the template ---------------------------------------------------------------------------------

_environment = Environment(
    loader=PackageLoader("core"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters["ap"] = _ap
_environment.filters["share"] = _share
_environment.filters["signed"] = _signed


def _source(name: str) -> str:
    """The text of a file beside the template."""
    assert _environment.loader is not None
    return _environment.loader.get_source(_environment, name)[0]


def _csp_hash(script: str) -> str:
    """The source expression with which a content security policy allows exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
