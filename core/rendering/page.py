"""A report as one HTML file that needs nothing else: no network, no font and no script.

`render` arranges and rounds. Everything on the page comes from a `Report` and the `Scores` behind
it, and no model is needed. The page is `templates/report.html.j2`, with `task.html.j2` for each
task, and `report.css` beside them; its figures come from `adap.core.rendering.charts`.

Ids, class names, groups and model names come from strangers. Jinja escapes them in HTML, and
`adap.core.rendering.svg` in figures. Should both fail, the page's own content security policy still
runs no script and fetches nothing.
"""

import base64
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from adap.core.config.threats import Threat
from adap.core.errors import DataError
from adap.core.figures.gate import got_text
from adap.core.figures.worst_case import worst_case
from adap.core.rendering import charts as report_charts
from adap.core.rendering import signoff
from adap.core.rendering.charts import ATTACK_COLORS, ATTACK_DASHES, Row, ap_text
from adap.core.rendering.pictures import png
from adap.core.report import (
    Check,
    CorruptionPoint,
    Difference,
    GroupFigures,
    Report,
    TaskReport,
    Trust,
)
from adap.core.scores import Evidence, Scores

# Shared by the tasks of a report, so that the page of ten weighs little more than that of one.
CURVE_POINTS = 4000
CARDS = 40
TASK_POINTS = 400  # on screen a curve of 100,000 points looks the same
TASK_CARDS = 12
PICTURE_SIDE = 256  # larger images are shrunk, so that a page never weighs tens of megabytes


@dataclass(frozen=True)
class Card:
    """One damaged positive. The pictures are data URIs; ranks count from 1 among all examples."""

    evidence: Evidence
    clean: str
    attacked: str
    difference: str
    rank_before: int
    rank_after: int


@dataclass(frozen=True)
class Cell:
    """AP under one corruption, and how much of the clean AP it took: from 0 to 1."""

    ap: float
    lost: float


@dataclass(frozen=True)
class Magnified:
    """A perturbation around grey, so many times as large, as a data URI."""

    picture: str
    factor: int


@dataclass(frozen=True)
class Section:
    """One task as the page shows it. `prefix` keeps the ids of several tasks apart."""

    prefix: str
    name: str
    task: TaskReport
    rows: Sequence[Row]
    cards: Sequence[Card]
    factor: int
    groups: Sequence[GroupFigures]
    severities: Sequence[int]
    corruptions: Sequence[tuple[str, Sequence[Cell]]]
    universal: Magnified | None
    charts: dict[str, Markup]


