"""Every error of the API as RFC 9457 `application/problem+json`, FastAPI's own included.

`code` is stable and is what programs branch on; `detail` is a sentence for people that says what
was expected and what came; `errors` points into the request where the error can be located.
"""

import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from adap import faults
from adap.core.errors import AdapError
from adap.models.errors import ModelFileError
from adap.store import disk, storage
from adap.store.garbage import ContentGoneError
from adap.store.storage import BlobsAwayError, Trouble

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

MAX_ITEMS = 100  # of a problem: how many faults are listed
MAX_NAME_CHARACTERS = 100  # of a field, in a pointer
MAX_DETAIL_CHARACTERS = 2000

CODES: dict[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be read"),
    "unauthorized": (401, "An API key is needed"),
    "forbidden": (403, "This API key may not do that"),
    "webhooks_off": (403, "This service sends no webhooks"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "This path does not take that method"),
    "not_acceptable": (406, "Not available in that form"),
    "too_slow": (408, "The request came too slowly"),
    "conflict": (409, "The state of things does not allow this"),
    "not_ready": (409, "Not ready yet, or rejected"),
    "in_use": (409, "A job that has not ended uses it"),
    "shown_once": (409, "The answer was shown once and is not kept"),
    "last_admin_key": (409, "No admin key would be left"),
    "already_finished": (409, "The job has already ended"),
    "too_large": (413, "The request body is too large"),
    "unsupported_media_type": (415, "The request has a content type that this path does not take"),
    "invalid_request": (422, "The request is not valid"),
    "invalid_config": (422, "No run could honour this configuration"),
    "invalid_data": (422, "The data cannot be used for this"),
    "limit_exceeded": (422, "The request asks for more than this service allows"),
    "url_refused": (422, "This service sends nothing to that address"),
    "idempotency_key_reused": (422, "The Idempotency-Key stands for another request"),
    "invalid_model": (422, "The model cannot be used for this"),
    "too_many_jobs": (429, "Too many jobs are queued or running"),
    "too_many_streams": (429, "Too many streams of events are open"),
    "storage_full": (429, "Too much is stored"),
    "rate_limited": (429, "Too many requests a second"),
    "internal_error": (500, "The service met an error that it did not expect"),
    "storage_unavailable": (503, "The database or the store of files does not answer"),
    "content_missing": (503, "The service has lost this content"),
    "scoring_unavailable": (503, "The scoring process does not answer"),
    "overloaded": (503, "Too much is waiting already"),
    "disk_full": (507, "The service has no room on its disk"),
    "timed_out": (504, "The answer took longer than the service allows"),
}


class ErrorItem(BaseModel):
    """One fault in a request."""

    pointer: str = Field(description="JSON pointer into the request, for example /body/threat")
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field("about:blank", description="always about:blank; branch on `code`")
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: list[ErrorItem] = Field(default_factory=list)


class ApiError(Exception):
    """An error that a route raises: a code of `CODES` and a sentence."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: list[ErrorItem] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = errors or []
        self.headers = headers


class Replayed(Exception):  # noqa: N818 - an answer, not an error
    """A POST that was answered before, by its Idempotency-Key: what it was answered with."""

    def __init__(self, status: int, body: dict[str, Any], location: str | None) -> None:
        super().__init__("answered before")
        self.status = status
        self.body = body
        self.headers = {"Idempotency-Replayed": "true"}
        if location is not None:
            self.headers["Location"] = location


def not_found(what: str, identifier: str) -> ApiError:
    """404, also for what belongs to somebody else."""
    return ApiError("not_found", f"There is no {what} {identifier}.")


POSTED = (
    "bad_request",
    "idempotency_key_reused",
    "limit_exceeded",
    "too_many_jobs",
)  # of every POST of a job


_ANY = (
    "unauthorized",
    "forbidden",
    "invalid_request",
    "storage_unavailable",
    "content_missing",
    "overloaded",
)


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses=` for the errors that a route declares."""
    documented: dict[int | str, dict[str, Any]] = {}
    for code in (*codes, *_ANY):
        status, title = CODES[code]
        entry = documented.setdefault(
            status, {"description": title, "content": {MEDIA_TYPE: {"schema": _SCHEMA}}}
        )
        if title not in entry["description"]:
            entry["description"] += f"; {title[0].lower()}{title[1:]}"
    return documented


