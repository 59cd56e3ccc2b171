"""The plan of an audit: its columns, its pieces of work, and the names and keys of both.

    make_plan        the pieces of an audit, from what is asked and what is known of its subject
    ScoresPiece      some examples of a task, or all at once, measured column by column
    ChecksPiece      the checks of one task
    Column           one measure of those examples, and the hash of all that it depends on

A plan is made once, when an audit starts, from typed values; each piece then travels to whichever
worker is free. What several of them must agree on (under which name a column's file is handed over,
which examples `certify: auto` looks at) stands here and nowhere else. This module imports no torch
and knows no database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adap.core.config.attacks import Attack, TransferAttack
from adap.core.config.audits import (
    CURVE_ATTACK,
    AuditConfig,
    SearchPrecision,
    SmallestChanges,
    UniversalSearch,
)
from adap.core.config.base import Config, Split
from adap.core.config.corruptions import Corruption
from adap.core.config.data import Task
from adap.core.config.deployment import PipelineStep, pipeline_draws
from adap.core.config.threats import Threat

SCORES_VERSION = 4  # of the code that attacks: another one makes other scores
NOMINAL_CHECKS = 1000  # images that the checks of a task count for in the progress of an audit
CERTIFIED_SAMPLE = 8  # of each side: what `certify: auto` tries bounds on

CHECKS_FILE = "checks"  # what a piece of checks hands over


# --- columns --------------------------------------------------------------------------------------


class Recipe(Config):
    """How scores of some examples come about, whatever they are called in the report."""

    attack: Attack | None = None
    threat: Threat | None = None
    surrogate: str | None = None
    certify: Literal["sample", "auto", "ibp", "crown_ibp", "crown"] | None = None
    corruption: Corruption | None = None
    hidden: Literal["sample", "recovered"] | None = None
    recovery: list[Attack] | None = None
    smallest: SmallestChanges | None = None
    universal: UniversalSearch | None = None


class Single(Config):
    """A column of which a task has one: it goes by what it measures."""

    measure: str

    @property
    def name(self) -> str:
        """Under which its file is handed over."""
        return self.measure


class Clean(Single):
    """The logits of the images as they are."""

    measure: Literal["clean"] = "clean"

    def recipe(self, _surrogate: str | None) -> Recipe:
        """How its scores come about."""
        return Recipe()


class UnderAttack(Config):
    """The logits under one of the audit's attacks."""

    measure: Literal["attack"] = "attack"
    attack: Attack
    threat: Threat

    @property
    def name(self) -> str:
        """Under which its file is handed over."""
        return f"attack.{self.attack.key}"

    def recipe(self, surrogate: str | None) -> Recipe:
        """How its scores come about; the surrogate matters to the transfer attack alone."""
        return Recipe(
            attack=self.attack.model_copy(update={"label": None}),
            threat=self.threat,
            surrogate=surrogate if isinstance(self.attack, TransferAttack) else None,
        )


class CurvePoint(Config):
    """The logits under the curve's attack, at one epsilon."""

    measure: Literal["curve"] = "curve"
    point: int = Field(ge=0, description="its place among the epsilons of the curve")
    threat: Threat

    @property
    def name(self) -> str:
        """Under which its file is handed over: by its place, as two epsilons may print alike."""
        return f"curve.{self.point}"

    def recipe(self, surrogate: str | None) -> Recipe:
        """That of the attack itself: an audit at this epsilon has the same scores."""
        return UnderAttack(attack=CURVE_ATTACK, threat=self.threat).recipe(surrogate)


class Corrupted(Config):
    """The logits of the images as one corruption leaves them."""

    measure: Literal["corrupted"] = "corrupted"
    corruption: Corruption

    @property
    def name(self) -> str:
        """Under which its file is handed over."""
        return f"corrupted.{self.corruption.key}"

    def recipe(self, _surrogate: str | None) -> Recipe:
        """How its scores come about."""
        return Recipe(corruption=self.corruption)


class GradientSample(Single):
    """Whether the gradient hides something on a few images of a task: it decides for all pieces
    whether to search on by what needs no such gradient."""

    measure: Literal["gradient.sample"] = "gradient.sample"
    threat: Threat

    def recipe(self, _surrogate: str | None) -> Recipe:
        """How its scores come about."""
        return Recipe(hidden="sample", threat=self.threat)


class Recovery(Single):
    """The logits under attacks that see past what hides from a gradient, or the reason for none."""

    measure: Literal["recovery"] = "recovery"
    attacks: list[Attack]
    threat: Threat

    def recipe(self, _surrogate: str | None) -> Recipe:
        """How its scores come about."""
        return Recipe(hidden="recovered", recovery=self.attacks, threat=self.threat)


class Smallest(Single):
    """How little moves positives out of the first k of the whole task."""

    measure: Literal["smallest"] = "smallest"
    asked: SmallestChanges
    threat: Threat

    def recipe(self, _surrogate: str | None) -> Recipe:
        """How its sizes come about: by the threat's norm, whatever its epsilon."""
        return Recipe(smallest=self.asked, threat=self.threat.model_copy(update={"epsilon": 0.0}))


