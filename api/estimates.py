"""What an audit or a training will cost: its passes, times what like ones have taken here."""

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from adap.api.deps import Caller
from adap.api.schemas import Estimate
from adap.core.config import Attack, AuditRequest, Split, TrainingRequest
from adap.core.errors import AdapError
from adap.core.resolve import DatasetSummary
from adap.core.training.cautions import no_test_split
from adap.models.header import Manifest
from adap.store.tables import DatasetRow, JobKind, JobRow, JobStatus, ModelRow

LOOKED_AT = 50  # of the newest jobs of the kind
MOST_ALIKE = 5
UNATTACKED = ("ce", "ap")  # methods that train on images as they are

Passes = Callable[[JobRow], int | None]


def of_audit(
    session: Session,
    caller: Caller,
    request: AuditRequest,
    *,
    model: ModelRow,
    summary: DatasetSummary,
    split: Split | None,
    tasks: int,
) -> Estimate:
    """Of an audit that was found to be possible."""
    images = request.sampled(summary.examples_in(split)) or summary.examples_in(split)
    manifest = Manifest.model_validate(model.manifest)

    def passes_of(job: JobRow) -> int | None:
        other = session.get(ModelRow, job.model_id)
        if other is None or other.manifest is None or not _alike(manifest, other):
            return None
        known = DatasetSummary.model_validate(_dataset(session, job).summary)
        asked = AuditRequest.model_validate(job.request)
        count = asked.sampled(known.examples_in(asked.split)) or known.examples_in(asked.split)
        return count * _passes_of_audit(asked)

    passes = images * tasks * _passes_of_audit(request)
    attacks = [attack.key for attack in request.resolved_attacks()]
    work = Estimate(images=images, attacks=attacks, passes=passes, seconds=None, basis="")
    return _timed(session, caller, JobKind.AUDIT, work, passes_of)


def of_training(
    session: Session, caller: Caller, request: TrainingRequest, summary: DatasetSummary
) -> Estimate:
    """Of a training that was found to be possible."""

    def passes_of(job: JobRow) -> int | None:
        known = DatasetSummary.model_validate(_dataset(session, job).summary)
        asked = TrainingRequest.model_validate(job.request)
        if asked.architecture != request.architecture or _size(known) != _size(summary):
            return None
        return _passes_of_training(asked, known)

    caution = no_test_split(tests="test" in summary.splits)
    work = Estimate(
        images=_trained_on(summary),
        attacks=[],
        passes=_passes_of_training(request, summary),
        seconds=None,
        basis="",
        warnings=[] if caution is None else [caution.message],
    )
    return _timed(session, caller, JobKind.TRAIN, work, passes_of)


def _timed(
    session: Session, caller: Caller, kind: JobKind, work: Estimate, passes_of: Passes
) -> Estimate:
    """The same work with its seconds, by the newest jobs like it."""
    rates = []
    for job in _newest(session, caller, kind):
        try:
            took = passes_of(job)
        except (ValidationError, AdapError):
            continue  # of what is no longer there, or was asked for in other words
        if took and job.started_at is not None and job.finished_at is not None:
            rates.append((job.finished_at - job.started_at) / took)
        if len(rates) == MOST_ALIKE:
            break
    noun = "audit" if kind is JobKind.AUDIT else "training"
    if not rates:
        basis = f"No {noun} like this one has ended here yet, so nobody knows how long it takes."
        return work.model_copy(update={"basis": basis})
    basis = f"From {len(rates)} {noun}{'s' if len(rates) > 1 else ''} like it on this service."
    # the slowest, as scores that are kept from before make others look faster than they are
    seconds = round(max(rates) * work.passes, 1)
    return work.model_copy(update={"seconds": seconds, "basis": basis})


def _newest(session: Session, caller: Caller, kind: JobKind) -> Iterable[JobRow]:
    query = (
        select(JobRow)
        .where(
            JobRow.tenant == caller.tenant,
            JobRow.kind == kind,
            JobRow.status == JobStatus.SUCCEEDED,
        )
        .order_by(JobRow.id.desc())
        .limit(LOOKED_AT)
    )
    return session.scalars(query)


def _dataset(session: Session, job: JobRow) -> DatasetRow:
    row = session.get(DatasetRow, job.dataset_id)
    assert row is not None  # a row stays as long as a job refers to it
    return row


def _alike(manifest: Manifest, other: ModelRow) -> bool:
    theirs = Manifest.model_validate(other.manifest)
    return theirs.architecture == manifest.architecture and theirs.input == manifest.input


def _size(summary: DatasetSummary) -> tuple[Any, ...]:
    return summary.channels, summary.height, summary.width


def _passes_of_audit(request: AuditRequest) -> int:
    """Forward and backward passes for one image and task: clean, and every attack."""
    return 1 + sum(map(_passes_of_attack, request.resolved_attacks()))


def _passes_of_attack(attack: Attack) -> int:
    match attack.name:
        case "pgd" | "apgd":
            return 2 * attack.steps * attack.restarts + 1
        case "transfer":
            return 2 * attack.steps + 1
        case "square":
            return attack.queries
    return 3


def _passes_of_training(request: TrainingRequest, summary: DatasetSummary) -> int:
    attacking = 0 if request.method.name in UNATTACKED else 2 * request.attack.steps
    return request.epochs * _trained_on(summary) * (3 + attacking)


def _trained_on(summary: DatasetSummary) -> int:
    return summary.split_examples.get("train", summary.examples)