def document_writes(openapi: dict[str, Any]) -> None:
    """Add to the OpenAPI what every route that writes may answer."""
    status, title = CODES["disk_full"]
    for operations in openapi["paths"].values():
        for method in operations.keys() - {"get", "head"}:
            operations[method]["responses"][str(status)] = {
                "description": title,
                "content": {MEDIA_TYPE: {"schema": _SCHEMA}},
            }


_SCHEMA = {"$ref": "#/components/schemas/Problem"}


def install(app: FastAPI, as_page: Callable[[Request, Problem], Response | None]) -> None:
    """Register a handler for everything that can go wrong.

    as_page: a problem as who asked for it wants to look at it; None where JSON is right.
    """
    app.state.problem_page = as_page

    @app.exception_handler(ApiError)
    def _api_error(request: Request, error: ApiError) -> Response:
        return _response(
            request, error.code, error.detail, errors=error.errors, headers=error.headers
        )

    @app.exception_handler(Replayed)
    def _replayed(_request: Request, replayed: Replayed) -> Response:
        return JSONResponse(replayed.body, replayed.status, headers=replayed.headers)

    @app.exception_handler(AdapError)
    @app.exception_handler(ModelFileError)
    def _domain_error(request: Request, error: AdapError | ModelFileError) -> Response:
        return _response(request, error.code, str(error))

    @app.exception_handler(RequestValidationError)
    def _validation(request: Request, error: RequestValidationError) -> Response:
        return _response(
            request, "invalid_request", *_explain(error.errors(), {"body": error.body})
        )

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and (trouble := storage.trouble(error)) is not None:
            return _troubled(request, trouble, error)  # a form could not be written to the disk
        by_status = {CODES[code][0]: code for code in reversed(CODES)}
        code = by_status.get(error.status_code, "bad_request")
        detail = str(error.detail)
        if code == "not_found":
            detail = f"There is nothing at {request.url.path:.200}; see /docs for what there is."
        elif code == "bad_request":
            detail = f"Expected a request that can be read: {detail}"
        headers = dict(error.headers or {})
        if code == "method_not_allowed":
            allowed = _allowed(request)
            headers["Allow"] = ", ".join(allowed)
            detail = (
                f"Expected {' or '.join(allowed)} at {request.url.path:.200}, got "
                f"{request.method:.20}."
            )
        return _response(request, code, detail, headers=headers)

    @app.exception_handler(ContentGoneError)
    def _gone(request: Request, error: ContentGoneError) -> Response:
        log.warning("content.gone", extra={"reason": str(error)})
        detail = (
            "The same content was being removed while this came; nothing of it was kept. "
            "Send it again."
        )
        return _response(request, "storage_unavailable", detail, headers={"Retry-After": "1"})

    @app.exception_handler(OSError)
    @app.exception_handler(BlobsAwayError)
    @app.exception_handler(DBAPIError)
    def _storage(request: Request, error: Exception) -> Response:
        trouble = storage.trouble(error)
        if trouble is not None:
            return _troubled(request, trouble, error)
        if not isinstance(error, OperationalError | InterfaceError):
            raise error
        away = Trouble(storage.UNAVAILABLE, "The database does not answer at the moment.")
        return _troubled(request, away, error)

    @app.exception_handler(Exception)
    def _unexpected(request: Request, _error: Exception) -> Response:
        detail = "The service met an error that it did not expect; the log has the details."
        return _response(request, "internal_error", detail)


_TRY_AGAIN_S = {
    "overloaded": "1",
    storage.UNAVAILABLE: "5",
    storage.MISSING: "60",
    disk.CODE: "60",
}


def _troubled(request: Request, trouble: Trouble, error: Exception) -> Response:
    """The answer where storage stands in the way; the log has the error itself."""
    log.error("storage.trouble", extra={"code": trouble.code, "reason": str(error)})
    request.app.state.metrics.count_trouble(trouble.code)
    if trouble.code == disk.CODE:
        detail = "There is no room for this on the service's disk; nothing of it was kept."
        detail += " Try later."
        return _response(request, disk.CODE, detail, headers=try_again(disk.CODE))
    detail = trouble.message
    if request.method == "POST":
        detail += " Use the same Idempotency-Key, as what was asked for may be done already."
    return _response(request, trouble.code, detail, headers=try_again(trouble.code))


