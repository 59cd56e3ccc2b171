"""Models compared on one data set, from audits that were run already."""

import logging
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from safetensors.numpy import load
from sqlalchemy import select

from adap.api import assets
from adap.api.deps import House, HouseDep, Reader
from adap.api.errors import problems
from adap.api.guarded import GuardedRoute
from adap.api.schemas import Contender, Leaderboard, LeaderboardSetting
from adap.core.config import AuditConfig, AuditRequest, ClassName, EachClass, Norm, Split
from adap.core.figures.intervals import percentile_interval
from adap.core.report import APFigure, Difference, Interval
from adap.core.resolve import DatasetSummary, resolve_split
from adap.store.storage import MissingContentError
from adap.store.tables import DatasetRow, JobKind, JobRow, JobStatus, ModelRow

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/leaderboard", tags=["audits"], route_class=GuardedRoute)

Resampled = dict[str, NDArray[np.float64]]

_LOST = (
    "The scores of this audit are lost, so that there are no intervals: an operator can put them "
    "back, or audit the model again."
)


@router.get("", responses=problems("not_found", "not_ready"))
def leaderboard(
    house: HouseDep,
    caller: Reader,
    dataset_id: Annotated[str, Query(pattern=r"^ds_[0-9a-z]{26}$", max_length=40)],
    positive: Annotated[
        list[ClassName] | None,
        Query(max_length=1000, description="positive classes of the task; repeated where several"),
    ] = None,
    split: Split | None = None,
    norm: Norm | None = None,
    epsilon: Annotated[float | None, Query(ge=0, le=1000)] = None,
) -> Leaderboard:
    """The models that were audited on a data set, the highest worst-case AP first.

    Audits are comparable where task, split and threat agree: by default those of the newest audit
    that fits what is asked for. Of each model the newest such audit counts. Differences to the
    leader are paired: both rankings on the same resamples of the same images.
    """
    with house.database.reading() as session:
        dataset = assets.find(session, DatasetRow, dataset_id, caller)
        assets.require_ready(dataset)
        query = (
            select(JobRow, ModelRow)
            .join(ModelRow, ModelRow.id == JobRow.model_id)
            .where(
                JobRow.kind == JobKind.AUDIT,
                JobRow.status == JobStatus.SUCCEEDED,
                JobRow.tenant == caller.tenant,
                JobRow.dataset_id == dataset_id,
                ModelRow.deleted_at.is_(None),
            )
            .order_by(JobRow.id.desc())
        )
        audits = [
            (job, model)
            for job, model in session.execute(query)
            if "blobs" in (job.result or {})  # a report that was removed has no intervals
        ]
        summary = DatasetSummary.model_validate(dataset.summary)
    asked: dict[str, Any] = {
        "positive": positive and sorted(positive),
        "split": split,
        "norm": norm,
        "epsilon": epsilon,
    }
    chosen: dict[str, Any] | None = None
    newest: dict[str, tuple[JobRow, ModelRow]] = {}
    for job, model in audits:
        setting = _setting(job, summary)
        if chosen is None and all(value in (None, setting[key]) for key, value in asked.items()):
            chosen = setting
        if setting == chosen:
            newest.setdefault(model.id, (job, model))
    if chosen is None:
        return Leaderboard(dataset_id=dataset_id, setting=None, contenders=[])
    return Leaderboard(
        dataset_id=dataset_id,
        setting=LeaderboardSetting(**chosen),
        contenders=_ranked(house, list(newest.values())),
    )


def _setting(job: JobRow, summary: DatasetSummary) -> dict[str, Any]:
    """What must agree for two audits to be comparable."""
    config = _config(job)
    task = config.task
    tasks = (job.result or {})["summary"]["tasks"]
    return {
        "positive": None if isinstance(task, EachClass) else sorted(tasks[0]["positive"]),
        "split": resolve_split(config.split, summary),
        "norm": config.threat.norm,
        "epsilon": config.threat.epsilon,
    }


def _config(job: JobRow) -> AuditConfig:
    fields = {key: job.request[key] for key in AuditRequest.model_fields if key in job.request}
    return AuditRequest.model_validate(fields)


def _ranked(house: House, audits: list[tuple[JobRow, ModelRow]]) -> list[Contender]:
    """The contenders, best first, with their paired differences to the best."""
    by_ap = sorted(audits, key=lambda audit: (-_summary(audit[0])["worst_case_ap"], audit[1].id))
    leader_job = by_ap[0][0]
    leader = _resampled(house, leader_job)
    contenders = []
    for rank, (job, model) in enumerate(by_ap, start=1):
        summary, own = _summary(job), leader if rank == 1 else _resampled(house, job)
        difference = None
        if rank > 1:
            difference = Difference(
                value=summary["worst_case_ap"] - _summary(leader_job)["worst_case_ap"],
                interval=_paired(own, leader),
            )
        contenders.append(
            Contender(
                rank=rank,
                model_id=model.id,
                model_name=model.name,
                job_id=job.id,
                clean=_figure(summary["clean_ap"], own, "clean"),
                worst_case=_figure(summary["worst_case_ap"], own, "worst_case"),
                problem=None if own is not None else _LOST,
                to_leader=difference,
                trust=summary["trust"],
                attacks=list(summary["attacks"]),
                attacked_as_leader=_attacks(job) == _attacks(leader_job),
            )
        )
    return contenders


def _summary(job: JobRow) -> dict[str, Any]:
    return dict((job.result or {})["summary"])


def _attacks(job: JobRow) -> list[Any]:
    return [attack.as_json() for attack in _config(job).resolved_attacks()]


def _figure(ap: float, resampled: Resampled | None, name: str) -> APFigure:
    return APFigure(
        ap=ap, interval=None if resampled is None else percentile_interval(resampled[name])
    )


def _paired(own: Resampled | None, leader: Resampled | None) -> Interval | None:
    """The interval of a difference in the worst case; None unless both have the same resamples."""
    if own is None or leader is None or own["worst_case"].shape != leader["worst_case"].shape:
        return None
    return percentile_interval(own["worst_case"] - leader["worst_case"])


def _resampled(house: House, job: JobRow) -> Resampled | None:
    """(resamples,) bootstrapped mean APs over the tasks, clean and in the worst case.

    None where the file is lost: the figures of the others are shown all the same.
    """
    try:
        with house.blobs.open((job.result or {})["blobs"]["resampled"]) as file:
            arrays = load(file.read())
    except MissingContentError as error:
        log.warning("content.missing", extra={"job_id": job.id, "reason": str(error)})
        return None
    return {
        name: np.mean([arrays[key] for key in arrays if key.endswith(f".{name}")], axis=0)
        for name in ("clean", "worst_case")
    }
