"""The blob store of the settings."""

from pathlib import Path

from adap.store.blobs import Blobs, FolderBlobs
from adap.store.settings import Settings


def open_blobs(settings: Settings) -> Blobs:
    """The blob store of the settings."""
    if settings.blobs.startswith("s3://"):
        from adap.store.s3 import S3Blobs  # an extra: obstore is not needed on one machine

        return S3Blobs(settings)
    return FolderBlobs(Path(settings.blobs))
