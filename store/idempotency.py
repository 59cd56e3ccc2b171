"""Answers that are kept by Idempotency-Key: forgotten when nobody sends the request again."""

from sqlalchemy import delete
from sqlalchemy.orm import Session

from adap.store.database import now
from adap.store.tables import IdempotencyRow


def forget(session: Session, *, older_s: float) -> None:
    """Forget the answers that were given longer ago than this."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now() - older_s))
