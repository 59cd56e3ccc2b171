"""The report of an audit: the figures of all its tasks, and what a reader must know of them."""

from collections.abc import Sequence

import numpy as np

from adap.core.config.audits import AuditConfig
from adap.core.config.threats import Threat
from adap.core.figures import gate
from adap.core.figures.chance import chance_doubt
from adap.core.figures.clauses import supported
from adap.core.figures.direction import direction_doubt
from adap.core.figures.scope import USES_GRADIENTS, not_assessed
from adap.core.report import (
    AuditedImages,
    Provenance,
    Report,
    TaskReport,
    Trust,
)
from adap.core.statement import Statement

FEW_POSITIVES = 50
FEW_CLUSTERS = 20  # that hold positives

BALANCED = 0.3  # prevalence above which the data set is more balanced than most that are ranked


def build_report(
    tasks: Sequence[TaskReport],
    *,
    config: AuditConfig,
    provenance: Provenance,
    doubts: Sequence[str] = (),
    trust: Trust | None = None,
    images: AuditedImages | None = None,
    statement: Statement | None = None,
) -> Report:
    """The report of an audit: the figures of its tasks, their means, and what a reader must know.

    doubts: what the files behind it give cause to, each a sentence; they stand first.
    images: what the audited images show.  statement: what is stated of the audit, carried along.
    """
    means = {
        "clean": [task.clean.ap for task in tasks],
        "worst_case": [task.worst_case.ap for task in tasks],
        **{
            key: [task.attacks[key].ap for task in tasks]
            for key in tasks[0].attacks
            if all(key in task.attacks for task in tasks)
        },
    }
    certified = [task.certified_floor.ap for task in tasks if task.certified_floor is not None]
    if len(certified) == len(tasks):
        means["certified_floor"] = certified
    universal = [task.universal.ap for task in tasks if task.universal is not None]
    if len(universal) == len(tasks):
        means["universal"] = universal
    warnings = list(doubts)
    if config.threat.epsilon == 0:
        warnings.append("Epsilon is 0: no pixel may change, so every figure equals the clean one.")
    for task in tasks:
        who = f"{', '.join(task.positive)}: " if len(tasks) > 1 else ""
        doubt = direction_doubt(task, provenance.model)
        said = [*([] if doubt is None else [doubt]), *_warnings(task, config.threat)]
        warnings += [who + warning for warning in said]
    report = Report(
        tasks=list(tasks),
        mean={name: float(np.mean(values)) for name, values in means.items()},
        warnings=warnings,
        trust=trust,
        statement=statement,
        images=images,
        not_assessed=not_assessed(tasks, config=config, trust=trust, images=images),
        provenance=provenance,
    )
    report = report.model_copy(update={"thresholds": gate.evaluate(report)})
    return report.model_copy(update={"clauses": supported(report)})


def _warnings(task: TaskReport, threat: Threat) -> list[str]:
    white_box = {n: f.ap for n, f in task.attacks.items() if f.attack["name"] in USES_GRADIENTS}
    others = {n: f.ap for n, f in task.attacks.items() if n not in white_box}
    warnings = []
    if threat.epsilon > 0 and all(figure.mean_margin_drop <= 0 for figure in task.attacks.values()):
        warnings.append(
            "No attack lowered the margins at all. That is a sign of blocked gradients, "
            "not of a robust model."
        )
    if task.positives < FEW_POSITIVES:
        clean, worst = task.clean.interval, task.worst_case.interval
        assert clean is not None
        assert worst is not None
        warnings.append(
            f"Only {task.positives} positives, so the figures are uncertain: {clean.level:.0%} "
            f"intervals {clean.low:.2f} to {clean.high:.2f} (clean) and {worst.low:.2f} to "
            f"{worst.high:.2f} (worst case)."
        )
    if task.clusters is not None and task.clusters.with_positives < FEW_CLUSTERS:
        warnings.append(
            f"Positives come from only {task.clusters.with_positives} clusters. Intervals draw "
            f"whole clusters, and from fewer than {FEW_CLUSTERS} they are unstable and may be too "
            "narrow."
        )
    if task.clean.tied:
        warnings.append(
            f"{task.clean.tied} of {task.positives} positives have exactly the score of "
            "some negative before any attack, and are ranked below it. Saturated or rounded "
            "outputs tie what raw logits keep apart."
        )
    if doubt := chance_doubt(task):
        warnings.append(doubt)
    if task.prevalence > BALANCED:
        warnings.append(
            f"{task.prevalence:.0%} of the examples are positive. AP falls with the share "
            "of positives: expect less where they are rarer."
        )
    if threat.epsilon > 0 and task.worst_case.ap - task.floor < 0.01 * (1 - task.floor):
        warnings.append(
            f"The attacks inverted the ranking, worst-case AP {task.worst_case.ap:.3f} is "
            f"at its floor {task.floor:.3f}. A smaller epsilon tells models apart."
        )
    if task.searched_on is not None:
        found = {name: count for name, count in task.worst_case.won.items() if name != "clean"}
        counts = ", ".join(f"{name} on {count:,}" for name, count in found.items())
        warnings.append(
            f"The gradient hides something, so the search went on by "
            f"{' and '.join(task.searched_on.attacks)}. {task.searched_on.reason} The worst case "
            f"came from {max(found, key=found.__getitem__)} on most of the {task.examples:,} "
            f"images ({counts})."
        )
    if white_box and others:
        strongest = min(others, key=others.__getitem__)
        if others[strongest] < min(white_box.values()) - 0.01:
            warnings.append(
                f"{strongest}, which does not see the model's gradients, did more damage (AP "
                f"{others[strongest]:.3f}) than every attack that does "
                f"({min(white_box.values()):.3f}). The gradients mislead those attacks, so the "
                "robust figures may be too high."
            )
    return warnings
