"""The files that a job itself has made: a report with its scores, a ranking, an exported model.

Their bytes are the tenant's, as those of data sets and models are, until they are removed.
"""

from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from adap.store import freed
from adap.store.tables import DatasetRow, JobFileRow, JobRow, ModelRow, UploadRow


def note_size(session: Session, job: JobRow, size: int) -> None:
    """How many bytes the data set or model takes that a job has made, or else its own files."""
    if job.kind.about.own_files:
        session.execute(update(JobRow).where(JobRow.id == job.id).values(result_bytes=size))
        return
    for table in (DatasetRow, ModelRow):
        session.execute(update(table).where(table.job_id == job.id).values(stored_bytes=size))


def stored_bytes(session: Session, tenant: str) -> int:
    """Bytes of all that a tenant has stored."""
    sums = [
        select(func.sum(JobRow.result_bytes)).where(
            JobRow.tenant == tenant, JobRow.result_bytes.is_not(None)
        ),
        select(func.sum(UploadRow.size)).where(
            UploadRow.tenant == tenant, UploadRow.used_at.is_(None)
        ),
        *(
            select(func.sum(table.stored_bytes)).where(
                table.tenant == tenant,
                or_(table.upload_sha256.is_not(None), table.content_sha256.is_not(None)),
            )
            for table in (DatasetRow, ModelRow)
        ),
    ]
    return sum(int(session.scalar(query) or 0) for query in sums)


def remove(session: Session, *which: Any) -> None:
    """Let go of the files of these jobs and of their shards; the figures of their results stay."""
    jobs = select(JobRow.id).where(*which)
    for job in session.scalars(
        select(JobRow).where(
            or_(JobRow.id.in_(jobs), JobRow.parent_id.in_(jobs)), JobRow.result.is_not(None)
        )
    ):
        job.result = {key: value for key, value in (job.result or {}).items() if key != "blobs"}
        freed.note(session, job.tenant, job.result_bytes)
        job.result_bytes = None
        session.execute(delete(JobFileRow).where(JobFileRow.job_id == job.id))