class Universal(Single):
    """One perturbation that all images of the task share, and their logits under it."""

    measure: Literal["universal"] = "universal"
    asked: UniversalSearch
    threat: Threat

    def recipe(self, _surrogate: str | None) -> Recipe:
        """How its scores come about."""
        return Recipe(universal=self.asked, threat=self.threat)


class BoundsSample(Single):
    """Bounds on a few images of a task, on which `certify: auto` decides for all of its pieces."""

    measure: Literal["bounds.sample"] = "bounds.sample"
    threat: Threat

    def recipe(self, _surrogate: str | None) -> Recipe:
        """How its scores come about."""
        return Recipe(certify="sample", threat=self.threat)


class Bounds(Single):
    """Lowest and highest logit that any perturbation can reach."""

    measure: Literal["bounds"] = "bounds"
    method: Literal["auto", "ibp", "crown_ibp", "crown"]
    threat: Threat

    def recipe(self, _surrogate: str | None) -> Recipe:
        """How its scores come about."""
        return Recipe(certify=self.method, threat=self.threat)


Measure = Annotated[
    Clean
    | UnderAttack
    | CurvePoint
    | Corrupted
    | GradientSample
    | Recovery
    | Smallest
    | Universal
    | BoundsSample
    | Bounds,
    Field(discriminator="measure"),
]

# Of a few examples, once for all pieces of a task; and what other columns are made of.
SAMPLES = (GradientSample, BoundsSample)
MADE_OF = (Clean, GradientSample, BoundsSample)
# By attacks, whose passes are in the precision of the search.
SEARCHED = (UnderAttack, CurvePoint, Recovery)


class Column(Config):
    """What is measured of some examples, and the hash of all that the scores depend on."""

    measure: Measure
    key: str = Field(description="equal keys, equal scores: they need not be computed again")

    @property
    def name(self) -> str:
        """Under which its file is handed over."""
        return self.measure.name


def measures(config: AuditConfig, *, recovery: Sequence[Attack] = ()) -> list[Measure]:
    """What an audit measures of every example, in the order of work: clean first, bounds last.

    recovery: attacks to go on by where the gradient hides something.
    """
    threat = config.threat
    found: list[Measure] = [Clean()]
    found += [UnderAttack(attack=attack, threat=threat) for attack in config.resolved_attacks()]
    found += [
        CurvePoint(point=point, threat=Threat(norm=threat.norm, epsilon=epsilon))
        for point, epsilon in enumerate(config.resolved_epsilons())
    ]
    if config.corruptions is not None:
        found += [Corrupted(corruption=corruption) for corruption in config.corruptions.each()]
    if recovery:
        found += [
            GradientSample(threat=threat),
            Recovery(attacks=list(recovery), threat=threat),
        ]
    if config.certify == "auto":
        found.append(BoundsSample(threat=threat))
    if config.certify != "off":
        found.append(Bounds(method=config.certify, threat=threat))
    return found


def measures_of_all(config: AuditConfig) -> list[Measure]:
    """What an audit measures of all examples of a task at once, as no part of them tells it."""
    found: list[Measure] = []
    if config.smallest_changes is not None:
        found.append(Smallest(asked=config.smallest_changes, threat=config.threat))
    if config.universal is not None:
        found.append(Universal(asked=config.universal, threat=config.threat))
    return found


