"""Scores that no network gave, and the report of them with everything that a report can hold."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adap.core.config import AuditConfig, OperatingPoint
from adap.core.figures import gate
from adap.core.figures.budget import budget_curve
from adap.core.figures.groups import group_figures
from adap.core.figures.intervals import percentile_interval, resampled_ap
from adap.core.figures.operating import operating_figures
from adap.core.figures.ranking import average_precision, count_ties, floor_ap
from adap.core.figures.worst_case import worst_case
from adap.core.report import (
    APFigure,
    AttackFigure,
    CertifiedFloor,
    Check,
    DatasetProvenance,
    Difference,
    EpsilonCurve,
    EpsilonPoint,
    ModelProvenance,
    Provenance,
    Report,
    TaskReport,
    Trust,
    WorstCase,
)
from adap.core.scores import Scores, save_scores
from adap.reading import Reading

Floats = np.ndarray[Any, np.dtype[np.float64]]

CONFIG: dict[str, Any] = {
    "threat": {"epsilon": 0.1},
    "attacks": ["pgd", {"name": "apgd", "label": "strong"}],
    "epsilons": [0.05, 0.1],
    "budgets": [1, 3],
    "seed": 7,
}
CHECKS = [
    Check(name="converged", status="pass", message="Twice the steps change little.", figures={}),
    Check(name="monotone", status="caution", message="It rises once.", figures={"rise": 0.06}),
    Check(name="transfer", status="skipped", message="There is no surrogate.", figures={}),
    Check(
        name="repeatable",
        status="fail",
        message="The scores differ.",
        figures={"largest_change": 0.9, "share_of_spread": 0.5},
    ),
]


def scores_of(examples: int = 60, *, seed: int = 0) -> Scores:
    """Rounded logits, so that some tie; of three groups one has no positives."""
    random = np.random.default_rng(seed)
    targets = (np.arange(examples) % 3 == 0).astype(np.int64)
    signs = 2 * targets - 1
    clean = (random.normal(size=examples) + 2 * targets).round(2)

    def pushed(most: float) -> Floats:
        return (clean - signs * random.uniform(-0.2, most, examples)).round(2)

    attacked = {"pgd": pushed(1.0), "strong": pushed(2.0)}
    return Scores(
        example_ids=[f"{i}.png" for i in range(examples)],
        targets=targets,
        clean=clean,
        attacked=attacked,
        curve={0.05: pushed(0.5), 0.1: pushed(1.5)},
        bounds=np.stack([clean - 2.5, clean + 2.5]),
        groups=[("day", "night", "<dusk>|")[i % 6 // 2] for i in range(examples)],
    )


def task_of(scores: Scores, *, positive: Sequence[str] = ("truck",), **changes: Any) -> TaskReport:
    """The figures by our own functions."""
    targets, (worst, won) = scores.targets, worst_case(scores)
    assert scores.bounds is not None
    lowest = np.where(targets == 1, *scores.bounds)
    logits = {"clean": scores.clean, "worst": worst, "floor": lowest, **scores.attacked}
    logits |= {str(epsilon): values for epsilon, values in scores.curve.items()}
    resampled = resampled_ap(logits, targets, generator=np.random.default_rng(3))

    def figure(name: str) -> dict[str, Any]:
        return {
            "ap": average_precision(logits[name], targets),
            "interval": percentile_interval(resampled[name]),
            "tied": count_ties(logits[name], targets),
        }

    def drop(name: str) -> Difference:
        return Difference(
            value=average_precision(scores.clean, targets)
            - average_precision(logits[name], targets),
            interval=percentile_interval(resampled["clean"] - resampled[name]),
        )

    config = AuditConfig.model_validate(CONFIG)
    signs = 2 * targets - 1
    pairs = scores.bounds[0][targets == 1][:, None] > scores.bounds[1][targets == 0]
    return TaskReport(
        positive=list(positive),
        examples=len(scores),
        positives=int(targets.sum()),
        prevalence=float(targets.mean()),
        chance=float(targets.mean()),
        floor=floor_ap(int(targets.sum()), len(scores)),
        clean=APFigure(**figure("clean")),
        attacks={
            attack.key: AttackFigure(
                **figure(attack.key),
                attack=attack.as_json(),
                mean_margin_drop=float(
                    (signs * (scores.clean - scores.attacked[attack.key])).mean()
                ),
                drop=drop(attack.key),
            )
            for attack in config.resolved_attacks()
        },
        worst_case=WorstCase(**figure("worst"), won=won, drop=drop("worst")),
        certified_floor=CertifiedFloor(
            **figure("floor"), method="crown_ibp", proven_pairs=float(pairs.mean())
        ),
        epsilon_curve=EpsilonCurve(
            attack={"name": "apgd"},
            points=[EpsilonPoint(**figure(str(e)), epsilon=e) for e in scores.curve],
        ),
        budget_curve=budget_curve(scores.clean, worst, targets, budgets=config.budgets),
        groups=group_figures(
            scores.clean, worst, targets, scores.groups or [], generator=np.random.default_rng(4)
        ),
        resamples=1000,
        operating=operating_figures(scores.clean, worst, targets, at=OperatingPoint()),
        **changes,
    )


def report_of(
    tasks: Sequence[TaskReport],
    *,
    required: Sequence[str] = ("worst_case_ap >= 0.1", "worst_case_ap >= 0.9"),
    name: str = "a model",
    scores_sha256: str = "c" * 64,
    **changes: Any,
) -> Report:
    """The report of these tasks, its thresholds evaluated."""
    config = AuditConfig.model_validate({**CONFIG, "thresholds": list(required)})
    keys = list(tasks[0].attacks)
    floors = [task.certified_floor.ap for task in tasks if task.certified_floor is not None]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    report = Report(
        tasks=list(tasks),
        mean={
            "clean": mean([task.clean.ap for task in tasks]),
            "worst_case": mean([task.worst_case.ap for task in tasks]),
            **{key: mean([task.attacks[key].ap for task in tasks]) for key in keys},
            **({"certified_floor": mean(floors)} if len(floors) == len(tasks) else {}),
        },
        provenance=Provenance(
            model=ModelProvenance(id="mdl_1", name=name, sha256="a" * 64, architecture="cnn"),
            dataset=DatasetProvenance(
                id="ds_1",
                name=name,
                sha256="b" * 64,
                split="test",
                reading=Reading(summary="zip: classes from folders", steps=["Left .DS_Store out."]),
            ),
            surrogate=None,
            config=config.as_json(),
            config_sha256=config.sha256(),
            scores_sha256=scores_sha256,
            seed=config.seed,
            versions={"adap": "0.1.0", "torch": "2.14.1"},
            device="cpu",
            created_at="2026-09-03T14:12:08+02:00",
        ),
        **{
            "warnings": ["Only 20 positives."],
            "trust": Trust(verdict="not trustworthy", checks=CHECKS),
            **changes,
        },
    )
    return report.model_copy(update={"thresholds": gate.evaluate(report)})


def stored(
    folder: Path, *, tasks: int = 1, required: Sequence[str] = ("worst_case_ap >= 0.1",)
) -> tuple[Path, Path]:
    """An audit's report.json and scores.safetensors, which belong together."""
    scores = [scores_of(seed=seed) for seed in range(tasks)]
    path = folder / "scores.safetensors"
    save_scores(scores, path)
    report = report_of(
        [task_of(own, positive=[f"class {i}"]) for i, own in enumerate(scores)],
        required=required,
        scores_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    (folder / "report.json").write_text(report.model_dump_json())
    return folder / "report.json", path
