"""Files in parts: start, send each part in any order, complete; after a cut, go on.

A part is written to the disk as it comes, and counts once all of it is there. What is complete is a
file like one that came in a single request: name its id where data sets and models are added.
"""

import logging
import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from adap import faults
from adap.api import assets, quotas
from adap.api.assets import AssetId
from adap.api.deps import Caller, House, HouseDep, Reader, Writer, require_admitted_at_the_end
from adap.api.errors import ApiError, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.listing import After, Limit, page
from adap.api.schemas import Page, Upload, upload_answer
from adap.core.config.base import Name
from adap.store import garbage, incoming, uploads
from adap.store.blobs import OtherContentError
from adap.store.database import now
from adap.store.storage import BlobsAwayError
from adap.store.tables import UploadRow

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=GuardedRoute)

log = logging.getLogger(__name__)

BUFFER_BYTES = 1 << 20
MAX_PARTS = 10_000
MAX_PART_BYTES = 64 * 2**20

Sha256 = Annotated[str, Field(pattern=faults.SHA256, max_length=64)]

PartNumber = Annotated[
    int, PathParameter(ge=1, le=MAX_PARTS, description="of this part, counted from 1")
]
_REPEATED = ("bad_request", "idempotency_key_reused", "limit_exceeded")
_BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class UploadRequest(_Request):
    """`POST /v1/uploads`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"file_name": "photos.zip", "size": 73400320, "part_bytes": 16777216}]
        }
    )

    file_name: Name = Field(description="what the file is called; only ever shown")
    size: int = Field(ge=1, le=2**50, description="bytes of the whole file")
    sha256: Sha256 | None = Field(
        None,
        description="of the whole file: an upload of the same content that is there already is "
        "answered instead of a new one, with the parts that it has",
    )
    part_bytes: int = Field(
        16 * 2**20,
        ge=2**16,
        le=MAX_PART_BYTES,
        description="bytes of each part but the last; at most 10,000 parts",
    )

    @model_validator(mode="after")
    def _few_enough_parts(self) -> "UploadRequest":
        if -(-self.size // self.part_bytes) > MAX_PARTS:
            raise ValueError(
                f"expected parts large enough for at most {MAX_PARTS} of them, got part_bytes "
                f"{self.part_bytes} for {self.size} bytes"
            )
        return self


class UploadContent(_Request):
    """`POST /v1/uploads/{upload_id}/complete`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"sha256": "0" * 64}]})

    sha256: Sha256 = Field(description="of the whole file, 64 hexadecimal digits")


@router.post(
    "",
    status_code=201,
    responses=problems(*_REPEATED, "storage_full")
    | {200: {"model": Upload, "description": "There is one of the same content: go on with it"}},
)
def start_upload(
    request: UploadRequest,
    house: HouseDep,
    caller: Writer,
    once: IdempotencyDep,
    response: Response,
) -> Upload:
    """Start to send a file in parts, or go on: `received` are the parts that are there.

    Nothing is sent for a file that would be refused: its size is checked against the limits first.
    """
    settings = house.settings
    if request.size > settings.max_file_bytes:
        raise ApiError(
            "limit_exceeded",
            f"/body/size: expected at most {settings.max_file_bytes} (ADAP_MAX_FILE_BYTES), "
            f"got {request.size}",
        )
    with once.writing(request.model_dump(mode="json")) as session:
        row = None
        if request.sha256 is not None:
            row = uploads.find_same(
                session, tenant=caller.tenant, sha256=request.sha256, size=request.size
            )
        if row is None:
            quotas.check_bytes(session, settings, caller.tenant, new=request.size)
            row = uploads.add(
                session,
                tenant=caller.tenant,
                file_name=request.file_name,
                size=request.size,
                sha256=request.sha256,
                part_bytes=min(request.part_bytes, settings.max_upload_bytes),
                kept_s=settings.upload_kept_s,
            )
        else:
            response.status_code = 200
        location = response.headers["Location"] = f"/v1/uploads/{row.id}"
        return once.keep(
            session, _answer(session, row), status=response.status_code or 201, location=location
        )