def try_again(code: str) -> dict[str, str] | None:
    """The header that says when a request refused with this code may succeed."""
    wait_s = _TRY_AGAIN_S.get(code)
    return None if wait_s is None else {"Retry-After": wait_s}


def _allowed(request: Request) -> list[str]:
    """The methods that the path of a request takes, whichever route takes them."""
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] == Match.FULL
            for route in request.app.routes
        )
    ]


def explain_validation(
    error: ValidationError, *, content: Any = None, prefix: str = "body"
) -> ApiError:
    """A pydantic error of a body, or of a part of it, that a route read by itself as `content`."""
    listed = error.errors(include_url=False)
    detail, items = _explain(listed, content, at=tuple(prefix.split("/")))
    return ApiError("invalid_request", detail, errors=items)


def _explain(
    errors: Sequence[Any], content: Any, at: Sequence[str] = ()
) -> tuple[str, list[ErrorItem]]:
    """The sentence about the first fault, and the first of all: an answer is never long."""
    items = []
    for error in errors[:MAX_ITEMS]:
        whole = content if at or error["loc"][:1] == ("body",) else None
        parts = [
            f"{part!s:.{MAX_NAME_CHARACTERS}}".replace("~", "~0").replace("/", "~1")
            for part in (*at, *faults.path_of(error, whole))
        ]
        message = faults.explain(error)[:MAX_DETAIL_CHARACTERS]
        items.append(ErrorItem(pointer="/" + "/".join(parts), detail=message))
    first = items[0]
    more = f" ({len(errors) - 1} more in `errors`)" if len(errors) > 1 else ""
    if len(errors) > MAX_ITEMS:
        more = f" ({len(errors) - 1} more, {MAX_ITEMS} of them in `errors`)"
    return f"{first.pointer}: {first.detail}{more}", items


def too_large(request_id: str) -> bytes:
    """The answer's body for a request body over the limit, which no handler gets to see."""
    detail = "The request body is larger than this path takes; nothing of it was kept."
    return _bare("too_large", detail, request_id)


def bad_request(request_id: str, detail: str) -> bytes:
    """The answer's body for a request whose head has a fault, so that nobody looks further."""
    return _bare("bad_request", detail, request_id)


def too_many(request_id: str) -> bytes:
    """The answer's body for a request of an address that has had its share."""
    detail = (
        "Too many requests without a good API key came from this address (ADAP_MAX_ADDRESS_"
        "REQUESTS_PER_S). Send it again later."
    )
    return _bare("rate_limited", detail, request_id)


def overloaded(request_id: str) -> bytes:
    """The answer's body for a request that was not looked at, as too many wait already."""
    detail = "Too many requests wait already; this one was not looked at. Send it again later."
    return _bare("overloaded", detail, request_id)


def _bare(code: str, detail: str, request_id: str) -> bytes:
    status, title = CODES[code]
    problem = Problem(title=title, status=status, detail=detail, code=code, request_id=request_id)
    return problem.model_dump_json().encode()


def _response(
    request: Request,
    code: str,
    detail: str,
    errors: list[ErrorItem] | None = None,
    *,
    headers: dict[str, str] | None = None,
) -> Response:
    status, title = CODES.get(code, (422, HTTPStatus(422).phrase))
    if code == "unauthorized":
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    problem = Problem(
        title=title,
        status=status,
        detail=detail[:MAX_DETAIL_CHARACTERS],
        code=code,
        request_id=request.scope.get("request_id"),
        errors=(errors or [])[:MAX_ITEMS],
    )
    shown: Response | None = request.app.state.problem_page(request, problem)
    if shown is not None:
        shown.headers.update(headers or {})
        return shown
    content = problem.model_dump(mode="json")
    if request.url.path.startswith("/v2"):
        content["error"] = detail  # what clients of the Open Inference Protocol show
    headers = {"Vary": "Accept", **(headers or {})}
    return JSONResponse(content, status, headers=headers, media_type=MEDIA_TYPE)
