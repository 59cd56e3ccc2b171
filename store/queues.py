"""Queues that an operator pauses: while one is paused no worker takes a job of it.

What runs goes on, and a running audit goes on taking its own shards, so that it ends. The state is
a row, and holds for every worker and across restarts.
"""

from dataclasses import dataclass

from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy.orm import Session

from adap.store.database import now
from adap.store.kinds import QUEUES, Queue
from adap.store.tables import WORKED_ON, JobRow, JobStatus, QueueRow


@dataclass(frozen=True)
class QueueState:
    """A queue as it is."""

    name: Queue
    paused_at: float | None  # seconds since the epoch; None while it is not paused
    reason: str | None  # why it is paused, as the operator said
    queued: int  # jobs that wait, without the shards of audits
    held: int  # jobs and shards that a worker holds: what a drain waits for


_ROW = (
    select(QueueRow.name, QueueRow.paused_at)
    .where(QueueRow.name == bindparam("queue"))
    .with_for_update(read=True)  # PostgreSQL: who pauses waits for claims that are being made
)

_NEW = text("INSERT INTO queues (name) VALUES (:queue) ON CONFLICT DO NOTHING")


def is_paused(session: Session, queue: str) -> bool:
    """Whether nothing may be taken; if not, nobody pauses it before this transaction ends."""
    row = session.connection().execute(_ROW, {"queue": queue}).first()
    if row is None:
        _announce(session, queue)
        row = session.connection().execute(_ROW, {"queue": queue}).one()
    return row.paused_at is not None


def _announce(session: Session, queue: str) -> None:
    """Make the row of a queue, if another process has not: only on a row can others wait."""
    session.connection().execute(_NEW, {"queue": queue})


def pause(session: Session, queue: Queue, *, reason: str | None) -> None:
    """Let no worker take a job from the commit on. One that is paused stays so since then."""
    _announce(session, queue)
    session.execute(
        update(QueueRow)
        .where(QueueRow.name == queue)
        .values(paused_at=func.coalesce(QueueRow.paused_at, now()), reason=reason)
    )


def resume(session: Session, queue: Queue) -> None:
    """Let workers take jobs again; they look for some every few seconds."""
    session.execute(
        update(QueueRow).where(QueueRow.name == queue).values(paused_at=None, reason=None)
    )


def paused(session: Session) -> dict[str, str]:
    """Of each queue that is paused why its jobs wait, as half a sentence."""
    rows = session.execute(
        select(QueueRow.name, QueueRow.reason)
        .where(QueueRow.paused_at.is_not(None))
        .order_by(QueueRow.name)
    )
    return {
        row.name: f"the queue {row.name!r} is paused" + (f": {row.reason}" if row.reason else "")
        for row in rows
    }


def states(session: Session) -> list[QueueState]:
    """Every queue as it is."""
    held = JobRow.status.in_(WORKED_ON)
    counts = {
        row.queue: row
        for row in session.execute(
            select(
                JobRow.queue,
                func.count().filter(~held, JobRow.parent_id.is_(None)).label("queued"),
                func.count().filter(held).label("held"),
            )
            .where(JobRow.status.in_((JobStatus.QUEUED, *WORKED_ON)))
            .group_by(JobRow.queue)
        )
    }
    rows = {row.name: row for row in session.scalars(select(QueueRow))}
    return [
        QueueState(
            name=queue,
            paused_at=rows[queue].paused_at if queue in rows else None,
            reason=rows[queue].reason if queue in rows else None,
            queued=counts[queue].queued if queue in counts else 0,
            held=counts[queue].held if queue in counts else 0,
        )
        for queue in QUEUES
    ]