@router.get("", responses=problems())
def list_uploads(
    house: HouseDep, caller: Reader, limit: Limit = 20, after: After = None
) -> Page[Upload]:
    """The uploads that have not expired, newest first."""
    query = select(UploadRow).where(UploadRow.tenant == caller.tenant, UploadRow.expires_at > now())
    with house.database.reading() as session:
        return page(
            session,
            query,
            UploadRow.id,
            limit=limit,
            after=after,
            answer=lambda row: _answer(session, row),
        )


@router.get("/{upload_id}", responses=problems("not_found"))
def show_upload(upload_id: AssetId, house: HouseDep, caller: Reader) -> Upload:
    """One upload: which parts are there."""
    with house.database.reading() as session:
        return _answer(session, assets.find_upload(session, upload_id, caller))


@router.put(
    "/{upload_id}/parts/{number}",
    status_code=204,
    max_body_size=MAX_PART_BYTES,
    openapi_extra=_BYTES,
    responses=problems("bad_request", "not_found", "conflict", "too_large"),
)
async def put_part(
    upload_id: AssetId, number: PartNumber, request: Request, house: HouseDep, caller: Writer
) -> Response:
    """Send one part: its bytes are the body. A part that comes again replaces the one before."""
    folder, expected = await run_in_threadpool(_expected_bytes, house, caller, upload_id, number)
    declared = request.headers.get("content-length")
    if declared is not None and declared != str(expected):
        raise _wrong_size(number, expected=expected, got=declared)
    file = folder / f"{uuid.uuid4().hex}.part"
    try:
        await _write(request.stream(), file, number=number, expected=expected)
        await require_admitted_at_the_end(request, house)
        await run_in_threadpool(_keep_part, house, caller, upload_id, number, file)
    except ClientDisconnect as error:
        raise ApiError(
            "bad_request", f"Expected all of part {number}; the connection broke in between."
        ) from error
    finally:
        await run_in_threadpool(file.unlink, missing_ok=True)
    return Response(status_code=204)


@router.post(
    "/{upload_id}/complete",
    responses=problems(*_REPEATED, "not_found", "conflict", "invalid_data"),
)
def complete_upload(
    upload_id: AssetId,
    content: UploadContent,
    house: HouseDep,
    caller: Writer,
    once: IdempotencyDep,
) -> Upload:
    """Join the parts, once all are there. The SHA-256 must be that of the whole.

    Where it is not, nothing is made and every part stays: one of them can be sent again.
    """
    with house.database.reading() as session:
        row = assets.find_upload(session, upload_id, caller)
        parts = uploads.received(session, row)
        if row.blob_sha256 is None:
            _check_all_there(row, parts, content.sha256)
    joined = row.blob_sha256 is not None
    if not joined:
        try:
            house.blobs.join(list(parts.values()), sha256=content.sha256)
            joined = True
        except OtherContentError as error:
            raise ApiError("invalid_data", f"/body/sha256: {error}") from error
        except FileNotFoundError:  # another request has completed it, or replaced a part
            log.info("upload.parts_gone", extra={"upload_id": upload_id})
    with once.writing(content.model_dump(mode="json")) as session:
        row = assets.find_upload(session, upload_id, caller, lock=True)
        if row.blob_sha256 is None:
            if not joined or uploads.received(session, row) != parts:
                raise ApiError(
                    "conflict",
                    f"Parts of the upload {upload_id} were sent again while it was completed, or "
                    "are lost; send them again.",
                )
            garbage.refer(session, house.blobs, [content.sha256])
            uploads.complete(session, row, content.sha256)
        elif row.blob_sha256 != content.sha256:
            raise ApiError("conflict", f"The upload {upload_id} is complete, with another SHA-256.")
        answer = once.keep(session, _answer(session, row), status=200)
    _discard(house, parts.values())
    return answer