def certified_sample(targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of some positives and some negatives, evenly spread: what `auto` tries bounds on.

    targets: (N,) in {0, 1}, of the whole split.
    """
    return np.concatenate(
        [
            members[np.unique(np.linspace(0, len(members) - 1, CERTIFIED_SAMPLE, dtype=np.int64))]
            for members in (np.flatnonzero(targets == 1), np.flatnonzero(targets == 0))
        ]
    )


# --- pieces ---------------------------------------------------------------------------------------


class _Piece(Config):
    """A part of an audit that one worker does on its own."""

    config: AuditConfig
    task: Task
    task_number: int = Field(ge=0)
    split: Split | None
    draws: int = Field(1, ge=1, description="behind each score, of a model that draws numbers")
    images: int = Field(ge=0, description="that it counts for in the progress of the audit")


class ScoresPiece(_Piece):
    """Some examples of a task, measured column by column."""

    part: Literal["scores"] = "scores"
    whole: bool = Field(
        False, description="it measures of all examples at once what no part of them tells"
    )
    shard: int = Field(ge=0, description="its place among the pieces of scores of its task")
    start: int = Field(ge=0, description="first example, counted among those that are audited")
    stop: int = Field(ge=1, description="first example that is not its own")
    columns: list[Column]


class ChecksPiece(_Piece):
    """The checks of one task of the audit."""

    part: Literal["checks"] = "checks"


Piece = Annotated[ScoresPiece | ChecksPiece, Field(discriminator="part")]


@dataclass(frozen=True)
class Subject:
    """Whose audit it is, and of what: files by their SHA-256, which is all that scores hang on."""

    tenant: str
    model: str
    dataset: str
    surrogate: str | None
    split: Split | None
    examples: int
    """Of the split."""
    image: tuple[int, int]
    """Height and width of its images."""
    draws: int = 1
    """Behind each score and gradient, where the model draws random numbers as it scores."""


class Batches(Config):
    """Which examples meet in a batch, and the seed of what is random there."""

    shard: int = Field(0, description="its place, where the examples are one shard")
    start: int = 0
    stop: int
    shard_size: int | None = Field(None, description="of the shards, where they are several")
    batch_size: int
    seed: int


class Sample(Config):
    """Which examples are looked at, where not all are."""

    count: int
    seed: int


class Origin(Config):
    """All that the scores of a column depend on; its hash is their key."""

    version: int = SCORES_VERSION
    tenant: str
    model: str
    dataset: str
    split: Split | None
    positive: list[str]
    pipeline: list[PipelineStep]
    recipe: Recipe
    draws: int
    sample: Sample | None
    search_precision: SearchPrecision
    batches: Batches | None = Field(description="null for what is scored in one batch of its own")


def make_plan(config: AuditConfig, tasks: Sequence[Task], subject: Subject) -> list[Piece]:
    """The pieces of an audit, in order: for each task its checks, what is of all its examples at
    once, then its examples.

    Every column of a piece is kept for itself under its key. Whether to bound at all is a column
    too, with the same key in all pieces of a task: the first to have it saves the others asking.
    """
    pieces: list[Piece] = []
    asked = measures(config, recovery=config.recovery_attacks(*subject.image))
    of_all = measures_of_all(config)
    sampled = config.sampled(subject.examples)
    examples = subject.examples if sampled is None else sampled
    draws = max(subject.draws, pipeline_draws(config.pipeline))
    sample = None if sampled is None else Sample(count=sampled, seed=config.seed)
    for number, task in enumerate(tasks):
        if config.resolved_checks() != "off":
            pieces.append(
                ChecksPiece(
                    config=config,
                    task=task,
                    task_number=number,
                    split=subject.split,
                    draws=draws,
                    images=NOMINAL_CHECKS,
                )
            )
        parts = [
            (shard, start, min(start + config.shard_size, examples), asked)
            for shard, start in enumerate(range(0, examples, config.shard_size))
        ]
        if of_all:
            parts.insert(0, (0, 0, examples, of_all))
        for shard, start, stop, found in parts:
            columns = []
            for measure in found:
                origin = Origin(
                    tenant=subject.tenant,
                    model=subject.model,
                    dataset=subject.dataset,
                    split=subject.split,
                    positive=task.positive,
                    pipeline=config.pipeline,
                    recipe=measure.recipe(subject.surrogate),
                    draws=draws,
                    sample=sample,
                    search_precision=(
                        config.search_precision if isinstance(measure, SEARCHED) else "float32"
                    ),
                    batches=_batches(measure, config, examples, shard, start, stop),
                )
                columns.append(Column(measure=measure, key=origin.sha256()))
            counted = sum(not isinstance(measure, SAMPLES) for measure in found)
            pieces.append(
                ScoresPiece(
                    config=config,
                    task=task,
                    task_number=number,
                    split=subject.split,
                    draws=draws,
                    images=(stop - start) * counted,
                    whole=found is of_all,
                    shard=shard,
                    start=start,
                    stop=stop,
                    columns=columns,
                )
            )
    return pieces


def _batches(
    measure: Measure, config: AuditConfig, examples: int, shard: int, start: int, stop: int
) -> Batches | None:
    """Of a measure in a piece: equal only where the same numbers come of it."""
    common = {"batch_size": config.batch_size, "seed": config.seed}
    match measure:
        case BoundsSample():
            return None
        case GradientSample():  # the same few images in every piece of a task
            return Batches(stop=examples, **common)
        case Smallest() | Universal():  # they score every shard as its own piece does
            return Batches(stop=examples, shard_size=config.shard_size, **common)
        case _:
            return Batches(shard=shard, start=start, stop=stop, **common)


def recovery_of(pieces: Sequence[Piece]) -> list[Attack]:
    """By which attacks an audit goes on where the gradient hides something."""
    first = next(p for p in pieces if isinstance(p, ScoresPiece) and not p.whole)  # all are alike
    return [
        attack
        for column in first.columns
        if isinstance(column.measure, Recovery)
        for attack in column.measure.attacks
    ]


# --- names of what pieces hand over ---------------------------------------------------------------


def known_input(column: str) -> str:
    """The input of a piece that holds a column which is known already."""
    return f"known/{column}"


def trained_on_input(number: int) -> str:
    """The input of the report that holds a data set on which the model was trained."""
    return f"trained_on/{number}"


def piece_input(number: int, file: str) -> str:
    """The input of the report that holds a file of a piece: a column by its name, or the checks."""
    return f"{number}/{file}"
