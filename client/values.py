"""Typed values of the service's answers; fields that are not named here are kept too.

A newer service may answer more than this client knows, so unknown fields are no fault.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen answer."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Progress(Value):
    """How far a job is: `completed` of `total` units of this phase, its end in `eta_s` seconds."""

    phase: str
    completed: int
    total: int
    unit: str
    eta_s: float | None


OnProgress = Callable[[Progress], None]


class JobFailure(Value):
    """Why a job failed: `code` for programs, `message` for people."""

    code: str
    message: str
    retryable: bool


class Job(Value):
    """A job of any kind; `done` says whether its status is final."""

    id: str
    kind: str
    status: str
    done: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    progress: Progress | None
    queue_position: int | None
    waiting_for: str | None
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: JobFailure | None
    retry_of: str | None
    links: dict[str, str]


class Dataset(Value):
    """A data set: `summary` counts its images once it is ready."""

    id: str
    name: str
    status: str
    created_at: datetime
    job_id: str | None
    reasons: list[str]
    sha256: str | None
    summary: dict[str, Any] | None


class Model(Value):
    """A model: `manifest` says what it takes and answers."""

    id: str
    name: str
    status: str
    created_at: datetime
    job_id: str | None
    reasons: list[str]
    sha256: str | None
    manifest: dict[str, Any] | None
    findings: dict[str, Any] | None


class RankedExample(Value):
    """One image of a ranking; `score` is a logit."""

    rank: int
    example_id: str
    score: float
    label: str
    positive: bool | None


class Interval(Value):
    """A confidence interval at the given level."""

    low: float
    high: float
    level: float


class APFigure(Value):
    """Average precision, with its interval."""

    ap: float
    interval: Interval | None


class TaskReport(Value):
    """What an audit found for one task."""

    positive: list[str]
    examples: int
    positives: int
    prevalence: float
    chance: float
    floor: float
    clean: APFigure
    attacks: dict[str, APFigure]
    worst_case: APFigure


class ThresholdResult(Value):
    """A threshold that was asked for, and whether the audit passed it."""

    threshold: str
    figure: str
    got: float
    passed: bool


class Report(Value):
    """An audit's report."""

    tasks: list[TaskReport]
    mean: dict[str, float]
    warnings: list[str]
    thresholds: list[ThresholdResult]
    provenance: dict[str, Any]


def with_task(request: Mapping[str, Any], positive: str | Sequence[str] | None) -> dict[str, Any]:
    """A request with a task for this positive class, or these, where some are named."""
    if positive is None:
        return {**request}
    return {**request, "task": {"positive": listed(positive)}}


def listed(names: str | Sequence[str]) -> list[str]:
    """A list of names; one text is one name, not its letters."""
    return [names] if isinstance(names, str) else list(names)
