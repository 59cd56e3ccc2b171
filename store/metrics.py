"""Figures of the jobs for those who watch over the service: what waits, how long, how fast.

All come from the rows at the time of asking, so they are the same from every process of the API.
"""

from dataclasses import dataclass

from sqlalchemy import case, func, or_, select
from sqlalchemy.orm import Session

from adap.store.database import now
from adap.store.tables import (
    LIVE,
    QUEUES,
    AssetStatus,
    CondemnedRow,
    DatasetRow,
    DeliveryRow,
    DeliveryStatus,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
    WorkerRow,
)

DURATION_BUCKETS_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)


@dataclass(frozen=True)
class Durations:
    """Seconds from start to end of the jobs of a kind that ended in one way."""

    kind: JobKind
    status: JobStatus
    within: tuple[int, ...]  # how many took at most as long as each of DURATION_BUCKETS_S
    count: int
    total_s: float


def depths(session: Session) -> dict[tuple[JobKind, JobStatus], int]:
    """How many jobs of each kind have not ended, by status."""
    rows = session.execute(
        select(JobRow.kind, JobRow.status, func.count())
        .where(JobRow.status.in_(LIVE))
        .group_by(JobRow.kind, JobRow.status)
    )
    return {(kind, status): count for kind, status, count in rows}


def oldest_s(session: Session) -> dict[tuple[str, JobStatus], float]:
    """How long ago the oldest job of each queue that has not ended was asked for, by status."""
    rows = session.execute(
        select(JobRow.queue, JobRow.status, now() - func.min(JobRow.created_at))
        .where(JobRow.status.in_(LIVE))
        .group_by(JobRow.queue, JobRow.status)
    )
    return {(queue, status): float(age) for queue, status, age in rows}


def durations(session: Session) -> list[Durations]:
    """How long jobs took that were worked on and have ended."""
    took = JobRow.finished_at - JobRow.started_at
    rows = session.execute(
        select(
            JobRow.kind,
            JobRow.status,
            func.count(),
            func.sum(took),
            *(func.sum(case((took <= limit, 1), else_=0)) for limit in DURATION_BUCKETS_S),
        )
        .where(JobRow.finished_at.is_not(None), JobRow.started_at.is_not(None))
        .group_by(JobRow.kind, JobRow.status)
    )
    return [
        Durations(kind, status, tuple(int(n) for n in within), int(count), float(total_s))
        for kind, status, count, total_s, *within in rows
    ]


def attacked(session: Session, *, since_s: float | None = None) -> tuple[int, float]:
    """Images that audits have attacked, once for each attack, and the seconds that it took.

    since_s: only the shards that ended in the last so many seconds.
    """
    query = select(
        func.sum(JobRow.request["images"].as_integer()),
        func.sum(JobRow.finished_at - JobRow.started_at),
    ).where(
        JobRow.kind == JobKind.AUDIT_SHARD,
        JobRow.status == JobStatus.SUCCEEDED,
        JobRow.request["part"].as_string() == "scores",
    )
    if since_s is not None:
        query = query.where(JobRow.finished_at > now() - since_s)
    images, seconds = session.execute(query).one()
    return int(images or 0), float(seconds or 0.0)


def workers(session: Session, *, lease_s: float) -> dict[str, int]:
    """How many workers of each queue live."""
    rows = session.execute(
        select(WorkerRow.queue, func.count())
        .where(WorkerRow.seen_at > now() - lease_s)
        .group_by(WorkerRow.queue)
    )
    return dict.fromkeys(QUEUES, 0) | {row[0]: row[1] for row in rows}


def stored(session: Session) -> dict[str, tuple[int, int]]:
    """How many data sets and models are ready, and their bytes."""
    found = {}
    for name, table in (("datasets", DatasetRow), ("models", ModelRow)):
        count, size = session.execute(
            select(func.count(), func.sum(table.stored_bytes)).where(
                table.status == AssetStatus.READY, table.deleted_at.is_(None)
            )
        ).one()
        found[name] = (int(count), int(size or 0))
    return found


@dataclass(frozen=True)
class Troubles:
    """What an operator wants to be woken by."""

    lost_attempts: int  # that a dead worker or storage cost, of all jobs
    failures: dict[str, int]  # jobs that failed, by code
    undelivered: int  # events that were given up, as their webhook never took them
    delayed: int  # events that a webhook has not taken so far, to be sent again
    condemned: int  # files that are garbage and wait to be deleted


def troubles(session: Session) -> Troubles:
    """All of it, at the time of asking."""
    code = JobRow.error["code"].as_string()
    failed = select(code, func.count()).where(JobRow.status == JobStatus.FAILED).group_by(code)
    given_up = select(func.count()).where(DeliveryRow.status == DeliveryStatus.FAILED)
    delayed = select(func.count()).where(
        DeliveryRow.status == DeliveryStatus.PENDING,
        or_(DeliveryRow.answered.is_not(None), DeliveryRow.error.is_not(None)),
    )
    condemned = select(func.count()).where(CondemnedRow.gone.is_(False))
    return Troubles(
        lost_attempts=int(session.scalar(select(func.sum(JobRow.lost))) or 0),
        failures={str(row[0]): int(row[1]) for row in session.execute(failed)},
        undelivered=int(session.scalar(given_up) or 0),
        delayed=int(session.scalar(delayed) or 0),
        condemned=int(session.scalar(condemned) or 0),
    )
