"""Scores by what they depend on: what was attacked once is not attacked again.

A key is a hash of model, data, attack, threat and seed, and of the tenant, who thereby learns
nothing of what others have audited. A row that nobody asks for is forgotten, and its blob goes
with the next garbage collection.
"""

from collections.abc import Collection, Mapping

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from adap.store.database import now
from adap.store.tables import ScoresRow


def find(session: Session, keys: Collection[str]) -> dict[str, str]:
    """The blobs of the keys that are known; they are young again."""
    known = select(ScoresRow.key, ScoresRow.blob_sha256).where(ScoresRow.key.in_(keys))
    found = {row.key: row.blob_sha256 for row in session.execute(known)}
    session.execute(update(ScoresRow).where(ScoresRow.key.in_(found)).values(used_at=now()))
    return found


def keep(session: Session, blobs: Mapping[str, str]) -> None:
    """Remember the blob of each key. Two workers may measure the same at the same time: each of
    them keeps its own, and the last one is remembered."""
    for key, sha256 in sorted(blobs.items()):  # in one order, so that two never wait for each other
        values = {"blob_sha256": sha256, "used_at": now()}
        changed = update(ScoresRow).where(ScoresRow.key == key).values(values)
        if session.execute(changed.returning(ScoresRow.key)).first() is not None:
            continue
        try:
            with session.begin_nested():
                session.execute(insert(ScoresRow).values(key=key, **values))
        except IntegrityError:  # the other worker was in between
            session.execute(changed)


def forget(session: Session, *, unused_s: float) -> None:
    """Drop what nobody has asked for this long."""
    session.execute(delete(ScoresRow).where(ScoresRow.used_at < now() - unused_s))
