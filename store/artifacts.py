"""The blob store of the settings, and the collection of blobs that no row refers to.

Rows refer to blobs by hash; a blob that no row refers to is deleted after a grace period.
"""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from adap.store.blobs import Blobs, FolderBlobs
from adap.store.settings import Settings
from adap.store.tables import DatasetRow, JobRow, ModelRow, ScoresRow, UploadPartRow, UploadRow


def open_blobs(settings: Settings) -> Blobs:
    """The blob store of the settings."""
    if settings.blobs.startswith("s3://"):
        from adap.store.s3 import S3Blobs  # an extra: obstore is not needed on one machine

        return S3Blobs(settings)
    return FolderBlobs(Path(settings.blobs))


def collect_garbage(session: Session, blobs: Blobs, *, grace_s: float) -> int:
    """Delete old blobs that no row refers to; returns how many."""
    unreferenced = set(blobs.older_than(grace_s)) - _referenced(session)
    for sha256 in unreferenced:
        blobs.delete(sha256)
    return len(unreferenced)


def _referenced(session: Session) -> set[str]:
    columns = (
        DatasetRow.upload_sha256,
        DatasetRow.content_sha256,
        ModelRow.upload_sha256,
        ModelRow.content_sha256,
        JobRow.checkpoint_sha256,
        JobRow.upload_sha256,
        ScoresRow.blob_sha256,
        UploadRow.blob_sha256,
        UploadPartRow.staged,
    )
    referenced = {name for column in columns for name in session.scalars(select(column)) if name}
    for result in session.scalars(select(JobRow.result).where(JobRow.result.is_not(None))):
        blobs_of_result = (result or {}).get("blobs", {})
        referenced.update(blobs_of_result.values())
    return referenced
