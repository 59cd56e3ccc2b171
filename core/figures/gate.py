"""Thresholds judged on the figures of a report: `worst_case_ap >= 0.4`.

    parse            one threshold; refuses what cannot be read
    known_figures    what an audit will be able to compare
    refuse_unknown   before any attack: every threshold names a figure that this audit has
    measured         the figures of a report, by the names that thresholds use
    evaluate         which thresholds are met
    got_text         what was measured, in words

With several tasks a bare name is the mean over them, and `truck.worst_case_ap` is the figure of one
task, named by its positive classes (`car+truck` where there are two). `_low` is the lower end of an
interval; its mean over tasks lies below the lower end of the mean, so it errs on the safe side.
The size of a change is the least over tasks: one task where none was found would make any mean
infinite, however little is needed in another.

A figure that a report lacks meets no threshold, whatever its direction; it is shown as 0. A size of
which no change was found is infinite, and none in JSON. This module imports no torch.
"""

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from adap.core.errors import ConfigError
from adap.core.report import OperatingFigures, Report, TaskReport, ThresholdResult

if TYPE_CHECKING:  # the configuration reads its thresholds with `parse`
    from adap.core.config.audits import AuditConfig
    from adap.core.config.data import Task
from adap.core.thresholds import LEVELS, SIZES, parse

_OPERATING = [name for name in OperatingFigures.model_fields if name != "alarms"]

_CORRUPTION = ("corruption_mean_ap", "corruption_lowest_ap", "corruption_worst_case_ap")
_SMALLEST = (*SIZES, "smallest_kept")
_UNIVERSAL = "universal_ap"
_NEEDS = {
    **dict.fromkeys(_CORRUPTION, "corruptions"),
    **dict.fromkeys(_SMALLEST, "smallest_changes"),
    _UNIVERSAL: "universal",
}
"""By figure: what an audit must ask for to have it."""


def known_figures(config: "AuditConfig", tasks: Sequence["Task"]) -> list[str]:
    """What this audit measures: of all tasks together, then task by task, then the verdict.

    Of a data set without groups nothing is known here, so `group_gap` is among them.
    """
    own = [
        *("clean_ap", "worst_case_ap", "drop", "chance"),
        *(f"{attack.key}_ap" for attack in config.resolved_attacks()),
        *("clean_ap_low", "worst_case_ap_low"),
        *(["certified_floor"] if config.certify != "off" else []),
        *(figure for figure, asked in _NEEDS.items() if getattr(config, asked) is not None),
        *(f"{side}_{name}" for side in ("clean", "worst_case") for name in _OPERATING),
        "group_gap",
    ]
    named = [f"{_task_name(task.positive)}.{figure}" for task in tasks for figure in own]
    return [*own, *named, *(["trust"] if config.resolved_checks() != "off" else [])]


def refuse_unknown(
    config: "AuditConfig", tasks: Sequence["Task"], *, grouped: bool | None = None
) -> None:
    """Raise ConfigError for a threshold on a figure that this audit will not have.

    grouped: whether the data set has groups, where that is known.
    """
    if not config.thresholds:
        return
    known = known_figures(config, tasks)
    for threshold in map(parse, config.thresholds):
        figure = threshold.figure
        kind = figure.rpartition(".")[2]
        if kind == "group_gap" and figure in known and grouped is False:
            raise ConfigError("the threshold on group_gap needs a data set with a `group` column")
        if figure in known:
            continue
        if kind == "certified_floor" and config.certify == "off":
            raise ConfigError(
                "the threshold on certified_floor needs a certified floor, and `certify` is off"
            )
        if kind in _NEEDS and getattr(config, _NEEDS[kind]) is None:
            raise ConfigError(
                f"the threshold on {kind} needs `{_NEEDS[kind]}`, and the audit asks for none"
            )
        if figure == "trust":
            raise ConfigError("the threshold on trust needs a verdict, and `checks` is off")
        near = get_close_matches(figure, known, n=1)
        overall = [name for name in known if "." not in name]
        example = next(name for name in known if "." in name)
        raise ConfigError(
            f"expected a threshold on a figure of this audit, got {figure!r:.80}"
            + (f"; did you mean {near[0]}?" if near else ".")
            + f" It has {', '.join(overall)}, and each of them by task, as in {example}"
        )


def measured(report: Report) -> dict[str, float]:
    """The figures of a report by the names of `known_figures`; what it lacks is left out."""
    by_task = {_task_name(task.positive): dict(_figures(task)) for task in report.tasks}
    first, *others = by_task.values()
    shared = [name for name in first if all(name in other for other in others)]
    found = {name: _of_all(name, [own[name] for own in by_task.values()]) for name in shared}
    for task, own in by_task.items():
        found |= {f"{task}.{name}": value for name, value in own.items()}
    if report.trust is not None:
        found["trust"] = float(LEVELS.index(report.trust.verdict))
    return found


def evaluate(report: Report) -> list[ThresholdResult]:
    """Every threshold of the report's configuration, with what was measured."""
    found = measured(report)
    return [
        ThresholdResult(
            threshold=threshold.text,
            figure=threshold.figure,
            got=_finite(found.get(threshold.figure, 0.0)),
            passed=threshold.figure in found and threshold.met_by(found[threshold.figure]),
        )
        for threshold in map(parse, report.provenance.config.get("thresholds", []))
    ]


def got_text(result: ThresholdResult, digits: str = "") -> str:
    """What was measured, for people: a verdict by its name, a number in this format."""
    if result.got is None:
        return "infinite, as no change was found"
    return LEVELS[int(result.got)] if result.figure == "trust" else format(result.got, digits)


def in_json(figures: dict[str, float]) -> dict[str, float | None]:
    """Figures as JSON can write them."""
    return {name: _finite(value) for name, value in figures.items()}


def _of_all(name: str, of_tasks: Sequence[float]) -> float:
    """What a bare name stands for: the least of sizes, and the mean of everything else."""
    return min(of_tasks) if name in SIZES else math.fsum(of_tasks) / len(of_tasks)


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def _figures(task: TaskReport) -> Iterator[tuple[str, float]]:
    yield "clean_ap", task.clean.ap
    yield "worst_case_ap", task.worst_case.ap
    yield "drop", task.clean.ap - task.worst_case.ap
    yield "chance", task.chance
    for key, attack in task.attacks.items():
        yield f"{key}_ap", attack.ap
    for side, figure in (("clean", task.clean), ("worst_case", task.worst_case)):
        if figure.interval is not None:
            yield f"{side}_ap_low", figure.interval.low
        if task.operating is not None:
            for name in _OPERATING:
                yield f"{side}_{name}", getattr(getattr(task.operating, side), name)
    if task.certified_floor is not None:
        yield "certified_floor", task.certified_floor.ap
    if task.corruptions is not None:
        found = task.corruptions
        yield from zip(_CORRUPTION, (found.mean, found.lowest.ap, found.worst_case.ap), strict=True)
    if task.smallest_changes is not None and task.smallest_changes.kept_at_epsilon is not None:
        small = task.smallest_changes
        for name, size in zip(SIZES, (small.least, small.median), strict=True):
            yield name, math.inf if size is None else size
        yield "smallest_kept", task.smallest_changes.kept_at_epsilon
    if task.universal is not None:
        yield _UNIVERSAL, task.universal.ap
    if task.groups is not None and task.groups.worst_case_gap is not None:
        yield "group_gap", task.groups.worst_case_gap.difference.value


def _task_name(positive: Sequence[str]) -> str:
    return "+".join(positive)
