"""Sweeps: many trainings that differ in some fields, and which of them are worth having."""

from collections import Counter
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from adap.api import assets, estimates, limits
from adap.api.assets import AssetId
from adap.api.deps import Caller, House, HouseDep, Reader, Writer
from adap.api.errors import POSTED, ApiError, ErrorItem, not_found, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.listing import After, Limit, Match, matching, page
from adap.api.pages import PAGE, wants_page
from adap.api.pages.compare import sweep_page
from adap.api.routes.training import resolve
from adap.api.schemas import (
    Estimate,
    JobFailure,
    Page,
    Progress,
    Sweep,
    SweepInfo,
    Trial,
    timestamp,
)
from adap.core.config.training import TrainingRequest
from adap.core.resolve import DatasetSummary
from adap.core.training.search import suggest
from adap.core.training.sweeps import (
    Grid,
    SweepRequest,
    best,
    combinations,
    outcome,
    pareto_front,
    refuse_unusable,
    trial,
)
from adap.store import sweeps
from adap.store.tables import LIVE, DatasetRow, JobRow, JobStatus, SweepRow, TrialRow

router = APIRouter(prefix="/v1/sweeps", tags=["training"], route_class=GuardedRoute)

Trials = Sequence[tuple[TrialRow, JobRow]]


@router.post(
    "",
    status_code=201,
    responses=problems("not_found", "not_ready", "invalid_config", "invalid_data", *POSTED),
)
def sweep(
    request: SweepRequest,
    house: HouseDep,
    caller: Writer,
    once: IdempotencyDep,
    response: Response,
) -> Sweep:
    """Train many models that differ in some fields: a grid of values, or a search.

    Each trial is a training job. All trials of a grid are queued at once; a search makes the next
    trial when one has ended.
    """
    possible = _possible(request, house)
    search = request.search
    first = (
        list(combinations(search))
        if isinstance(search, Grid)
        else [
            suggest(search, number=number, seen=[])
            for number in range(min(search.at_once, search.trials))
        ]
    )
    with once.writing(request.as_json(), new_jobs=len(first)) as session:
        training, columns = _resolve(session, request, possible, caller)
        request = request.model_copy(update={"training": training})
        row = sweeps.create(
            session,
            tenant=caller.tenant,
            name=request.name,
            request=request.as_json(),
            planned=request.planned,
            **columns,
        )
        for number, parameters in enumerate(first):
            sweeps.add_trial(
                session,
                row,
                parameters=parameters,
                request=trial(request, parameters, number=number).as_json(),
            )
        made = sweeps.trials(session, row.id)
        answer = _sweep(row, made)
        location = response.headers["Location"] = answer.links["self"]
        once.keep(session, answer, location=location)
    for _, job in made:
        house.ring(job)
    return answer


@router.post(
    "/estimate",
    responses=problems("not_found", "not_ready", "invalid_config", "invalid_data"),
)
def estimate_sweep(request: SweepRequest, house: HouseDep, caller: Writer) -> Estimate:
    """What all trials would cost; nothing is made. It is refused as the sweep would be."""
    possible = _possible(request, house)
    with house.database.reading() as session:
        training, _ = _resolve(session, request, possible, caller)
        row = assets.find(session, DatasetRow, training.dataset_id, caller)
        summary = DatasetSummary.model_validate(row.summary)
        return estimates.of_sweep(session, caller, request, possible, summary)


@router.get("", responses=problems())
def list_sweeps(
    house: HouseDep,
    caller: Reader,
    limit: Limit = 20,
    after: After = None,
    match: Match = None,
) -> Page[SweepInfo]:
    """The sweeps, newest first, without their trials."""
    query = select(SweepRow).where(SweepRow.tenant == caller.tenant)
    with house.database.reading() as session:
        return page(
            session,
            matching(query, SweepRow.id, SweepRow.name, match),
            SweepRow.id,
            limit=limit,
            after=after,
            answer=lambda row: _info(row, sweeps.counts(session, row.id)),
        )


@router.get(
    "/{sweep_id}", response_model=Sweep, responses=problems("not_found", "not_acceptable") | PAGE
)
def show_sweep(
    sweep_id: AssetId, request: Request, response: Response, house: HouseDep, caller: Reader
) -> Sweep | Response:
    """One sweep: its trials, the best of them, and the Pareto front of clean and robust AP.

    Also as a page (`text/html`).
    """
    as_page = wants_page(request, response)
    with house.database.reading() as session:
        row = _find(session, sweep_id, caller)
        shown = _sweep(row, sweeps.trials(session, sweep_id))
        dataset = session.get(DatasetRow, row.dataset_id) if as_page else None
        there = dataset is not None and dataset.deleted_at is None
        name = dataset.name if dataset is not None and there else None
    return sweep_page(shown, dataset_name=name) if as_page else shown


