"""The report of an audit: every figure, and the hashes and seeds that reproduce it.

This module holds values only and imports no torch; `adap.core.audit` fills them in and
`adap.core.rendering.page` draws them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adap.core.statement import Statement
from adap.reading import Reading

REPORT_VERSION = 2


class ReportValue(BaseModel):
    """A frozen part of a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(ReportValue):
    """A confidence interval around a figure."""

    low: float
    high: float
    level: float = Field(description="nominal coverage, for example 0.95")


class APFigure(ReportValue):
    """One average precision."""

    ap: float = Field(description="ties ranked negatives first, so that it is a lower bound")
    interval: Interval | None = None
    tied: int = Field(0, description="positives whose score equals that of some negative")


class Difference(ReportValue):
    """One figure minus another of the same examples."""

    value: float
    interval: Interval | None = Field(None, description="paired: both on the same resamples")


class AttackFigure(APFigure):
    """Average precision on the images that one attack produced."""

    attack: dict[str, Any] = Field(description="the attack's whole configuration")
    mean_margin_drop: float = Field(
        description="mean over images of clean minus attacked margin, margin = (2y - 1) * logit"
    )
    drop: Difference | None = Field(None, description="clean minus robust AP")


class WorstCase(APFigure):
    """Per image the lowest margin over all attacks, the clean image included."""

    won: dict[str, int] = Field(
        description="for each attack (and 'clean') the number of images on which it was strongest; "
        "the counts add up to the number of examples"
    )
    drop: Difference | None = Field(None, description="clean minus worst-case AP")


class Alarms(ReportValue):
    """How many examples score strictly above a threshold."""

    positives: int
    negatives: int = Field(description="false alarms")


class OperatingFigures(ReportValue):
    """A ranking in operation, at the levels that `Operating` names."""

    precision_at_k: float
    recall_at_precision: float = Field(description="highest recall with at least this precision")
    tpr_at_fpr: float = Field(description="threshold chosen anew on these very scores")
    ap_at_prevalence: float = Field(description="AP with the negatives weighted to this prevalence")
    alarms: Alarms = Field(description="at the threshold that was frozen on clean images")


class Operating(ReportValue):
    """What the ranking is worth to somebody who acts on it, clean and in the worst case."""

    k: int
    precision: float
    fpr: float = Field(description="share of the negatives that may raise an alarm")
    prevalence: float
    threshold: float = Field(description="logit; lowest that keeps to `fpr` on clean images")
    clean: OperatingFigures
    worst_case: OperatingFigures


class CertifiedFloor(APFigure):
    """An AP that no perturbation of the threat model gets below, whoever searches for it."""

    method: Literal["ibp", "crown_ibp", "crown"]
    proven_pairs: float = Field(
        description="share of the pairs of a positive and a negative whose order is proven"
    )


class EpsilonPoint(APFigure):
    """One point of the epsilon curve."""

    epsilon: float


class EpsilonCurve(ReportValue):
    """Robust AP under one attack at rising epsilons."""

    attack: dict[str, Any] = Field(description="the attack's whole configuration")
    points: list[EpsilonPoint]


class CorruptionPoint(ReportValue):
    """Average precision on images as one corruption leaves them."""

    kind: str
    severity: int = Field(description="1 to 5, as published")
    ap: float = Field(description="ties ranked negatives first, so that it is a lower bound")


class CorruptionFigures(ReportValue):
    """What common corruptions leave: they are no attack and no part of the threat model."""

    parameters: str = Field(
        description="of which published suite, by the size of its images: 32x32 or 224x224"
    )
    points: list[CorruptionPoint]
    mean: float = Field(description="AP, mean over kinds and severities")
    by_kind: dict[str, float] = Field(description="AP, mean over the severities of each kind")
    lowest: CorruptionPoint
    worst_case: WorstCase = Field(
        description="per image the lowest margin over all corruptions, the clean image included; "
        "its counts are by kind"
    )


class KeptPoint(ReportValue):
    """How many positives stay among the first k at this epsilon."""

    epsilon: float
    kept: float = Field(description="share of those searched for that no change found moves out")


