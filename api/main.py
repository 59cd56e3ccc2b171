"""The application: routes, errors, limits and request ids. Imports no torch."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from adap.api import errors, forms, reference
from adap.api.arriving import at_a_pace
from adap.api.deliveries import Allowed, Deliveries
from adap.api.deps import House, bearer, has_body
from adap.api.metrics import Metrics, route_of
from adap.api.overload import LET_THROUGH, Overload
from adap.api.pages import static
from adap.api.pages.refusal import refusal_page
from adap.api.quotas import Places, Rates
from adap.api.routes import (
    audits,
    catalogue,
    datasets,
    health,
    images,
    inference,
    jobs,
    keys,
    leaderboard,
    models,
    pages,
    queues,
    rankings,
    scoring,
    signing,
    standings,
    sweeps,
    training,
    uploads,
    webhooks,
)
from adap.api.strangers import Strangers
from adap.api.watch import Watch
from adap.api.wellformed import fault_of
from adap.core.config.audits import AuditRequest
from adap.store.artifacts import open_blobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.logs import log_about
from adap.store.settings import Settings
from adap.store.signing import signing_key
from adap.store.traces import Traces
from adap.worker.app import Bells, make_app
from adap.worker.scoring.link import ScoringLink

log = logging.getLogger(__name__)

DESCRIPTION = """
How much Average Precision an image ranker keeps when it is attacked, rankers that keep it, and
their scores.

1. `POST /v1/datasets` and `POST /v1/models` take files; a job checks each of them.
2. `POST /v1/training-jobs`, `/v1/audits` and `/v1/rankings` answer 201 with a job at once;
   `POST /v1/sweeps` with many trainings.
3. `GET /v1/jobs/{id}` says how far it is; `/v1/jobs/{id}/events` streams it.