@router.delete("/{upload_id}", status_code=204, responses=problems("not_found"))
def remove_upload(upload_id: AssetId, house: HouseDep, caller: Writer) -> Response:
    """Forget an upload and its parts; what was made of it stays."""
    with house.database.writing() as session:
        row = assets.find_upload(session, upload_id, caller, lock=True)
        staged = list(uploads.received(session, row).values())
        uploads.remove(session, [row.id])
    _discard(house, staged)
    return Response(status_code=204)


def _answer(session: Session, row: UploadRow) -> Upload:
    return upload_answer(row, received=list(uploads.received(session, row)))


def _expected_bytes(house: House, caller: Caller, upload_id: str, number: int) -> tuple[Path, int]:
    """Where a part comes to, and how many bytes it has; ApiError where none may come."""
    folder = incoming.prepare(house.settings.home, kept_s=house.settings.upload_kept_s)
    with house.database.reading() as session:
        row = assets.find_upload(session, upload_id, caller)
        _check_takes(row, number)
        return folder, uploads.part_size(row, number)


async def _write(chunks: AsyncIterator[bytes], target: Path, *, number: int, expected: int) -> None:
    """Write a body to a file, a MiB at a time, so that little of it is ever in memory."""
    got = 0
    buffer = bytearray()
    with target.open("wb") as file:
        async for chunk in chunks:
            got += len(chunk)
            if got > expected:
                raise _wrong_size(number, expected=expected, got="more")
            buffer += chunk
            if len(buffer) >= BUFFER_BYTES:
                await run_in_threadpool(file.write, bytes(buffer))
                buffer.clear()
        await run_in_threadpool(file.write, bytes(buffer))
    if got != expected:
        raise _wrong_size(number, expected=expected, got=str(got))


def _keep_part(house: House, caller: Caller, upload_id: str, number: int, file: Path) -> None:
    staged = house.blobs.stage(file)
    try:
        with house.database.writing() as session:
            row = assets.find_upload(session, upload_id, caller, lock=True)
            _check_takes(row, number)
            garbage.refer(session, house.blobs, [staged])
            replaced = uploads.put_part(
                session, row, number, staged, kept_s=house.settings.upload_kept_s
            )
    except BaseException:
        _discard(house, [staged])
        raise
    if replaced is not None:
        _discard(house, [replaced])


def _discard(house: House, staged: Iterable[str]) -> None:
    """Remove parts that no row refers to any more; what cannot be removed now is garbage."""
    try:
        for name in staged:
            house.blobs.delete(name)
    except (OSError, BlobsAwayError) as error:
        log.warning("parts.not_removed", extra={"reason": str(error)})


def _check_takes(row: UploadRow, number: int) -> None:
    if row.blob_sha256 is not None:
        raise ApiError("conflict", f"The upload {row.id} is complete and takes no more parts.")
    if number > uploads.parts(row):
        raise ApiError(
            "invalid_request",
            f"/path/number: expected a part among 1 to {uploads.parts(row)} "
            f"({row.size} bytes in parts of {row.part_bytes}), got {number}",
        )


def _check_all_there(row: UploadRow, parts: dict[int, str], sha256: str) -> None:
    missing = [number for number in range(1, uploads.parts(row) + 1) if number not in parts]
    if missing:
        more = ", …" if len(missing) > 20 else ""
        raise ApiError(
            "conflict",
            f"Expected all {uploads.parts(row)} parts of the upload {row.id}, got {len(parts)}; "
            f"missing: {', '.join(map(str, missing[:20]))}{more}.",
        )
    if row.sha256 not in (None, sha256):
        raise ApiError(
            "invalid_data",
            f"/body/sha256: expected {row.sha256}, as when the upload was started, got {sha256}",
        )


def _wrong_size(number: int, *, expected: int, got: str) -> ApiError:
    return ApiError(
        "invalid_request", f"/body: expected {expected} bytes of part {number}, got {got}"
    )
