"""Scores to make pages of, the report that the service makes of them, and a parser of pages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from adap.core.config.audits import AuditConfig
from adap.core.figures import task as task_figures
from adap.core.figures.report import build_report
from adap.core.report import (
    APFigure,
    Check,
    DatasetProvenance,
    Interval,
    ModelProvenance,
    Provenance,
    Report,
    Status,
    TaskReport,
    Trust,
    Verdict,
)
from adap.core.scores import Evidence, Scores
from tests.core.drawings import Drawing, drawings

RESAMPLES = 20  # a wide and a quick interval

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

    VOID = ("meta", "img", "br", "link", "input")

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


def config_of(attacks: Iterable[str], **asked: Any) -> AuditConfig:
    """An audit with these attacks, of which names that are none are labels."""
    known = ("pgd", "apgd", "square")
    return AuditConfig.model_validate(
        {
            "threat": {"epsilon": 0.1},
            "attacks": [
                {"name": name} if name in known else {"name": "pgd", "label": name}
                for name in attacks
            ],
            "budgets": [],
            **asked,
        }
    )


def built(
    scores: Sequence[Scores],
    *,
    names: Sequence[str],
    model: str = "a model",
    dataset: str = "a data set",
    warnings: Sequence[str] = (),
    trust: Trust | None = None,
    **asked: Any,
) -> Report:
    """The report that an audit with these scores gives."""
    config = config_of(scores[0].attacked, **asked)
    measured: dict[int, TaskReport] = {}  # the same scores under several names are measured once
    for task in scores:
        if id(task) not in measured:
            resampled = task_figures.resample(task, resamples=RESAMPLES)
            measured[id(task)] = task_figures.figures(
                task, positive=["one"], config=config, resampled=resampled
            )
    tasks = [
        measured[id(task)].model_copy(update={"positive": [name]})
        for task, name in zip(scores, names, strict=True)
    ]
    provenance = Provenance(
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
    )
    return build_report(tasks, config=config, provenance=provenance, doubts=warnings, trust=trust)


def report_of(scores: Scores, *, positive: str = "truck", **described: Any) -> Report:
    """The report of an audit that asked for little: no budgets and no checks."""
    report = built([scores], names=[positive], **described)
    task = report.tasks[0].model_copy(update={"operating": None})
    return report.model_copy(update={"tasks": [task]})


def with_figures(report: Report, *, interval: Interval | None = None, **figures: float) -> Report:
    """The report with this interval everywhere; `figures` are its clean, worst_case or chance."""
    task = report.tasks[0]

    def changed(figure: APFigure, name: str) -> APFigure:
        ap = figures.get(name, figure.ap)
        return figure.model_copy(update={"ap": ap, "interval": interval})

    update = {
        "clean": changed(task.clean, "clean"),
        "worst_case": changed(task.worst_case, "worst_case"),
        "attacks": {name: changed(it, name) for name, it in task.attacks.items()},
        "chance": figures.get("chance", task.chance),
    }
    return report.model_copy(update={"tasks": [task.model_copy(update=update)]})


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


def enriched(scores: Scores, *, groups: Sequence[str]) -> Scores:
    """The scores of an audit that also asked for a curve, bounds and groups."""
    at = np.arange(len(scores))
    of_groups = at % len(groups)
    of_groups[(scores.targets == 0) & (at % 7 < 3)] = 0  # positives are few in the first group
    named = [groups[i] for i in of_groups]
    named[0] = "seen once"
    change = next(iter(scores.attacked.values())) - scores.clean
    epsilons = {0.025: 0.2, 0.05: 0.45, 0.1: 0.97, 0.15: 1.35, 0.2: 1.6}
    return replace(
        scores,
        curve={epsilon: scores.clean + share * change for epsilon, share in epsilons.items()},
        bounds=np.stack([scores.clean - 2.1, scores.clean + 2.1]),
        groups=named,
    )


def rich_report(
    *scores: Scores,
    names: Sequence[str] = ("truck",),
    groups: Sequence[str] = ("day", "dusk", "night", "rain"),
    verdict: Verdict = "caution",
    **described: Any,
) -> Report:
    """The report of an audit that asked for everything; what its checks found is made up."""
    asked = {id(task): enriched(task, groups=groups) for task in scores}
    return built(
        [asked[id(task)] for task in scores],
        names=names,
        trust=Trust(
            verdict=verdict,
            checks=[check for check in CHECKS if check.status not in ABSENT[verdict]],
        ),
        epsilons=[0.025, 0.05, 0.1, 0.15, 0.2],
        certify="crown_ibp",
        thresholds=["clean_ap >= 0.5", "worst_case_ap >= 0.9", "chance > 0.01"],
        budgets=[1, 2, 5, 10, 20, 50],
        **described,
    )


def renamed(report: Report, names: Mapping[str, str]) -> Report:
    """The report with other names of attacks: such as no configuration may have."""

    def task(it: TaskReport) -> TaskReport:
        attacks = {names.get(name, name): figure for name, figure in it.attacks.items()}
        return it.model_copy(update={"attacks": attacks})

    mean = {names.get(name, name): ap for name, ap in report.mean.items()}
    return report.model_copy(update={"tasks": [task(it) for it in report.tasks], "mean": mean})
