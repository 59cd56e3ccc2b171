"""Reports and scores to make pages of, and a parser that reads a page back."""

from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np

from adap.core.config import AuditConfig, OperatingPoint
from adap.core.figures.operating import ap_at_prevalence, operating_figures
from adap.core.figures.ranking import average_precision, floor_ap
from adap.core.report import (
    APFigure,
    AttackFigure,
    BudgetPoint,
    CertifiedFloor,
    Check,
    DatasetProvenance,
    Difference,
    EpsilonCurve,
    EpsilonPoint,
    GroupFigures,
    GroupGap,
    Groups,
    Interval,
    ModelProvenance,
    Provenance,
    Report,
    Status,
    TaskReport,
    ThresholdResult,
    Trust,
    Verdict,
    WorstCase,
)
from adap.core.scores import Evidence, Scores
from tests.core.drawings import Drawing, drawings

HOSTILE = [
    "</script><script>window.pwned=1</script>",
    "<!--<script>",
    "\"><img src=x onerror='window.pwned=1'>",
    "<a href='javascript:window.pwned=1'>&lt;b&gt;</a>",
    "{{ 7 * 7 }} %{y} $\\alpha$ \u202e&amp; back`tick",
    "--worst",
]


class Element:
    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes, self.pieces = tag, attributes, list[str]()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def words(self) -> str:
        """The text as a reader sees it: pieces apart, whatever white space the source has."""
        return " ".join(" ".join(self.pieces).split())


class Page(HTMLParser):
    """A page as a browser's parser would see it: elements in order, each with all its text."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.source = page
        self.feed(page)
        self.close()
        assert self.open == [], "elements that nobody closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.pieces.append(data)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements of this tag whose attributes hold these words; `class_` for class."""
        return [
            element
            for element in self.elements
            if element.tag == tag
            and all(
                value in element.attributes.get(name.rstrip("_"), "").split()
                for name, value in attributes.items()
            )
        ]

    def one(self, tag: str, **attributes: str) -> Element:
        (element,) = self.all(tag, **attributes)
        return element

    @property
    def charts(self) -> dict[str, Drawing]:
        """By id, those of every task."""
        return drawings(self.source)

    @property
    def ids(self) -> list[str]:
        return [e.attributes["id"] for e in self.elements if "id" in e.attributes]


def scores_of(
    examples: int,
    *,
    attacks: tuple[str, ...] = ("pgd", "apgd", "transfer"),
    evidence: int = 3,
    shape: tuple[int, int, int] = (1, 8, 8),
    share: float = 0.2,
    ids: tuple[str, ...] = (),
) -> Scores:
    """Normal logits, all distinct, that each attack moves towards the other class."""
    rng = np.random.default_rng(0)
    targets = (np.arange(examples) < share * examples).astype(np.int64)
    clean = rng.normal(size=examples) + 2 * targets
    push = (2 * targets - 1) * rng.uniform(0, 2, (len(attacks), examples))
    attacked = {name: clean - push[i] for i, name in enumerate(attacks)}
    example_ids = [*ids, *(f"{i}.png" for i in range(len(ids), examples))]
    before = rng.uniform(0, 1, (evidence, *shape)).astype(np.float32)
    after = np.clip(before + rng.uniform(-0.1, 0.1, before.shape), 0, 1).astype(np.float32)
    return Scores(
        example_ids=example_ids,
        targets=targets,
        clean=clean,
        attacked=attacked,
        evidence=[
            Evidence(
                example_id=example_ids[i],
                attack=attacks[0],
                clean_logit=float(clean[i]),
                attacked_logit=float(attacked[attacks[0]][i]),
                clean=before[i],
                attacked=after[i],
            )
            for i in range(evidence)
        ],
    )


def worst_of(scores: Scores) -> np.ndarray:
    return np.array(
        [
            (min if target else max)(logits)
            for target, *logits in zip(
                scores.targets, scores.clean, *scores.attacked.values(), strict=True
            )
        ]
    )


