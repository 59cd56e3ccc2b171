"""Deliveries to webhooks: rows as jobs are, so that none is lost, whatever is killed when.

An event is written in the transaction that ends its job. Whoever sends it takes it by one guarded
update, which also says when it is due again if nobody reports what became of it.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.orm import Session

from adap.store.database import now
from adap.store.ids import new_id
from adap.store.tables import DeliveryRow, DeliveryStatus, JobStatus, WebhookRow

LEASE_S = 60.0  # longer than one attempt may take
BACKOFF_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)  # then it is given up
KEPT_S = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Sending:
    """The right to send one delivery once: its attempt is a fencing token."""

    id: str
    webhook_id: str
    attempt: int
    url: str
    key: str  # the name of the key that signs
    payload: str


def announce(session: Session, job: Row[Any], status: JobStatus) -> None:
    """Queue an event for every webhook of the tenant that wants to know that a job has ended.

    `job` has its id, tenant, kind and parent_id.
    """
    if job.parent_id is not None:  # a shard is no job of the tenant's
        return
    event = f"job.{status.value}"
    for webhook in session.scalars(select(WebhookRow).where(WebhookRow.tenant == job.tenant)):
        if event in webhook.events:
            data = {
                "job_id": job.id,
                "kind": job.kind.value,
                "status": status.value,
                "links": {"self": f"/v1/jobs/{job.id}"},
            }
            at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            payload = json.dumps({"type": event, "timestamp": at, "data": data})
            session.add(
                DeliveryRow(
                    id=new_id("msg"),
                    webhook_id=webhook.id,
                    job_id=job.id,
                    event=event,
                    payload=payload,
                )
            )


def due(session: Session, *, limit: int, besides: Collection[str] = ()) -> Sequence[str]:
    """Deliveries that somebody should take now: of each webhook but these the one due first.

    The webhooks come in no order, so that those with many deliveries do not always come first.
    """
    first = (
        select(DeliveryRow.id)
        .where(
            DeliveryRow.webhook_id == WebhookRow.id,
            DeliveryRow.status == DeliveryStatus.PENDING,
            DeliveryRow.next_at <= now(),
        )
        .order_by(DeliveryRow.next_at)
        .limit(1)
        .scalar_subquery()
    )
    return session.scalars(
        select(first)
        .select_from(WebhookRow)
        .where(WebhookRow.id.not_in(besides), first.is_not(None))
        .order_by(func.random())
        .limit(limit)
    ).all()


def take(session: Session, delivery_id: str) -> Sending | None:
    """Take a delivery; None if somebody else has."""
    row = session.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.id == delivery_id,
            DeliveryRow.status == DeliveryStatus.PENDING,
            DeliveryRow.next_at <= now(),
        )
        .values(attempt=DeliveryRow.attempt + 1, next_at=now() + LEASE_S, attempted_at=now())
        .returning(DeliveryRow.attempt, DeliveryRow.payload, DeliveryRow.webhook_id)
    ).first()
    if row is None:
        return None
    webhook = session.get_one(WebhookRow, row.webhook_id)
    return Sending(delivery_id, webhook.id, row.attempt, webhook.url, webhook.key, row.payload)


def settle(session: Session, sending: Sending, *, answered: int | None, error: str | None) -> None:
    """Note what became of an attempt: delivered by 2xx, else due again later, at last given up."""
    if answered is not None and 200 <= answered < 300:
        values: dict[str, Any] = {"status": DeliveryStatus.DELIVERED}
    elif sending.attempt > len(BACKOFF_S):
        values = {"status": DeliveryStatus.FAILED}
    else:
        values = {"next_at": now() + BACKOFF_S[sending.attempt - 1]}
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.id == sending.id, DeliveryRow.attempt == sending.attempt)
        .values(answered=answered, error=error, **values)
    )


def again(session: Session, row: DeliveryRow) -> None:
    """Send a delivery once more from the start, under the same id."""
    row.status = DeliveryStatus.PENDING
    row.attempt = 0
    row.next_at = session.scalar(now().select()) or 0.0


def remove(session: Session, webhook: WebhookRow) -> None:
    """Forget a webhook, and what was to be sent to it."""
    session.execute(delete(DeliveryRow).where(DeliveryRow.webhook_id == webhook.id))
    session.delete(webhook)


def forget(session: Session) -> None:
    """Forget the deliveries that ended long ago."""
    session.execute(
        delete(DeliveryRow).where(
            DeliveryRow.status != DeliveryStatus.PENDING, DeliveryRow.created_at < now() - KEPT_S
        )
    )