Every error is `application/problem+json` (RFC 9457) with a stable `code`.
"""

ALWAYS = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),  # for browsers that know no frame-ancestors
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)

# that talk to the database for requests; more of them would keep the event loop from its turn
THREADS = 16

# bodies that routes read themselves, as they take several kinds, and what every error is
READ_BY_ROUTES = (
    errors.Problem,
    AuditRequest,
    audits.AuditForm,
    scoring.ScoreRequest,
    scoring.ScoreForm,
    inference.InferenceRequest,
)

# in this order they are tried: what is asked for most often comes first
ROUTES = (
    jobs,
    health,
    scoring,
    inference,
    audits,
    training,
    rankings,
    standings,
    models,
    datasets,
    images,
    uploads,
    sweeps,
    leaderboard,
    catalogue,
    keys,
    queues,
    webhooks,
    pages,
    signing,
)


def create_app(settings: Settings) -> "RequestLog":
    """The API on the database, blobs and broker of the settings.

    The FastAPI application is the `app` of the answer: the log stands outside of everything, as
    FastAPI refuses bodies that are too large before any middleware of its own runs.
    """
    database = Database(settings)
    house = House(
        settings,
        database,
        open_blobs(settings),
        Bells(make_app(settings)),
        Rates(settings.max_tenant_requests_per_s),
        ScoringLink(settings.scoring_url),
        Watch(database),
        Places(settings.max_tenant_streams),
        signing_key(settings) if settings.webhook_hosts else None,
    )

    traces = Traces(settings, service="adap-api")
    metrics = Metrics(database, home=settings.home, lease_s=settings.lease_s)
    overload = Overload(settings.max_waiting_requests, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        threads = current_default_thread_limiter()
        threads.total_tokens = THREADS
        overload.watch(threads, house.shown)
        deliveries = Deliveries(house.database, Allowed(settings.webhook_hosts), house.signing)
        deliveries.start()
        house.bells.start()
        yield
        house.bells.stop()
        deliveries.stop()
        await house.scoring.close()
        house.database.dispose()
        traces.stop()

    app = FastAPI(
        title="AdAP",
        version=version("adap-audit"),
        description=DESCRIPTION,
        lifespan=lifespan,
        max_body_size=settings.max_upload_bytes,
        form_limits={**forms.FORM_LIMITS},
        generate_unique_id_function=lambda route: route.name,  # what generated clients call it
        redirect_slashes=False,
        openapi_url=None,  # these pages would fetch scripts from elsewhere: see `reference`
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.house = house
    app.state.metrics = metrics
    errors.install(app, refusal_page)
    limit_of = {
        **dict.fromkeys((datasets, models, audits), settings.max_upload_bytes),  # these take files
        **dict.fromkeys((scoring, inference), settings.max_scoring_bytes),
    }
    for module in ROUTES:
        limit = limit_of.get(module, settings.max_json_bytes)
        app.include_router(module.router, max_body_size=limit)
    reference.install(app)
    static.install(app)
    _complete_openapi(app)
    return RequestLog(app, metrics, overload, traces, settings)


class RequestLog:
    """Give every request an id, say it in the answer and in every line of the log, and count it."""

    def __init__(
        self,
        app: FastAPI,
        metrics: Metrics,
        overload: Overload,
        traces: Traces,
        settings: Settings,
    ) -> None:
        self.app = app
        self.settings = settings
        self.traces = traces
        self.metrics = metrics
        self.overload = overload
        self.strangers = Strangers(settings.max_address_requests_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if LET_THROUGH not in scope:
            if self.overload.refuses(scope["path"]):
                await self.overload.refuse(scope, send)
                return
            self.overload.let_through(scope["path"])
        request_id = scope["request_id"] = new_id("req")
        fault = fault_of(scope)
        if fault is not None:
            await _end(send, 400, errors.bad_request(request_id, fault), request_id)
            return
        if self.strangers.refuses(scope):
            await _end(send, 429, errors.too_many(request_id), request_id)
            return
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            replaced = status == 413 and message["type"] == "http.response.body"
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["x-request-id"] = request_id
                harden(headers)
                if status == 413:
                    headers["content-type"] = errors.MEDIA_TYPE
                    headers["content-length"] = str(len(errors.too_large(request_id)))
            elif replaced:
                message = {**message, "body": errors.too_large(request_id), "more_body": False}
            await send(message)

        if has_body(scope):
            receive = at_a_pace(
                receive,
                seconds=self.settings.request_patience_s,
                size=self.settings.request_patience_bytes,
                answered=lambda: status != 0,
            )
        method = scope["method"]
        with (
            log_about(request_id=request_id),
            self.traces.span(
                method,
                headers=Headers(scope=scope),
                http__request__method=method,
                adap__request_id=request_id,
            ) as describe,
        ):
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                route = route_of(scope)
                describe(f"{method} {route}", http__route=route, http__response__status_code=status)
                seconds = time.perf_counter() - started
                self.strangers.settle(scope)
                self.metrics.count(scope, status=status, seconds=seconds)
                log.info(
                    "request.done",
                    extra={
                        "method": method,
                        "path": scope["path"],
                        "status": status,
                        "ms": round(1000 * seconds, 1),
                    },
                )


async def _end(send: Send, status: int, body: bytes, request_id: str) -> None:
    """Answer a request that nobody looks at further, and close its connection."""
    headers = MutableHeaders(
        {
            "content-type": errors.MEDIA_TYPE,
            "content-length": str(len(body)),
            "connection": "close",
            "retry-after": "1",
            "x-request-id": request_id,
        }
    )
    harden(headers)
    await send({"type": "http.response.start", "status": status, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})


def harden(headers: MutableHeaders) -> None:
    """Say that an answer is what its type says, runs nothing, and stands in no other page's frame.

    Pages have policies of their own, by which their styles and scripts are known.
    """
    page = headers.get("content-type", "").startswith("text/html")
    headers.setdefault(
        "content-security-policy",
        "frame-ancestors 'none'" if page else "default-src 'none'; frame-ancestors 'none'",
    )
    for name, value in ALWAYS:
        headers.setdefault(name, value)


_described: dict[str, Any] = {}  # the OpenAPI, once it was made: half a second's work


def _complete_openapi(app: FastAPI) -> None:
    """Add to the OpenAPI what FastAPI does not say by itself.

    Error answers refer to Problem; the route for audits reads its two kinds of body itself; and
    generators of clients know a file by `format: binary`. No setting changes it, so that all
    applications of a process share it.
    """
    if _described:  # a schema that is set by hand is made again where it has no version of routes
        app.openapi = lambda: _described  # type: ignore[method-assign] # as FastAPI documents it
        return
    schema = app.openapi()
    _, ours = models_json_schema(
        [(cls, "validation") for cls in READ_BY_ROUTES],
        ref_template="#/components/schemas/{model}",
    )
    schemas = schema["components"]["schemas"]
    schemas |= ours["$defs"]
    scheme = bearer.model.model_dump(mode="json", by_alias=True, exclude_none=True)
    schema["components"]["securitySchemes"] = {bearer.scheme_name: scheme}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    too_slow = errors.problems("too_slow")[408]
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "requestBody" in operation:
                operation["responses"]["408"] = too_slow
    _mark_files(schemas)
    errors.document_writes(schema)
    _described.update(schema)


def _mark_files(value: Any) -> None:
    if isinstance(value, dict):
        if value.get("contentMediaType") == "application/octet-stream":
            value["format"] = "binary"
        for inner in value.values():
            _mark_files(inner)
    elif isinstance(value, list):
        for inner in value:
            _mark_files(inner)