def report_of(
    scores: Scores,
    *,
    model: str = "a model",
    dataset: str = "a data set",
    positive: str = "truck",
    warnings: tuple[str, ...] = (),
    interval: Interval | None = None,
    **figures: float,
) -> Report:
    """The report of these scores; `figures` overrides clean, worst_case or chance."""
    positives, examples = int(scores.targets.sum()), len(scores)
    clean = figures.get("clean", average_precision(scores.clean, scores.targets))
    worst = figures.get("worst_case", average_precision(worst_of(scores), scores.targets))
    config = AuditConfig.model_validate({"threat": {"epsilon": 0.1}})
    return Report(
        tasks=[
            TaskReport(
                positive=[positive],
                examples=examples,
                positives=positives,
                prevalence=positives / examples,
                chance=figures.get("chance", positives / examples),
                floor=floor_ap(positives, examples),
                clean=APFigure(ap=clean, interval=interval),
                attacks={
                    name: AttackFigure(
                        ap=average_precision(logits, scores.targets),
                        interval=interval,
                        attack={"name": name, "steps": 10, "step_size": None},
                        mean_margin_drop=1.25,
                    )
                    for name, logits in scores.attacked.items()
                },
                worst_case=WorstCase(ap=worst, interval=interval, won={"clean": examples}, tied=0),
            )
        ],
        mean={"clean": clean, "worst_case": worst},
        warnings=list(warnings),
        provenance=Provenance(
            model=ModelProvenance(id="mdl_1", name=model, sha256="a" * 64, architecture="cnn"),
            dataset=DatasetProvenance(id="ds_1", name=dataset, sha256="b" * 64, split="test"),
            surrogate=None,
            config=config.as_json() | {"note": model},
            config_sha256=config.sha256(),
            scores_sha256="c" * 64,
            seed=7,
            versions={"adap": "0.1.0"},
            device="cpu",
            created_at="2026-09-03T14:12:08+00:00",
        ),
    )


# --- a report in which nothing is absent ----------------------------------------------------------

CHECKS = (
    Check(
        name="converged",
        status="pass",
        message="Twice the steps lower the AP by 0.002, at most 0.01 is allowed.",
        figures={"ap": 0.614, "ap_doubled": 0.612},
    ),
    Check(
        name="reaches_floor",
        status="pass",
        message="At an epsilon of 0.5 the AP is 0.052, the floor.",
        figures={"ap": 0.0521, "floor": 0.0518},
    ),
    Check(
        name="noise_weaker",
        status="pass",
        message="Noise of the same size leaves an AP of 0.93, PGD 0.63.",
        figures={"noise": 0.931, "pgd": 0.628},
    ),
    Check(
        name="monotone",
        status="pass",
        message="The AP falls at each of 5 epsilons.",
        figures={"largest_rise": 0.0},
    ),
    Check(
        name="gradients",
        status="caution",
        message="The gradient is zero at 3.1 % of the positives: no attack by gradient moves them.",
        figures={"zero_positives": 0.031, "zero_negatives": 0.002, "nan": 0.0},
    ),
    Check(
        name="repeatable",
        status="fail",
        message="The same images score differently each time, by 0.31 in the mean.",
        figures={"mean_change": 0.31},
    ),
    Check(
        name="black_box_weaker",
        status="skipped",
        message="No surrogate model was named.",
        figures={},
    ),
)

ABSENT: dict[Verdict, tuple[Status, ...]] = {
    "trustworthy": ("caution", "fail"),
    "caution": ("fail",),
    "not trustworthy": (),
}


def around(value: float, radius: float = 0.05) -> Interval:
    return Interval(low=max(value - radius, 0), high=min(value + radius, 1), level=0.95)


def figure_of(value: float) -> APFigure:
    return APFigure(ap=value, interval=around(value))


