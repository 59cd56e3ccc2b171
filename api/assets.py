"""Shared by data sets and models: receiving a file, serving it, finding and removing a row."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar
from uuid import uuid4

from fastapi import Path as PathParameter
from fastapi import Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from adap import faults
from adap.api import quotas
from adap.api.deps import Caller, House
from adap.api.errors import ApiError, not_found
from adap.api.lasting import Download
from adap.core.config.data import DatasetOptions
from adap.core.config.training import TrainingRequest
from adap.models.header import Declaration
from adap.store import freed, garbage, incoming, jobs, results, uploads
from adap.store.database import now, row_by_id
from adap.store.ids import new_id
from adap.store.tables import AssetStatus, DatasetRow, JobKind, JobRow, ModelRow, UploadRow
from adap.wording import visible

AssetId = Annotated[str, PathParameter(pattern=faults.ID, max_length=40)]
AssetRow = TypeVar("AssetRow", DatasetRow, ModelRow)

COPIED_BYTES = 1 << 20  # at a time

_WORD = {DatasetRow: "data set", ModelRow: "model"}


@dataclass(frozen=True)
class Received:
    """A file that a request has brought: in its body, or before, in parts."""

    sha256: str
    size: int
    name: str  # what the file was called
    upload_id: str | None = None
    staged: str | None = None  # under which it waits to be kept

    def take(self, session: Session, house: House, caller: Caller) -> None:
        """Count it for the tenant, and keep it, as the transaction makes a row refer to it.

        Raises ApiError where it is too much, or its upload is gone by now, ContentGoneError where
        the content itself is.
        """
        if self.upload_id is not None:
            row = find_upload(session, self.upload_id, caller, lock=True)
            uploads.use(session, row, kept_s=house.settings.upload_kept_s)
        quotas.check_bytes(session, house.settings, caller.tenant, new=self.size)
        if self.staged is not None:
            house.blobs.adopt(self.staged, sha256=self.sha256)
        garbage.refer(session, house.blobs, [self.sha256])


@contextmanager
def receiving(
    file: UploadFile | None,
    upload_id: str | None,
    house: House,
    caller: Caller,
    *,
    fields: tuple[str, str] = ("file", "upload_id"),
) -> Iterator[Received]:
    """The file of a request that has one, or names an upload, as long as the block.

    What the block does not `take` is gone behind it. `fields` is what the two are called in the
    request.
    """
    expect_one_of(file, upload_id, fields=fields)
    if file is None:
        yield _uploaded(upload_id, house, caller)
        return
    came = _stage(file, house, caller, field=fields[0])
    try:
        yield came
    finally:
        assert came.staged is not None
        house.blobs.delete(came.staged)


def _uploaded(upload_id: str | None, house: House, caller: Caller) -> Received:
    assert upload_id is not None
    with house.database.reading() as session:
        row = find_upload(session, upload_id, caller)
    if row.blob_sha256 is None:
        raise ApiError(
            "not_ready", f"The upload {upload_id} is not complete; see /v1/uploads/{upload_id}."
        )
    return Received(row.blob_sha256, row.size, row.file_name, upload_id)


def expect_one_of(
    file: UploadFile | None, upload_id: str | None, *, fields: tuple[str, str]
) -> None:
    """ApiError unless a request has either the file or the upload."""
    if (file is None) == (upload_id is None):
        got = "neither" if file is None else "both"
        expected = " or ".join(f"`{field}`" for field in fields)
        raise ApiError("invalid_request", f"/body: expected {expected}, got {got}.")


def _stage(upload: UploadFile, house: House, caller: Caller, *, field: str) -> Received:
    """Store an uploaded file where it waits. Nothing stays behind on an error."""
    if not upload.size:
        raise ApiError("invalid_request", f"/body/{field}: expected a file, got an empty one.")
    with house.database.reading() as session:
        quotas.check_bytes(session, house.settings, caller.tenant, new=upload.size or 0)
    folder = incoming.prepare(house.settings.home, kept_s=house.settings.upload_kept_s)
    path = folder / uuid4().hex
    digest = hashlib.sha256()
    try:
        with path.open("xb") as file:
            while chunk := upload.file.read(COPIED_BYTES):
                digest.update(chunk)
                file.write(chunk)
        staged = house.blobs.stage(path)
    finally:
        path.unlink(missing_ok=True)
    name = display_name(None, upload)
    return Received(digest.hexdigest(), upload.size, name, staged=staged)


def display_name(name: str | None, upload: UploadFile) -> str:
    """The name asked for, else what the file was called; only ever shown, never a path."""
    if name is not None:
        return name
    stem = Path((upload.filename or "").replace("\\", "/")).name
    return visible(stem)[:200] or "unnamed"


def add_dataset(
    session: Session,
    caller: Caller,
    *,
    name: str,
    sha256: str,
    size: int,
    options: DatasetOptions,
) -> tuple[DatasetRow, JobRow]:
    """A data set that came as this blob, and the job that checks it."""
    row = DatasetRow(
        id=new_id("ds"),
        tenant=caller.tenant,
        name=name,
        status=AssetStatus.VALIDATING,
        upload_sha256=sha256,
        stored_bytes=size,
    )
    session.add(row)
    session.flush()
    job = jobs.enqueue(
        session,
        JobKind.VALIDATE_DATASET,
        tenant=caller.tenant,
        request={"dataset_id": row.id, **options.as_json()},
        dataset_id=row.id,
    )
    row.job_id = job.id
    session.flush()
    return row, job


def add_model(
    session: Session,
    caller: Caller,
    *,
    name: str,
    sha256: str,
    size: int,
    declared: Declaration | None,
) -> tuple[ModelRow, JobRow]:
    """A model that came as this blob, and the job that checks it."""
    row = ModelRow(
        id=new_id("mdl"),
        tenant=caller.tenant,
        name=name,
        status=AssetStatus.VALIDATING,
        upload_sha256=sha256,
        stored_bytes=size,
    )
    session.add(row)
    session.flush()
    job = jobs.enqueue(
        session,
        JobKind.VALIDATE_MODEL,
        tenant=caller.tenant,
        request={
            "model_id": row.id,
            "declared": None if declared is None else declared.model_dump(mode="json"),
        },
        model_id=row.id,
    )
    row.job_id = job.id
    session.flush()
    return row, job


def add_surrogate(
    session: Session, caller: Caller, training: TrainingRequest
) -> tuple[ModelRow, JobRow | None]:
    """A model that this training makes: the one that is there or on its way, else a new one.

    Its row is there at once, being checked as it were, so that an audit can wait for it.
    """
    request = training.as_json()
    earlier = select(JobRow).where(
        JobRow.kind == JobKind.TRAIN,
        JobRow.tenant == caller.tenant,
        JobRow.dataset_id == training.dataset_id,
    )
    for job in session.scalars(earlier):
        model = session.scalar(
            select(ModelRow).where(
                ModelRow.job_id == job.id,
                ModelRow.deleted_at.is_(None),
                ModelRow.status != AssetStatus.REJECTED,
            )
        )
        if model is not None and job.request == request:
            return model, None
    job = jobs.enqueue(
        session,
        JobKind.TRAIN,
        tenant=caller.tenant,
        request=request,
        dataset_id=training.dataset_id,
    )
    model = ModelRow(
        id=new_id("mdl"),
        tenant=caller.tenant,
        name=training.name or "surrogate",
        status=AssetStatus.VALIDATING,
        job_id=job.id,
    )
    session.add(model)
    session.flush()
    return model, job


def find(session: Session, table: type[AssetRow], asset_id: str, caller: Caller) -> AssetRow:
    """A row of the caller's. 404 for one that is removed, somebody else's, or nobody's."""
    row = row_by_id(session, table, asset_id)
    if row is None or row.tenant != caller.tenant or row.deleted_at is not None:
        raise not_found(_WORD[table], asset_id)
    return row


