"""Files that come in parts: which parts are there, and what becomes of those that nobody ends.

Parts are staged in the blob store under names of their own, written before their rows and removed
after them: a crash in between leaves a file that no row refers to, which is garbage after a while,
and never a row whose file is missing.
"""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from adap.store import freed
from adap.store.database import now
from adap.store.ids import new_id
from adap.store.tables import UploadPartRow, UploadRow


def find_same(session: Session, *, tenant: str, sha256: str, size: int) -> UploadRow | None:
    """The newest upload of the same content, complete or not, to go on with."""
    same = select(UploadRow).where(
        UploadRow.tenant == tenant,
        UploadRow.sha256 == sha256,
        UploadRow.size == size,
        UploadRow.expires_at > now(),
    )
    return session.scalar(same.order_by(UploadRow.id.desc()).limit(1))


def add(
    session: Session,
    *,
    tenant: str,
    file_name: str,
    size: int,
    sha256: str | None,
    part_bytes: int,
    kept_s: float,
) -> UploadRow:
    """A new upload without parts."""
    row = UploadRow(
        id=new_id("upl"),
        tenant=tenant,
        file_name=file_name,
        size=size,
        sha256=sha256,
        part_bytes=part_bytes,
        expires_at=_later(session, kept_s),
    )
    session.add(row)
    session.flush()
    return row


def parts(row: UploadRow) -> int:
    """How many parts make the file."""
    return -(-row.size // row.part_bytes)


def part_size(row: UploadRow, number: int) -> int:
    """Bytes of a part, counted from 1: all are equal but the last."""
    return min(row.part_bytes, row.size - (number - 1) * row.part_bytes)


def received(session: Session, row: UploadRow) -> dict[int, str]:
    """The parts that are there, in their order, and the names under which they are staged."""
    found = select(UploadPartRow).where(UploadPartRow.upload_id == row.id)
    return {
        part.number: part.staged for part in session.scalars(found.order_by(UploadPartRow.number))
    }


def put_part(
    session: Session, row: UploadRow, number: int, staged: str, *, kept_s: float
) -> str | None:
    """Note a part that is staged; returns the name of the one that it replaces.

    The row of the upload must be locked, so that a part that comes twice at once has one row.
    """
    row.expires_at = _later(session, kept_s)
    before = session.get(UploadPartRow, (row.id, number))
    if before is None:
        session.add(UploadPartRow(upload_id=row.id, number=number, staged=staged))
        return None
    replaced, before.staged = before.staged, staged
    return replaced


def complete(session: Session, row: UploadRow, sha256: str) -> None:
    """Note the blob that the parts have been joined to; they are needed no more."""
    row.blob_sha256 = sha256
    session.execute(delete(UploadPartRow).where(UploadPartRow.upload_id == row.id))
    session.flush()


def use(session: Session, row: UploadRow, *, kept_s: float) -> None:
    """Note that something was made of it: what it takes is counted there from now on."""
    row.used_at = session.scalar(now().select())
    row.expires_at = _later(session, kept_s)
    session.flush()


def remove(session: Session, ids: Sequence[str]) -> None:
    """Forget uploads; their files go with the next garbage collection."""
    unused = UploadRow.used_at.is_(None) & UploadRow.blob_sha256.is_not(None)
    for row in session.scalars(select(UploadRow).where(UploadRow.id.in_(ids), unused)):
        freed.note(session, row.tenant, row.size)
    session.execute(delete(UploadPartRow).where(UploadPartRow.upload_id.in_(ids)))
    session.execute(delete(UploadRow).where(UploadRow.id.in_(ids)))


def forget(session: Session) -> None:
    """Forget the uploads that nobody has gone on with in time."""
    remove(
        session, session.scalars(select(UploadRow.id).where(UploadRow.expires_at <= now())).all()
    )


def _later(session: Session, seconds: float) -> float:
    at = session.scalar(now().select())
    assert at is not None
    return at + seconds