def rich_task(task: TaskReport, scores: Scores, *, groups: Sequence[str]) -> TaskReport:
    """The task with everything that it may have; what the scores do not tell is made up."""
    clean, worst = task.clean.ap, task.worst_case.ap
    # Positives are few in the first groups, many in the last.
    of_groups = np.arange(len(scores)) % len(groups)
    of_groups[(scores.targets == 0) & (np.arange(len(scores)) % 7 < 3)] = 0
    found = []
    for i, group in enumerate(groups):
        chosen = of_groups == i
        targets = scores.targets[chosen]
        logits = {"clean": scores.clean[chosen] - 0.2 * i, "worst": worst_of(scores)[chosen]}
        shift = 0.3 * i * targets  # later groups are ranked worse
        ap = {name: average_precision(z - shift, targets) for name, z in logits.items()}
        carried = {
            name: ap_at_prevalence(z - shift, targets, prevalence=task.prevalence)
            for name, z in logits.items()
        }
        found.append(
            GroupFigures(
                group=group,
                examples=int(chosen.sum()),
                positives=int(targets.sum()),
                clean=figure_of(ap["clean"]),
                worst_case=figure_of(ap["worst"]),
                clean_at_prevalence=carried["clean"],
                worst_case_at_prevalence=carried["worst"],
            )
        )
    alone = GroupFigures(
        group="seen once",
        examples=1,
        positives=1,
        clean=None,
        worst_case=None,
        clean_at_prevalence=None,
        worst_case_at_prevalence=None,
    )

    def gap(figure: str) -> GroupGap:
        ordered = sorted(found, key=lambda it: getattr(it, figure))
        value = getattr(ordered[-1], figure) - getattr(ordered[0], figure)
        return GroupGap(
            best=ordered[-1].group,
            worst=ordered[0].group,
            difference=Difference(value=value, interval=around(value, 0.03)),
        )

    fall = clean - worst
    epsilons = {0.025: 0.2, 0.05: 0.45, 0.1: 0.97, 0.15: 1.01, 0.2: 1.02}
    budgets = (1, 2, 5, 10, 20, 50, 100)
    return task.model_copy(
        update={
            "clean": figure_of(clean),
            "attacks": {
                name: figure.model_copy(
                    update={
                        "interval": around(figure.ap),
                        "drop": Difference(
                            value=clean - figure.ap, interval=around(clean - figure.ap, 0.02)
                        ),
                    }
                )
                for name, figure in task.attacks.items()
            },
            "worst_case": task.worst_case.model_copy(
                update={
                    "interval": around(worst),
                    "drop": Difference(value=fall, interval=around(fall, 0.02)),
                }
            ),
            "certified_floor": CertifiedFloor(
                ap=worst / 2, method="crown_ibp", proven_pairs=0.7125
            ),
            "epsilon_curve": EpsilonCurve(
                attack={"name": "apgd", "steps": 10},
                points=[
                    EpsilonPoint(epsilon=epsilon, **figure_of(clean - share * fall).model_dump())
                    for epsilon, share in epsilons.items()
                ],
            ),
            "budget_curve": [
                BudgetPoint(
                    images=k,
                    both=clean - fall * (k / 110) ** 0.5,
                    push_negatives=clean - 0.8 * fall * (k / 110) ** 0.5,
                    hide_positives=clean - 0.3 * fall * (k / 110) ** 0.9,
                )
                for k in budgets
            ],
            "groups": Groups(
                groups=[*found, alone],
                clean_gap=gap("clean_at_prevalence"),
                worst_case_gap=gap("worst_case_at_prevalence"),
            ),
            "operating": operating_figures(
                scores.clean, worst_of(scores), scores.targets, at=OperatingPoint()
            ),
            "resamples": 2000,
        }
    )


def rich_report(
    *scores: Scores,
    names: Sequence[str] = ("truck",),
    groups: Sequence[str] = ("day", "dusk", "night", "rain"),
    verdict: Verdict = "caution",
    **report: Any,
) -> Report:
    """A report of these tasks in which nothing is absent."""
    base = [
        report_of(task, positive=name, **report) for task, name in zip(scores, names, strict=True)
    ]
    tasks = [
        rich_task(one.tasks[0], task, groups=groups) for one, task in zip(base, scores, strict=True)
    ]
    mean = {
        "clean": float(np.mean([task.clean.ap for task in tasks])),
        "worst_case": float(np.mean([task.worst_case.ap for task in tasks])),
        **{
            name: float(np.mean([task.attacks[name].ap for task in tasks]))
            for name in tasks[0].attacks
        },
    }
    clean, worst = mean["clean"], mean["worst_case"]
    return base[0].model_copy(
        update={
            "tasks": tasks,
            "mean": mean,
            "trust": Trust(
                verdict=verdict,
                checks=[check for check in CHECKS if check.status not in ABSENT[verdict]],
            ),
            "thresholds": [
                ThresholdResult(
                    threshold="clean_ap >= 0.8", figure="clean_ap", got=clean, passed=clean >= 0.8
                ),
                ThresholdResult(
                    threshold=f"worst_case_ap >= {worst + 0.1:.3f}",
                    figure="worst_case_ap",
                    got=worst,
                    passed=False,
                ),
                ThresholdResult(threshold="chance > 0.01", figure="chance", got=0.2, passed=True),
            ],
        }
    )
