"""Typed values of the service's answers; fields that are not named here are kept too.

A newer service may answer more than this client knows, so unknown fields are no fault.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from pydantic import BaseModel, ConfigDict

from adap.client.base import ClientError, Event


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


class Estimate(Value):
    """What a job would cost: `seconds` of one worker, None where nothing like it has run."""

    understood: list[str]
    images: int
    attacks: list[str]
    passes: int
    seconds: float | None
    basis: str


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
    positive: list[str] | None
    note: str | None


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
    note: str | None


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


def _bars(task: TaskReport) -> dict[str, APFigure]:
    return {"clean": task.clean, **task.attacks, "worst case": task.worst_case}


def _rows(task: TaskReport) -> Iterator[tuple[str, str, str, str]]:
    for name, value in _bars(task).items():
        interval = value.interval
        limits = "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
        yield " + ".join(task.positive), name, f"{value.ap:.4f}", limits
    yield " + ".join(task.positive), "chance", f"{task.chance:.4f}", ""


class ThresholdResult(Value):
    """A threshold that was asked for, and whether the audit passed it."""

    threshold: str
    figure: str
    got: float
    passed: bool


class Report(Value):
    """An audit's report; printed, and in a notebook, it shows its figures as a table."""

    tasks: list[TaskReport]
    mean: dict[str, float]
    warnings: list[str]
    thresholds: list[ThresholdResult]
    provenance: dict[str, Any]

    def __str__(self) -> str:
        rows = [row for task in self.tasks for row in _rows(task)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self.warnings])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [row for task in self.tasks for row in _rows(task)]
        cells = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        head = "".join(f"<th>{name}</th>" for name in ("positive", "", "AP", "interval"))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"

    def figure(self) -> Any:
        """Clean AP and AP under each attack with intervals, as a matplotlib Figure.

        Raises ClientError where matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ClientError(
                "Expected matplotlib to be installed, got none: pip install matplotlib"
            ) from error
        figure = Figure(figsize=(6, 2 + 2 * len(self.tasks)), layout="constrained")
        for place, task in enumerate(self.tasks, start=1):
            axes = figure.add_subplot(len(self.tasks), 1, place)
            bars = _bars(task)
            axes.barh(list(bars), [bar.ap for bar in bars.values()])
            for name, bar in bars.items():
                if bar.interval is not None:
                    axes.plot([bar.interval.low, bar.interval.high], [name, name], color="black")
            axes.axvline(task.chance, linestyle="--", color="grey", label="chance")
            axes.set(xlim=(0, 1), xlabel="average precision", title=" + ".join(task.positive))
            axes.invert_yaxis()
            axes.legend()
        return figure


def with_task(request: Mapping[str, Any], positive: str | Sequence[str] | None) -> dict[str, Any]:
    """A request with a task for this positive class, or these, where some are named."""
    if positive is None:
        return {**request}
    return {**request, "task": {"positive": listed(positive)}}


def with_threat(request: Mapping[str, Any], epsilon: float | str | None) -> dict[str, Any]:
    """A request with an L-inf threat of this size, where one is given."""
    if epsilon is None:
        return {**request}
    return {**request, "threat": {"norm": "linf", "epsilon": epsilon}}


def progress_of(event: Event) -> Progress | None:
    """How far a job is by an event of it; of one that is queued how many are ahead."""
    if event.type != "progress":
        return None
    if event.data["status"] == "queued":
        ahead = event.data["queue_position"] or 0
        return Progress(phase="queued", completed=0, total=ahead, unit="jobs ahead", eta_s=None)
    made = event.data["progress"]
    return None if made is None else Progress.model_validate(made)


def listed(names: str | Sequence[str]) -> list[str]:
    """A list of names; one text is one name, not its letters."""
    return [names] if isinstance(names, str) else list(names)