class SmallestFigures(ReportValue):
    """How little moves positives out of the first k, all others as they are: found, not proven."""

    norm: str
    k: int
    threshold: float = Field(description="logit below which an image is out of the first k")
    among: int = Field(description="positives among the first k of the clean ranking")
    searched: int = Field(description="of them, spread evenly by rank")
    found: int = Field(description="of those, for which a change was found")
    least: float | None = Field(description="smallest change found; null where none was")
    median: float | None = Field(
        description="of all searched for; null where half or more were not moved"
    )
    kept_at_epsilon: float | None = Field(
        description="share of those searched for that stay at the epsilon of the threat; null "
        "where no positive is among the first k"
    )
    curve: list[KeptPoint] = Field(description="rising, at twentieths of those that were moved")


class UniversalFigures(APFigure):
    """What one perturbation leaves that all images share: found, not proven, and no part of the
    worst case."""

    size: float = Field(description="of the perturbation, in the threat's norm")
    searched: int = Field(description="images that it was searched on; its AP is of all")
    rounds: int = Field(description="steps of the search, each a gradient of all of these")
    drop: Difference = Field(description="clean AP minus this one, paired")


class BudgetPoint(ReportValue):
    """AP that is left when the attacker may change this many images, chosen greedily."""

    images: int
    hide_positives: float = Field(description="only positives may be changed")
    push_negatives: float = Field(description="only negatives may be changed")
    both: float


class GroupFigures(ReportValue):
    """The figures of the examples of one group."""

    group: str
    examples: int
    positives: int
    clean: APFigure | None = Field(description="null with fewer than two positives or negatives")
    worst_case: APFigure | None
    clean_at_prevalence: float | None = Field(
        description="AP carried over to the prevalence of the whole task: comparable across groups"
    )
    worst_case_at_prevalence: float | None


class GroupGap(ReportValue):
    """Best minus worst group, by AP at the prevalence of the whole task."""

    best: str
    worst: str
    difference: Difference = Field(description="on resamples of their own: the examples differ")


class Groups(ReportValue):
    """What the ranking is worth in each group of the examples."""

    groups: list[GroupFigures]
    clean_gap: GroupGap | None = Field(description="null where fewer than two groups have figures")
    worst_case_gap: GroupGap | None


class Clusters(ReportValue):
    """How many clusters (patients, drives) the examples of a task are of."""

    clusters: int
    with_positives: int


class SearchedOn(ReportValue):
    """The search went on by attacks that see past what hides from a gradient."""

    reason: str = Field(description="what the gradient hides, on a few images")
    attacks: list[str] = Field(description="their names among the attacks of the task")


class TaskReport(ReportValue):
    """The figures of one task: some classes against the rest."""

    positive: list[str]
    examples: int
    positives: int
    prevalence: float
    chance: float = Field(description="AP to expect of a random order: above the prevalence")
    floor: float = Field(description="AP of the fully inverted ranking: no attack can do worse")
    clean: APFigure
    upside_down: APFigure | None = Field(
        None, description="the clean ranking read from its end, where it is worse than chance"
    )
    attacks: dict[str, AttackFigure]
    worst_case: WorstCase
    certified_floor: CertifiedFloor | None = None
    no_certified_floor: str | None = Field(None, description="why there is none")
    searched_on: SearchedOn | None = Field(
        None, description="null where the attacks that were asked for are all there are"
    )
    epsilon_curve: EpsilonCurve | None = None
    corruptions: CorruptionFigures | None = Field(None, description="null where none was asked for")
    smallest_changes: SmallestFigures | None = Field(
        None, description="null where they were not asked for"
    )
    universal: UniversalFigures | None = Field(None, description="null where it was not asked for")
    budget_curve: list[BudgetPoint] = []
    groups: Groups | None = Field(None, description="where the data set has a `group` column")
    resamples: int | None = Field(None, description="of the bootstrap behind the intervals")
    clusters: Clusters | None = Field(
        None, description="which the bootstrap drew whole; null where examples are drawn one by one"
    )
    operating: Operating | None = None


Status = Literal["pass", "caution", "fail", "skipped"]
Verdict = Literal["trustworthy", "caution", "not trustworthy"]


class Limit(ReportValue):
    """Where one figure of a check becomes a caution, and where the check fails."""

    caution: float
    fail: float | None = Field(None, description="null where this figure alone fails nothing")
    side: Literal["above", "below"] = Field("above", description="on which side of the limits")

    def status(self, value: float) -> Status:
        """What a figure of this value says."""
        sign = 1 if self.side == "above" else -1
        if self.fail is not None and sign * value > sign * self.fail:
            return "fail"
        return "caution" if sign * value > sign * self.caution else "pass"


