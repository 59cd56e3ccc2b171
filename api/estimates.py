"""What an audit or a training will cost: its passes, times what like ones have taken here."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from adap.api.deps import Caller
from adap.api.schemas import Estimate
from adap.core.audit.foreseen import Extent, Foreseen, of_task
from adap.core.config.audits import AuditRequest
from adap.core.config.base import Split
from adap.core.config.data import Task
from adap.core.config.deployment import pipeline_in_words
from adap.core.config.training import VALIDATION_STEPS, TrainingRequest
from adap.core.errors import AdapError
from adap.core.resolve import DatasetSummary, resolve_split, resolve_tasks, training_tasks
from adap.core.training.cautions import no_test_split
from adap.core.training.sweeps import Search, SweepRequest
from adap.models.header import Manifest
from adap.store.tables import DatasetRow, JobKind, JobRow, JobStatus, ModelRow

LOOKED_AT = 50  # of the newest jobs of the kind
MOST_ALIKE = 5
UNATTACKED = ("ce", "ap")  # methods that train on images as they are
STEP = 3  # a forward pass, and a backward one to the weights that costs two

Passes = Callable[[JobRow], int | None]


def of_audit(
    session: Session,
    caller: Caller,
    request: AuditRequest,
    *,
    model: ModelRow,
    summary: DatasetSummary,
    split: Split | None,
    tasks: Sequence[Task],
) -> Estimate:
    """Of an audit that was found to be possible."""
    manifest = Manifest.model_validate(model.manifest)

    def passes_of(job: JobRow) -> int | None:
        other = session.get(ModelRow, job.model_id)
        if other is None or other.manifest is None or not _alike(manifest, other):
            return None
        known = DatasetSummary.model_validate(_dataset(session, job).summary)
        asked = AuditRequest.model_validate(job.request)
        theirs = resolve_tasks(
            asked.task,
            known,
            trained_for=Manifest.model_validate(other.manifest).positive,
            outputs=Manifest.model_validate(other.manifest).output.classes,
        )
        found = _foreseen(asked, known, resolve_split(asked.split, known), theirs)
        return found.most if _went_on(job, asked, known) else found.sure

    found = _foreseen(request, summary, split, tasks)
    searching = request.recovery_attacks(summary.height, summary.width)
    work = Estimate(
        understood=list(_audit_in_words(request, tasks, split)),
        images=_examples(request, summary, split),
        attacks=[attack.key for attack in request.resolved_attacks()],
        corruptions=0 if request.corruptions is None else len(request.corruptions.each()),
        passes=found.sure,
        search_on=[attack.key for attack in searching],
        most_passes=found.most if searching else None,
        seconds=None,
        most_seconds=None,
        basis="",
    )
    return _timed(session, caller, JobKind.AUDIT, work, passes_of)


def _audit_in_words(
    request: AuditRequest, tasks: Sequence[Task], split: Split | None
) -> Iterator[str]:
    images = "every image of the data set" if split is None else f"the {split} split"
    yield f"ranks {_named(tasks)} above the rest of {images}"
    yield f"changes within {request.threat.norm} {request.threat.epsilon:.4g}"
    if request.pipeline:
        yield f"through {pipeline_in_words(request.pipeline)}"
    if request.smallest_changes is not None:
        first = request.smallest_changes.k
        how_many = "k, the number of positives" if first is None else f"{first:,}"
        yield f"searches for the smallest changes that move positives out of the first {how_many}"
    if request.universal is not None:
        yield "searches for one perturbation that all images share"
    if request.thresholds:
        yield f"requires {', '.join(request.thresholds)}"


def _named(tasks: Sequence[Task]) -> str:
    if len(tasks) > 1:
        return f"each of {len(tasks)} classes in turn"
    return " and ".join(tasks[0].positive)


def _examples(request: AuditRequest, summary: DatasetSummary, split: Split | None) -> int:
    examples = summary.examples_in(split)
    return request.sampled(examples) or examples


def _foreseen(
    request: AuditRequest, summary: DatasetSummary, split: Split | None, tasks: Sequence[Task]
) -> Foreseen:
    images, examples = _examples(request, summary, split), summary.examples_in(split)
    counts, found = summary.counts(split), Foreseen(0, 0)
    for task in tasks:
        of_each = [counts.get(name, 0) for name in task.positive]
        positives = max(of_each) if summary.multilabel else sum(of_each)
        extent = Extent(
            images=images,
            positives=round(positives * images / examples),
            height=summary.height,
            width=summary.width,
        )
        found += of_task(request, extent)
    return found


def _went_on(job: JobRow, asked: AuditRequest, summary: DatasetSummary) -> bool:
    """Whether an audit that has ended searched on by the attacks that see past the gradient."""
    keys = {attack.key for attack in asked.recovery_attacks(summary.height, summary.width)}
    ran = ((job.result or {}).get("summary") or {}).get("attacks") or {}
    return bool(keys & ran.keys())


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
        understood=[
            f"trains {request.architecture} by {request.method.name} to rank "
            f"{_named(training_tasks(request.task, summary))}, {request.epochs} epochs",
            *_sample_in_words(request, summary),
        ],
        images=_looked_at(request, summary)[0],
        attacks=[],
        passes=_passes_of_training(request, summary),
        seconds=None,
        basis="",
        warnings=[] if caution is None else [caution.message],
    )
    return _timed(session, caller, JobKind.TRAIN, work, passes_of)


def _sample_in_words(request: TrainingRequest, summary: DatasetSummary) -> Iterator[str]:
    whole = _for_training(summary)
    if request.sample is not None and request.sample < whole:
        yield (
            f"on a sample of about {request.sample:,} of {whole:,} images, each class in its share"
        )


def of_sweep(
    session: Session,
    caller: Caller,
    request: SweepRequest,
    possible: Sequence[TrainingRequest],
    summary: DatasetSummary,
) -> Estimate:
    """Of all trials of a sweep, one after the other.

    possible: the trials of a grid; of a search the corners of its space, the dearest of which
    every trial is taken for, as nobody knows what will be tried.
    """
    of_each = {each.architecture: of_training(session, caller, each, summary) for each in possible}
    rates = {
        name: None if one.seconds is None else one.seconds / one.passes
        for name, one in of_each.items()
    }
    costs = [(_passes_of_training(each, summary), rates[each.architecture]) for each in possible]
    if isinstance(request.search, Search):
        costs = [max(costs, key=lambda cost: cost[0] * (cost[1] or 1.0))] * request.planned
    seconds = [None if rate is None else passes * rate for passes, rate in costs]
    known = [each for each in seconds if each is not None]
    unknown = next((one for one in of_each.values() if one.seconds is None), None)
    said = unknown or next(iter(of_each.values()))
    most = " A search may try cheaper ones: at most." if isinstance(request.search, Search) else ""
    return said.model_copy(
        update={
            "trials": request.planned,
            "passes": sum(passes for passes, _ in costs),
            "seconds": None if unknown is not None else round(sum(known), 1),
            "basis": said.basis + most,
        }
    )


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
    slowest = max(rates)
    times = {"seconds": round(slowest * work.passes, 1), "basis": basis}
    if work.most_passes is not None:
        times["most_seconds"] = round(slowest * work.most_passes, 1)
    return work.model_copy(update=times)


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


def _passes_of_training(request: TrainingRequest, summary: DatasetSummary) -> int:
    """Forward and backward passes of one image: those of each step, and of validation."""
    clean = request.method.name in UNATTACKED
    step = STEP * (1 if request.weight_perturbation is None else 2)
    step += 0 if clean else 2 * request.attack.steps
    select_by = request.validation.select_by or ("clean_ap" if clean else "robust_ap")
    judging = 1 if select_by == "clean_ap" else 2 + 2 * VALIDATION_STEPS
    trained, judged = _looked_at(request, summary)
    judgings = math.ceil(request.epochs / request.validation.every)
    return request.epochs * trained * step + judgings * judged * judging


def _looked_at(request: TrainingRequest, summary: DatasetSummary) -> tuple[int, int]:
    """Images that are trained on, and those that choose the epoch."""
    images = summary.split_examples.get("train", summary.examples)
    declared = summary.split_examples.get("validation")
    share = min(1.0, (request.sample or math.inf) / _for_training(summary))
    if declared is not None:
        return round(images * share), round(declared * share)
    judged = round(images * share * request.validation.fraction)
    return round(images * share) - judged, judged


def _for_training(summary: DatasetSummary) -> int:
    """Images to train on and to choose the epoch by."""
    return summary.split_examples.get("train", summary.examples) + summary.split_examples.get(
        "validation", 0
    )