def find_upload(
    session: Session, upload_id: str, caller: Caller, *, lock: bool = False
) -> UploadRow:
    """An upload of the caller's that has not expired; `lock` keeps others from changing it."""
    row = session.get(UploadRow, upload_id, with_for_update=lock)
    if row is None or row.tenant != caller.tenant or row.expires_at <= _now(session):
        raise not_found("upload", upload_id)
    return row


def _now(session: Session) -> float:
    at = session.scalar(now().select())
    assert at is not None
    return at


def require_ready(row: DatasetRow | ModelRow) -> None:
    """409 unless the upload has been checked and found good."""
    if row.status == AssetStatus.READY:
        return
    what = _WORD[type(row)]
    if row.status == AssetStatus.REJECTED:
        reasons = "; ".join((row.reasons or [])[:3])
        raise ApiError("not_ready", f"The {what} {row.id} was rejected: {reasons}")
    raise ApiError(
        "not_ready",
        f"The {what} {row.id} is still being checked; wait for the job {row.job_id}.",
    )


def remove(session: Session, table: type[AssetRow], asset_id: str, caller: Caller) -> Response:
    """Forget a data set or model; its file goes when no other row refers to it."""
    row = find(session, table, asset_id, caller)
    if row.status == AssetStatus.VALIDATING or jobs.uses(session, asset_id):
        raise ApiError(
            "in_use",
            f"A job that has not ended uses the {_WORD[table]} {asset_id}; cancel it or wait.",
        )
    row.deleted_at = session.scalar(now().select())
    if row.content_sha256 is not None:  # not of what was rejected, whose file went before
        freed.note(session, row.tenant, row.stored_bytes)
    row.content_sha256 = row.upload_sha256 = None
    if table is ModelRow:
        results.remove(session, JobRow.kind == JobKind.EXPORT, JobRow.model_id == asset_id)
    return Response(status_code=204)


