"""Garbage: files of the blob store that no row refers to, and how they go without a needed one.

A file that is old and not referred to is condemned first: its name is noted. Some time later it is
looked at once more and deleted, both under the lock of its note. Whoever refers to a file calls
`refer` in the same transaction, which takes the note away under that lock, or finds the file gone
and raises ContentGoneError: then it must be stored again. So of a deletion and a reference one
comes first, and content that somebody refers to is there.

The note of a deleted file stays for a while, for those who stored the same content just before it
went and refer to it only now.
"""

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from sqlalchemy import ColumnElement, insert, select, union
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from adap.store.blobs import Blobs
from adap.store.database import UNHURRIED, Database, now
from adap.store.tables import (
    CondemnedRow,
    DatasetRow,
    JobFileRow,
    JobRow,
    ModelRow,
    ScoresRow,
    UploadPartRow,
    UploadRow,
)

REFERENCES: tuple[InstrumentedAttribute[str | None] | InstrumentedAttribute[str], ...] = (
    DatasetRow.upload_sha256,
    DatasetRow.content_sha256,
    ModelRow.upload_sha256,
    ModelRow.content_sha256,
    JobRow.checkpoint_sha256,
    JobFileRow.sha256,
    ScoresRow.blob_sha256,
    UploadRow.blob_sha256,
    UploadPartRow.staged,
)
LOOKED_AT_ONCE = 500  # names in one question to the database
DELETED_AT_ONCE = 20  # files in one transaction: it holds the writers of SQLite up


class ContentGoneError(Exception):
    """Content that was stored before was deleted as garbage just now: store it again."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the content {name} was removed just now; store it again")


def refer(session: Session, blobs: Blobs, names: Collection[str]) -> None:
    """Keep these files, to which this transaction makes rows refer.

    Raises ContentGoneError where one has been deleted since it was stored.
    """
    query = select(CondemnedRow).where(CondemnedRow.name.in_(names)).order_by(CondemnedRow.name)
    for note in session.scalars(query.with_for_update()).all():
        if not blobs.exists(note.name):
            raise ContentGoneError(note.name)
        session.delete(note)


def referred(session: Session, names: Collection[str]) -> set[str]:
    """Those of the names that rows refer to."""
    found = union(*(select(column).where(column.in_(names)) for column in REFERENCES))
    return {str(name) for name in session.scalars(found)}


def all_referred(session: Session) -> list[str]:
    """The names of all files that rows refer to, those first that leave soonest."""
    found: dict[str, None] = {}
    for column in (JobRow.checkpoint_sha256, *REFERENCES):
        names = session.scalars(select(column).where(column.is_not(None)).order_by(column))
        found |= {str(name): None for name in names}
    return list(found)


def collect(database: Database, blobs: Blobs, *, grace_s: float) -> int:
    """Condemn what has been garbage for this long, and delete what was condemned this long ago.

    Returns how many files were deleted.
    """
    condemn(database, blobs, older_s=grace_s)
    return delete_condemned(database, blobs, older_s=grace_s)


def condemn(database: Database, blobs: Blobs, *, older_s: float) -> int:
    """Note the files of this age that no row refers to; returns how many are new."""
    condemned = 0
    for names in _in_batches(blobs.older_than(older_s), LOOKED_AT_ONCE):
        with database.reading(**UNHURRIED) as session:
            noted = session.scalars(select(CondemnedRow.name).where(CondemnedRow.name.in_(names)))
            new = set(names) - set(noted) - referred(session, names)
        if not new:
            continue
        try:
            with database.writing() as session:
                session.execute(insert(CondemnedRow), [{"name": name} for name in sorted(new)])
        except IntegrityError:  # another process collects at the same time; it has noted some
            continue
        condemned += len(new)
    return condemned


def delete_condemned(database: Database, blobs: Blobs, *, older_s: float) -> int:
    """Delete the files that were condemned this long ago and that still no row refers to."""
    old = CondemnedRow.since < now() - older_s
    with database.reading(**UNHURRIED) as session:
        due = session.scalars(select(CondemnedRow.name).where(old)).all()
    deleted = 0
    for names in _in_batches(due, DELETED_AT_ONCE):
        with database.writing() as session:
            deleted += _delete(session, blobs, names, old)
    return deleted


def _delete(
    session: Session, blobs: Blobs, names: Collection[str], old: ColumnElement[bool]
) -> int:
    query = select(CondemnedRow).where(CondemnedRow.name.in_(names), old)
    notes = session.scalars(
        query.order_by(CondemnedRow.name).with_for_update(skip_locked=True)
    ).all()
    needed = referred(session, [note.name for note in notes])
    deleted = 0
    for note in notes:
        if note.gone or note.name in needed:
            session.delete(note)
        else:
            blobs.delete(note.name)
            _note_gone(session, note)
            deleted += 1
    return deleted


def discard(session: Session, blobs: Blobs, job_id: str, checkpoint: str) -> None:
    """Delete a checkpoint that its job has let go of, at once, unless a row refers to it again.

    Only this job and its retry ever refer to it, and both lock the job's row when they do.
    """
    session.get(JobRow, job_id, with_for_update=True)
    if referred(session, [checkpoint]):
        return
    note = session.get(CondemnedRow, checkpoint, with_for_update=True)
    if note is None:
        note = CondemnedRow(name=checkpoint)
        session.add(note)
        session.flush()
    blobs.delete(checkpoint)
    _note_gone(session, note)


def _note_gone(session: Session, note: CondemnedRow) -> None:
    note.gone = True
    note.since = session.scalar(now().select()) or 0.0


def _in_batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(names)
    while batch := list(islice(remaining, size)):
        yield batch
