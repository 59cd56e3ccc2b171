"""A report as a Markdown model card, to be read in a minute and kept beside the model.

It holds what the audit knows: what was attacked and how, what is left and how sure that is, whether
the audit can be trusted, and what reproduces it (Mitchell et al. 2019, "Model Cards for Model
Reporting": model details, factors, metrics, evaluation data, quantitative analyses, caveats). What
only the model's maker can write, such as its intended use, is there where it was stated.

Names come from strangers: `_text` leaves none of them a character that Markdown or HTML would read.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from adap.core.figures.gate import got_text, measured
from adap.core.rendering import signoff
from adap.core.report import (
    APFigure,
    CorruptionFigures,
    Difference,
    Groups,
    Interval,
    Provenance,
    Report,
    SmallestFigures,
    TaskReport,
    ThresholdResult,
    UniversalFigures,
)

# What Markdown reads inside a line, with the colon and the dot that make bare addresses links.
_READ = re.compile(r"[\\`*_{}\[\]()#|~!$@:]|(?<=www)\.")
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def card(report: Report) -> str:
    """The card as GitHub-flavoured Markdown."""
    return "\n".join(_lines(report)) + "\n"


def verdict(task: TaskReport) -> str:
    """One sentence on a task, in which every number is a figure of the report."""
    clean, worst, chance = task.clean.ap, task.worst_case.ap, task.chance
    if clean <= chance:
        return (
            f"Ranks no better than chance before any attack: AP {clean:.3f}, chance {chance:.3f}."
        )
    count = len(task.attacks)
    attacks = f"the worst of {count} attacks" if count > 1 else "the one attack that was run"
    kept = f"Keeps {worst:.3f} of {clean:.3f} AP under {attacks}"
    interval = task.worst_case.interval
    if worst <= chance:
        return f"{kept}: no better than a random ranking, whose AP is {chance:.3f}."
    if interval is not None and interval.low <= chance:
        return f"{kept}: not clearly better than a random ranking, whose AP is {chance:.3f}."
    return f"{kept}; chance is {chance:.3f}."


def _lines(report: Report) -> Iterator[str]:
    provenance = report.provenance
    yield f"# {_text(provenance.model.name)}: average precision under attack"
    yield ""
    yield from _summary(report)
    yield from _table(("", "audited"), _subject(report))
    if report.thresholds:
        yield from _thresholds(report)
    if len(report.tasks) > 1:
        yield from ("## All tasks", "", "Means over the tasks below.", "")
        yield from _table(("", "AP"), [(_text(k), f"{v:.4f}") for k, v in report.mean.items()])
    for task in report.tasks:
        yield from _task(task)
    if report.trust is not None:
        yield from ("## Can the audit be trusted", "", f"**{report.trust.verdict.capitalize()}.**")
        yield ""
        checks = [(_text(c.name), c.status, _text(c.message)) for c in report.trust.checks]
        yield from _table(("check", "status", "found"), checks)
    if report.warnings:
        yield from ("## What to know before relying on it", "")
        yield from (f"- {_text(warning)}" for warning in report.warnings)
        yield ""
    yield from _signoff(report)
    yield from _reproduction(provenance)


def _summary(report: Report) -> Iterator[str]:
    if len(report.tasks) == 1:
        yield f"**{verdict(report.tasks[0])}**"
    else:
        mean = report.mean
        yield (
            f"**Keeps {mean['worst_case']:.3f} of {mean['clean']:.3f} AP in the worst case, "
            f"as a mean over {len(report.tasks)} tasks.**"
        )
    if report.trust is not None:
        yield f"The audit itself: {report.trust.verdict}."
    if report.thresholds:
        met = sum(result.passed for result in report.thresholds)
        yield f"Thresholds met: {met} of {len(report.thresholds)}."
    yield ""


def _signoff(report: Report) -> Iterator[str]:
    if report.statement is not None:
        yield from ("## Statement", "", "As it was handed in with the audit; not measured.", "")
        yield from _table(("", "stated"), [(n, _text(t)) for n, t in signoff.stated(report)])
    yield from ("## What was not assessed", "")
    yield from (f"- {_text(it.what)}" for it in report.not_assessed)
    yield from ("", "## Images and model behind the figures", "")
    yield from _table(("", "found"), [(n, _text(t)) for n, t in signoff.origin(report)])
    if report.clauses:
        yield from ("## Clauses that this report supports an answer to", "")
        yield from ("Evidence only: whether a clause is met is not said here.", "")
        rows = [
            (_text(it.document), _text(it.clause), _text(it.asks), _text(signoff.support(it)))
            for it in report.clauses
        ]
        yield from _table(("document", "clause", "asks for", "supported by"), rows)


def _subject(report: Report) -> Iterator[tuple[str, str]]:
    provenance = report.provenance
    model, dataset = provenance.model, provenance.dataset
    threat = provenance.config["threat"]
    yield "model", f"{_text(model.name)} ({_text(model.architecture)})"
    split = "every example" if dataset.split is None else f"{dataset.split} split"
    yield "data set", f"{_text(dataset.name)}, {split}"
    for what, reading in (("model file", model.reading), ("data set", dataset.reading)):
        if reading is not None:
            said = [reading.summary, *(fact.message for fact in reading.cautions)]
            yield f"{what} as read", _text("; ".join(said))
    yield "threat model", f"{threat['norm']}, epsilon {threat['epsilon']:.4g}, pixels in 0 to 1"
    if (steps := signoff.pipeline(report)) is not None:
        yield "attacked through", steps
    if provenance.surrogate is not None:
        surrogate = provenance.surrogate
        yield "surrogate model", f"{_text(surrogate.name)} ({_text(surrogate.architecture)})"
    yield "made", f"{_text(provenance.created_at)} with adap {_text(_adap(provenance))}"


def _thresholds(report: Report) -> Iterator[str]:
    found = measured(report)

    def got(result: ThresholdResult) -> str:
        return got_text(result, ".4f") if result.figure in found else "none"

    yield from ("## Thresholds", "")
    yield from _table(
        ("asked for", "got", ""),
        [
            (_text(result.threshold), got(result), "met" if result.passed else "**not met**")
            for result in report.thresholds
        ],
    )


def _task(task: TaskReport) -> Iterator[str]:
    yield f"## {_text(' + '.join(task.positive))} against the rest"
    yield ""
    yield (
        f"{task.positives:,} positives among {task.examples:,} examples. A random ranking has AP "
        f"{task.chance:.4f}, the fully inverted one {task.floor:.4f}."
    )
    if task.clusters is not None:
        yield (
            f"Intervals draw whole clusters: {task.clusters.clusters:,}, of which "
            f"{task.clusters.with_positives:,} hold positives."
        )
    yield ""
    clean = task.clean
    rows: list[tuple[str, APFigure, Difference | None]] = [("clean", clean, None)]
    rows += [
        (_text(key), attack, attack.drop or Difference(value=clean.ap - attack.ap))
        for key, attack in task.attacks.items()
    ]
    worst = task.worst_case
    rows += [("**worst case**", worst, worst.drop or Difference(value=clean.ap - worst.ap))]
    yield from _table(
        ("", "AP", _level(clean.interval), "lost", "positives tied"),
        [(n, f"{f.ap:.4f}", _range(f.interval), _lost(d), str(f.tied)) for n, f, d in rows],
    )
    won = ", ".join(f"{_text(name)} {count:,}" for name, count in worst.won.items())
    yield from (f"Images on which each was strongest: {won}.", "")
    yield from _floor(task)
    if task.epsilon_curve is not None:
        yield from (f"AP under {_text(task.epsilon_curve.attack['name'])} at rising epsilons:", "")
        yield from _figures("epsilon", [(f"{p.epsilon:.4g}", p) for p in task.epsilon_curve.points])
    if task.corruptions is not None:
        yield from _corruptions(task.corruptions)
    if task.smallest_changes is not None:
        yield from _smallest(task.smallest_changes)
    if task.universal is not None:
        yield from _universal(task.universal)
    if task.budget_curve:
        yield from ("AP when only so many images may be changed:", "")
        yield from _table(
            ("images", "positives only", "negatives only", "both"),
            [
                (str(p.images), *map(_figure, (p.hide_positives, p.push_negatives, p.both)))
                for p in task.budget_curve
            ],
        )
    if task.groups is not None:
        yield from _groups(task.groups)


def _smallest(found: SmallestFigures) -> Iterator[str]:
    if found.kept_at_epsilon is None:
        yield f"No positive is among the first {found.k:,}, so no change moves one out of them."
        yield ""
        return
    median = "none for half of them" if found.median is None else f"median {found.median:.4g}"
    least = "" if found.least is None else f", least {found.least:.4g}"
    yield (
        f"Smallest changes ({found.norm}) that move a positive out of the first {found.k:,}, as "
        f"found, not proven: {median}{least}; at the epsilon of the threat "
        f"{found.kept_at_epsilon:.0%} of {found.searched:,} stay (of {found.among:,} positives "
        f"among them)."
    )
    yield ""


def _universal(found: UniversalFigures) -> Iterator[str]:
    yield (
        f"One perturbation that all images share, as found, not proven, and no part of the worst "
        f"case: AP {found.ap:.4f} {_range(found.interval)}, searched on {found.searched:,} images."
    )
    yield ""


def _corruptions(found: CorruptionFigures) -> Iterator[str]:
    lowest, worst = found.lowest, found.worst_case
    yield (
        f"AP under common corruptions (published for {found.parameters}), which are no part of the "
        f"threat: mean {found.mean:.4f}; lowest {lowest.ap:.4f}, {lowest.kind} at severity "
        f"{lowest.severity}; every image at its worst {worst.ap:.4f} {_range(worst.interval)}."
    )
    yield ""
    severities = sorted({point.severity for point in found.points})
    ap = {(point.kind, point.severity): point.ap for point in found.points}
    yield from _table(
        ("corruption", *(f"severity {severity}" for severity in severities), "mean"),
        [
            (kind, *(f"{ap[kind, severity]:.4f}" for severity in severities), f"{mean:.4f}")
            for kind, mean in found.by_kind.items()
        ],
    )


def _floor(task: TaskReport) -> Iterator[str]:
    floor = task.certified_floor
    if floor is not None:
        yield (
            f"No perturbation of the threat model takes the AP below {floor.ap:.4f}, as "
            f"{_text(floor.method)} proves; the attacks took it to {task.worst_case.ap:.4f}. The "
            f"truth is in [{floor.ap:.4f}, {task.worst_case.ap:.4f}]."
        )
        yield ""
    elif task.no_certified_floor is not None:
        yield from (f"No certified floor: {_text(task.no_certified_floor)}", "")


def _groups(groups: Groups) -> Iterator[str]:
    yield from ("AP by group, carried over to the prevalence of the whole task:", "")
    yield from _table(
        ("group", "examples", "positives", "clean", "worst case"),
        [
            (
                _text(group.group),
                f"{group.examples:,}",
                f"{group.positives:,}",
                _figure(group.clean_at_prevalence),
                _figure(group.worst_case_at_prevalence),
            )
            for group in groups.groups
        ],
    )
    gap = groups.worst_case_gap
    if gap is not None:
        yield (
            f"Worst-case gap {_lost(gap.difference)}, from {_text(gap.best)} to {_text(gap.worst)}."
        )
        yield ""


def _reproduction(provenance: Provenance) -> Iterator[str]:
    yield from ("## Reproduce", "")
    hashes = [(name, getattr(provenance, name)) for name in ("model", "dataset", "surrogate")]
    yield from _table(
        ("", ""),
        [
            *((f"{n} sha256", _text(part.sha256)) for n, part in hashes if part is not None),
            ("configuration sha256", _text(provenance.config_sha256)),
            ("scores sha256", _text(provenance.scores_sha256)),
            ("seed", str(provenance.seed)),
            *((_text(name), _text(value)) for name, value in provenance.versions.items()),
            ("device", _text(provenance.device)),
        ],
    )
    config = json.dumps(provenance.config, indent=2).replace("<", "\\u003c")
    yield from ("<details>", "<summary>Configuration</summary>", "")
    # A fence ends at a line of backticks only, and no line of indented JSON is one.
    yield from ("```json", config, "```", "", "</details>", "")
    yield (
        "`adap report verify` recomputes every figure from the stored scores; attacking again with "
        "the configuration, on the same model and data set, gives the scores."
    )


def _figures(name: str, rows: Sequence[tuple[str, APFigure]]) -> Iterator[str]:
    level = _level(rows[0][1].interval if rows else None)
    yield from _table(
        (name, "AP", level), [(n, f"{f.ap:.4f}", _range(f.interval)) for n, f in rows]
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Cells as they are: whoever fills them has escaped them. A blank line ends it."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _level(interval: Interval | None) -> str:
    return "interval" if interval is None else f"{100 * interval.level:.4g} % interval"


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"


def _lost(difference: Difference | None) -> str:
    if difference is None:
        return ""
    interval = "" if difference.interval is None else f" ({_range(difference.interval)})"
    return f"{difference.value:.4f}{interval}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _adap(provenance: Provenance) -> str:
    return provenance.versions.get("adap", "of unknown version")


def _text(value: str) -> str:
    """Text that Markdown, in and out of a table, shows letter by letter on one line."""
    shown = _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", value)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _READ.sub(lambda found: f"\\{found[0]}", shown)