class Check(ReportValue):
    """One question asked of the audit itself; its status is the gravest that a limit gives."""

    name: str = Field(description="stable, for example `converged`")
    status: Status
    message: str = Field(description="what was found, in one sentence with its figures")
    figures: dict[str, float] = Field(description="the figures behind the status")
    limits: dict[str, Limit] = Field({}, description="by the figure that each of them judges")


class Trust(ReportValue):
    """Whether the figures of an audit can be relied on."""

    verdict: Verdict
    checks: list[Check]


class ThresholdResult(ReportValue):
    """Whether one of the thresholds that were asked for is met."""

    threshold: str = Field(description="as it was asked for")
    figure: str
    got: float | None = Field(
        description="0 where the report has no such figure; null for the size of a change where "
        "none was found: larger than any"
    )
    passed: bool


Origin = Literal["trained here", "uploaded", "in process"]


class ModelProvenance(ReportValue):
    """Which network was audited, or used by the attacker."""

    id: str
    name: str
    sha256: str
    architecture: str
    origin: Origin | None = Field(
        None, description="whether this service trained it, took it in, or was handed it in memory"
    )
    reading: Reading | None = Field(
        None, description="how its file was read; null for what was trained here"
    )
    outputs: int | None = Field(
        None, description="logits or probabilities that it answers for an image, where known"
    )
    positive: list[str] | None = Field(
        None, description="classes that it was trained, or declared, to rank first, where known"
    )


class DatasetProvenance(ReportValue):
    """Which examples were attacked."""

    id: str
    name: str
    sha256: str
    split: Literal["train", "validation", "test"] | None
    reading: Reading | None = Field(None, description="how its file was read")


class Provenance(ReportValue):
    """All that is needed to get the same figures again."""

    model: ModelProvenance
    dataset: DatasetProvenance
    surrogate: ModelProvenance | None
    config: dict[str, Any] = Field(description="the audit's configuration, defaults included")
    config_sha256: str
    scores_sha256: str = Field(description="hash of the stored scores that the figures come from")
    seed: int
    versions: dict[str, str] = Field(description="of adap, torch and numpy")
    device: str
    created_at: str = Field(description="RFC 3339, UTC")


class AuditedImages(ReportValue):
    """What the images of the audited split themselves show, whatever is said of them."""

    examples: int = Field(description="of the split, also where a sample of them was audited")
    lowest: float = Field(description="value of any pixel, in [0, 1]")
    highest: float = Field(description="value of any pixel, in [0, 1]")
    equal: int = Field(description="images whose pixels equal those of an earlier one of them")
    in_other_splits: int | None = Field(
        None, description="images that another split has too; null where no split is audited"
    )
    seen_in_training: int | None = Field(
        None, description="images that the model was trained on; null where nothing says on what"
    )
    chose_the_epoch: int | None = Field(
        None,
        description="images that it was not trained on, by which the epoch was chosen whose "
        "weights it has; null as above",
    )


class NotAssessed(ReportValue):
    """One thing that the audit says nothing about."""

    topic: str = Field(description="stable, for example `poisoning`")
    what: str = Field(description="what nobody looked for here, in one or two sentences")


class Support(ReportValue):
    """A part of this report."""

    what: str = Field(description="in words")
    where: str = Field(description="its place in this JSON, for example `tasks[].worst_case`")


class Clause(ReportValue):
    """A clause that somebody may have to answer, and what of this report supports the answer."""

    document: str
    clause: str
    asks: str = Field(description="what the clause asks for, in our words and in short")
    supported_by: list[Support] = Field(
        description="evidence for an answer; whether the clause is met is not ours to say"
    )


class Report(ReportValue):
    """The result of an audit."""

    version: int = REPORT_VERSION
    tasks: list[TaskReport]
    mean: dict[str, float] = Field(
        description="means over the tasks: clean, worst_case and each attack"
    )
    warnings: list[str] = Field(description="what a reader must know before trusting the figures")
    trust: Trust | None = Field(None, description="null where no check was asked for")
    thresholds: list[ThresholdResult] = []
    statement: Statement | None = Field(None, description="as it was handed in: nothing checks it")
    images: AuditedImages | None = Field(
        None, description="null where the images themselves were not looked at"
    )
    not_assessed: list[NotAssessed] = Field(
        [], description="what the audit says nothing about; never empty in an audit's own report"
    )
    clauses: list[Clause] = Field(
        [], description="of laws, guidance and standards, with the figures that support an answer"
    )
    provenance: Provenance