def content(request: Request, house: House, sha256: str, *, filename: str) -> Response:
    """A blob as a download: ranges, and 304 where the client has it."""
    return blob_response(
        request, house, sha256, media_type="application/octet-stream", filename=filename
    )


def blob_response(
    request: Request, house: House, sha256: str, *, media_type: str, filename: str | None = None
) -> Response:
    """A blob by its media type; the hash is its ETag, as content never changes."""
    known, headers = _cached(request, sha256)
    if known is not None:
        return known
    path = house.blobs.local_path(sha256)
    return Download(request, house, path, media_type=media_type, filename=filename, headers=headers)


def derived_response(request: Request, text: str, *, media_type: str) -> Response:
    """A text that is made from a blob when it is asked for; its own hash is its ETag."""
    content = text.encode()
    known, headers = _cached(request, hashlib.sha256(content).hexdigest())
    return known or Response(content, media_type=media_type, headers=headers)


def made_response(
    request: Request, make: Callable[[], bytes], *, of: str, media_type: str, kept_s: int
) -> Response:
    """What is made of a blob when it is asked for, and only where the client has it not.

    of: names what it is made of, so that it is its ETag.
    kept_s: how long the client may show it without asking, to whoever asked with the same key.
    """
    known, headers = _cached(request, of, kept_s=kept_s)
    headers["Vary"] = "Authorization, Cookie"
    if known is not None:
        known.headers.update(headers)
        return known
    return Response(make(), media_type=media_type, headers=headers)


def _cached(
    request: Request, tag: str, *, kept_s: int | None = None
) -> tuple[Response | None, dict[str, str]]:
    """A 304 where the client has the content of this tag, and the headers that go with it."""
    etag = f'"{tag}"'
    kept = "private" if kept_s is None else f"private, max-age={kept_s}"
    headers = {"ETag": etag, "X-Content-Type-Options": "nosniff", "Cache-Control": kept}
    wanted = {
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("if-none-match", "").split(",")
    }
    fresh = etag in wanted or "*" in wanted
    return Response(status_code=304, headers=headers) if fresh else None, headers
