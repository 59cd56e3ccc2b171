"""What a tenant has let go of and the disk still holds, until the garbage is collected.

Whoever sends and removes in a loop would fill the disk with what nobody counts. So it is noted here
when a row lets go of its file, and counts for as long as the file may stay.
"""

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from adap.store.database import now
from adap.store.ids import new_id
from adap.store.tables import FreedRow

COLLECTED_EVERY_S = 3600.0


def note(session: Session, tenant: str, size: int | None) -> None:
    """A row of this tenant lets go of a file of so many bytes, if it had one."""
    if size:
        session.add(FreedRow(id=new_id("free"), tenant=tenant, size=size))


def held_bytes(session: Session, tenant: str, *, grace_s: float) -> int:
    """Bytes that the disk may still hold of what this tenant let go of."""
    recent = FreedRow.since > now() - held_s(grace_s)
    held = select(func.sum(FreedRow.size)).where(FreedRow.tenant == tenant, recent)
    return int(session.scalar(held) or 0)


def forget(session: Session, *, grace_s: float) -> None:
    """Forget what is deleted by now."""
    session.execute(delete(FreedRow).where(FreedRow.since <= now() - held_s(grace_s)))


def held_s(grace_s: float) -> float:
    """How long a file may stay: it is condemned at one collection, and deleted at a later one."""
    return 2 * (grace_s + COLLECTED_EVERY_S)