def render(report: Report, scores: Sequence[Scores]) -> str:
    """The page of an audit, as HTML.

    scores: one for each task of the report, in its order.

    Raises DataError where the scores are not those of the report: of another number of tasks,
    under other attacks, or of another number of examples.
    """
    if len(scores) != len(report.tasks):
        raise DataError(f"expected scores of {len(report.tasks)} tasks, got {len(scores)}")
    threat = Threat.model_validate(report.provenance.config["threat"])
    count = len(report.tasks)
    sections = [
        _section(
            task,
            task_scores,
            threat=threat,
            prefix="" if count == 1 else f"task-{i}-",
            points=min(TASK_POINTS, max(CURVE_POINTS // count, 50)),
            cards=min(TASK_CARDS, max(CARDS // count, 1)),
        )
        for i, (task, task_scores) in enumerate(zip(report.tasks, scores, strict=True), 1)
    ]
    worst_first = sorted(sections, key=lambda section: section.task.worst_case.ap)
    return _environment.get_template("report.html.j2").render(
        report=report,
        sections=sections,
        worst_first=worst_first,
        overview=report_charts.tasks_chart([(it.name, it.task) for it in worst_first]),
        provenance=report.provenance,
        threat=threat,
        chance=fmean(task.chance for task in report.tasks),
        verdict=_verdict(report.tasks[0]) if count == 1 else _mean_verdict(report),
        tally=None if report.trust is None else _tally(report.trust),
        checks=[] if report.trust is None else _gravest_first(report.trust.checks),
        thresholds=sorted(report.thresholds, key=lambda it: it.passed),
        stated=signoff.stated(report),
        pipeline=signoff.pipeline(report),
        origin=list(signoff.origin(report)),
        documents=signoff.documents(report),
        created=datetime.fromisoformat(report.provenance.created_at),
        config_json=json.dumps(report.provenance.config, indent=2, ensure_ascii=False),
        style=Markup(_source("report.css")),  # noqa: S704
        lines=report_charts.LINES,
        roles=report_charts.BUDGET_ROLES,
    )


def _section(
    task: TaskReport, scores: Scores, *, threat: Threat, prefix: str, points: int, cards: int
) -> Section:
    """Everything that the template shows of one task."""
    _refuse_others(task, scores)
    worst, _ = worst_case(scores)
    rows = _rows(task, scores, worst)
    groups = [] if task.groups is None else sorted(task.groups.groups, key=_comparable)
    charts = {
        "ap": report_charts.ap_chart(task, rows),
        "curves": report_charts.curves_chart(rows, scores.targets, points=points),
        "scores": report_charts.scores_chart(scores, worst),
    }
    if task.epsilon_curve is not None:
        charts["epsilon"] = report_charts.epsilon_chart(task, task.epsilon_curve, threat)
    if task.smallest_changes is not None and task.smallest_changes.searched:
        charts["smallest"] = report_charts.smallest_chart(task.smallest_changes, threat)
    if any(group.clean for group in groups):
        charts["groups"] = report_charts.groups_chart(groups)
    if task.budget_curve:
        charts["budget"] = report_charts.budget_chart(task)
    factor = _amplification(scores.evidence)
    return Section(
        prefix=prefix,
        name=", ".join(task.positive),
        task=task,
        rows=rows,
        cards=[_card(item, scores, worst, factor) for item in scores.evidence[:cards]],
        factor=factor,
        groups=groups,
        severities=sorted({point.severity for point in _points(task)}),
        corruptions=_corruptions(task),
        universal=None if scores.universal is None else _magnified(scores.universal.delta),
        charts=charts,
    )


def _points(task: TaskReport) -> Sequence[CorruptionPoint]:
    return [] if task.corruptions is None else task.corruptions.points


def _corruptions(task: TaskReport) -> list[tuple[str, list[Cell]]]:
    """Kind by kind the cells of its severities, rising."""
    if task.corruptions is None:
        return []
    kinds: dict[str, list[Cell]] = {}
    for point in sorted(task.corruptions.points, key=lambda it: it.severity):
        lost = (task.clean.ap - point.ap) / task.clean.ap
        kinds.setdefault(point.kind, []).append(Cell(point.ap, min(max(lost, 0), 1)))
    return [(kind, kinds[kind]) for kind in task.corruptions.by_kind]


def _refuse_others(task: TaskReport, scores: Scores) -> None:
    if set(task.attacks) != set(scores.attacked):
        raise DataError(
            f"expected scores under {sorted(task.attacks)}, as in the report, "
            f"got {sorted(scores.attacked)}"
        )
    if task.examples != len(scores):
        raise DataError(f"expected scores of {task.examples} examples, got {len(scores)}")


# --- what the page says ---------------------------------------------------------------------------


def _verdict(task: TaskReport) -> str:
    """One sentence in which every number is a figure of the report."""
    clean, worst, chance = map(ap_text, (task.clean.ap, task.worst_case.ap, task.chance))
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


def _mean_verdict(report: Report) -> str:
    """The same for several tasks, of whose figures the means are judged."""
    chance = fmean(task.chance for task in report.tasks)
    clean, worst = report.mean["clean"], report.mean["worst_case"]
    count = len(report.tasks[0].attacks)
    attacks = f"the worst of {count} attacks" if count > 1 else "the one attack that was run"
    kept = f"{ap_text(worst)} of {ap_text(clean)} mean AP over {len(report.tasks)} tasks"
    if worst <= chance:
        return (
            f"Keeps {kept} under {attacks}: no better than random rankings, "
            f"whose mean AP is {ap_text(chance)}."
        )
    return f"Keeps {kept} under {attacks}; mean chance is {ap_text(chance)}."


def _tally(trust: Trust) -> str:
    """How many checks there are of each status, the gravest first."""
    found: Counter[str] = Counter(check.status for check in trust.checks)
    words = (("fail", "failed"), ("caution", "with caution"), ("pass", "passed"))
    parts = [f"{found[status]} {word}" for status, word in words if found[status]]
    if found["skipped"]:
        parts.append(f"{found['skipped']} skipped")
    checks = "1 check" if len(trust.checks) == 1 else f"{len(trust.checks)} checks"
    return f"{checks}: {', '.join(parts)}" if parts else "no check was run"


def _gravest_first(checks: Sequence[Check]) -> list[Check]:
    order = ("fail", "caution", "pass", "skipped")
    return sorted(checks, key=lambda check: order.index(check.status))


def _comparable(group: GroupFigures) -> float:
    """Sorts groups from the worst on, by the AP that compares; those without figures last."""
    carried = group.worst_case_at_prevalence
    return math.inf if carried is None else carried


def _rows(task: TaskReport, scores: Scores, worst: NDArray[np.float64]) -> list[Row]:
    won, clean_ap = task.worst_case.won, task.clean.ap
    attacks = [
        Row(
            name=name,
            color=ATTACK_COLORS[i % len(ATTACK_COLORS)],
            dash=ATTACK_DASHES[i % len(ATTACK_DASHES)],
            figure=figure,
            logits=scores.attacked[name],
            lost=figure.drop or Difference(value=clean_ap - figure.ap),
            margin_drop=figure.mean_margin_drop,
            settings=", ".join(
                f"{key} {'default' if value is None else value}"
                for key, value in figure.attack.items()
                if key not in ("name", "label")
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


def _at_least(value: float) -> str:
    """As `ap_text`, but never rounded up: what is proven must be true as it is written."""
    text = ap_text(value)
    decimals = len(text.partition(".")[2])
    return text if float(text) <= value else f"{float(text) - 10**-decimals:.{decimals}f}"


def _threat(threat: Threat) -> str:
    """What the attacker may do, in the unit of its norm."""
    if threat.norm == "l0":
        return f"{threat.epsilon:g} pixels, changed at will"
    if threat.norm == "patch":
        return f"a patch of {threat.epsilon:g} x {threat.epsilon:g} pixels, changed at will"
    if threat.norm == "l1":
        return f"L1, epsilon {threat.epsilon:.4g}"
    name = "L-inf" if threat.norm == "linf" else "L2"
    return f"{name}, epsilon {threat.epsilon:.3f} = {255 * threat.epsilon:.4g}/255"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _signed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


# --- pictures -------------------------------------------------------------------------------------


def _amplification(evidence: Sequence[Evidence]) -> int:
    """The whole factor, one for all cards, that takes the largest change to black or white."""
    peak = max((float(np.abs(item.attacked - item.clean).max()) for item in evidence), default=0.0)
    return _factor(peak)


def _factor(peak: float) -> int:
    return max(1, int(0.5 / max(peak, 1 / 255) + 0.01))  # 0.01: float32 of 0.1 is above 0.1


def _magnified(delta: NDArray[np.float32]) -> Magnified:
    factor = _factor(float(np.abs(delta).max()))
    return Magnified(_picture(0.5 + factor * delta), factor)


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
    """(C, H, W) in [0, 1], rounded to 8 bit, as the data URI of a PNG."""
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    content = png(levels, side=PICTURE_SIDE, smallest=True)
    return "data:image/png;base64," + base64.b64encode(content).decode()


# --- the template ---------------------------------------------------------------------------------

_environment = Environment(
    loader=PackageLoader("adap.core.rendering"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters["ap"] = ap_text
_environment.filters["got"] = got_text
_environment.filters["at_least"] = _at_least
_environment.filters["share"] = _share
_environment.filters["said"] = _threat
_environment.filters["words"] = lambda name: name.replace("_", " ")
_environment.filters["signed"] = _signed
_environment.filters["support"] = signoff.support


def _source(name: str) -> str:
    """The text of a file beside the template."""
    assert _environment.loader is not None
    return _environment.loader.get_source(_environment, name)[0]