@router.post(
    "/{sweep_id}/cancel",
    responses=problems("not_found", "already_finished", "idempotency_key_reused"),
)
def cancel_sweep(sweep_id: AssetId, caller: Writer, once: IdempotencyDep) -> Sweep:
    """Cancel all trials that have not ended, and make no more."""
    with once.writing(None) as session:
        row = _find(session, sweep_id, caller)
        if not sweeps.cancel(session, sweep_id):
            raise ApiError("already_finished", f"All trials of the sweep {sweep_id} have ended.")
        session.expire_all()
        answer = _sweep(row, sweeps.trials(session, sweep_id))
        return once.keep(session, answer, status=200)


def _possible(request: SweepRequest, house: House) -> list[TrainingRequest]:
    """The trainings that were looked at. Raises ApiError or ConfigError for what is no sweep."""
    limit = house.settings.max_sweep_trials
    if request.planned > limit:
        detail = (
            f"expected at most {limit:,} trials (ADAP_MAX_SWEEP_TRIALS), got {request.planned:,}"
        )
        item = ErrorItem(pointer="/body/search", detail=detail)
        raise ApiError("invalid_request", f"/body/search: {detail}", errors=[item])
    possible = refuse_unusable(request)
    for each in possible:
        limits.check(house.settings, {"training": each.as_json()})
    return possible


def _resolve(
    session: Session,
    request: SweepRequest,
    possible: Sequence[TrainingRequest],
    caller: Caller,
) -> tuple[TrainingRequest, dict[str, str | None]]:
    """What `resolve` answers of the training that all have in common; it raises for any trial's."""
    resolved = resolve(session, request.training, caller)
    for other in {
        (each.architecture, each.method.name, each.sample): each for each in possible
    }.values():
        resolve(session, other, caller)
    return resolved


def _find(session: Session, sweep_id: str, caller: Caller) -> SweepRow:
    row = session.get(SweepRow, sweep_id)
    if row is None or row.tenant != caller.tenant:
        raise not_found("sweep", sweep_id)
    return row


def _sweep(row: SweepRow, trials: Trials) -> Sweep:
    outcomes = [outcome(trial.number, trial.parameters, job.result) for trial, job in trials]
    front = pareto_front(outcomes)
    shown = []
    for (row_of_trial, job), known in zip(trials, outcomes, strict=True):
        result = job.result or {}
        shown.append(
            Trial(
                number=known.number,
                job_id=job.id,
                status=job.status,
                progress=None if job.progress is None else Progress.model_validate(job.progress),
                parameters=row_of_trial.parameters,
                clean_ap=known.clean_ap,
                robust_ap=known.robust_ap,
                best_epoch=result["summary"]["best"]["epoch"] if result else None,
                model_id=result.get("model_id"),
                on_front=known.number in front,
                error=None if job.error is None else JobFailure.model_validate(job.error),
            )
        )
    request = SweepRequest.model_validate(row.request)
    return Sweep(
        **_info(row, Counter(job.status for _, job in trials)).model_dump(),
        trials=shown,
        best=best(request, outcomes),
        front=front,
    )


def _info(row: SweepRow, counts: Mapping[JobStatus, int]) -> SweepInfo:
    status = _status(row, counts)
    path = f"/v1/sweeps/{row.id}"
    return SweepInfo(
        id=row.id,
        name=row.name,
        status=status,
        done=status not in LIVE,
        created_at=timestamp(row.created_at),
        dataset_id=row.dataset_id,
        planned=row.planned,
        counts=dict(counts),
        request=row.request,
        links={"self": path, "dataset": f"/v1/datasets/{row.dataset_id}"},
    )


def _status(row: SweepRow, counts: Mapping[JobStatus, int]) -> JobStatus:
    """What a sweep is, by what its trials are."""
    if row.unfinished or counts.keys() & LIVE:
        if row.cancelled_at is not None:
            return JobStatus.CANCELLING
        started = counts.keys() - {JobStatus.QUEUED}
        return JobStatus.RUNNING if started else JobStatus.QUEUED
    if row.cancelled_at is not None:
        return JobStatus.CANCELLED
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        if status in counts:
            return status
    return JobStatus.CANCELLED
