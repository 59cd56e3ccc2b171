"""Webhooks: where to tell of the end of jobs, what was sent, and sending it again."""

from typing import Literal, get_args

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from adap.api.assets import AssetId
from adap.api.deliveries import Allowed, RefusedError
from adap.api.deps import Caller, HouseDep, Reader, Writer
from adap.api.errors import ApiError, not_found, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.listing import After, Limit, page
from adap.api.schemas import Delivery, NewWebhook, Page, WebhookAnswer, timestamp
from adap.core.config.base import Config
from adap.store import webhooks
from adap.store.ids import new_id
from adap.store.tables import DeliveryRow, WebhookRow

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=GuardedRoute)

MAX_WEBHOOKS = 20

EndEvent = Literal["job.succeeded", "job.failed", "job.cancelled"]


class WebhookRequest(Config):
    """`POST /v1/webhooks`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://hooks.example.com/adap"}]}
    )

    url: str = Field(
        max_length=2000, description="https, on a host that the setting ADAP_WEBHOOK_HOSTS names"
    )
    events: list[EndEvent] = Field(list(get_args(EndEvent)), min_length=1, max_length=3)


@router.post(
    "",
    status_code=201,
    responses=problems(
        "webhooks_off",
        "url_refused",
        "conflict",
        "shown_once",
        "bad_request",
        "idempotency_key_reused",
    ),
)
def add_webhook(
    request: WebhookRequest,
    house: HouseDep,
    caller: Writer,
    once: IdempotencyDep,
    response: Response,
) -> NewWebhook:
    """Be told of the end of jobs. The secret that signs is shown in this answer only.

    Verify what comes with any library of standardwebhooks.com, then ask for the job it names.
    """
    allowed = Allowed(house.settings.webhook_hosts)
    if not allowed:
        raise ApiError(
            "webhooks_off", "Webhooks are off: the setting ADAP_WEBHOOK_HOSTS names no host."
        )
    if house.signing is None:
        raise ApiError(
            "webhooks_off",
            "Webhooks are off: expected the setting ADAP_WEBHOOK_KEY, which their secrets are made "
            "from, and it is not set.",
        )
    try:
        allowed.check(request.url)
    except RefusedError as error:
        raise ApiError("url_refused", f"/body/url: {error}") from error
    with once.writing(request.as_json()) as session:
        mine = select(func.count()).where(WebhookRow.tenant == caller.tenant)
        if (session.scalar(mine) or 0) >= MAX_WEBHOOKS:
            raise ApiError("conflict", f"Expected at most {MAX_WEBHOOKS} webhooks, got one more.")
        row = WebhookRow(
            id=new_id("whk"),
            tenant=caller.tenant,
            url=request.url,
            events=list(request.events),
            key=house.signing.name,
        )
        session.add(row)
        session.flush()
        once.refuse_later(
            session,
            "shown_once",
            f"This Idempotency-Key made the webhook {row.id}, whose secret was shown then; remove "
            "it and add another.",
        )
    response.headers["Location"] = f"/v1/webhooks/{row.id}"
    return NewWebhook(**_answer(row).model_dump(), secret=house.signing.secret(row.id))


@router.get("", responses=problems())
def list_webhooks(
    house: HouseDep, caller: Reader, limit: Limit = 20, after: After = None
) -> Page[WebhookAnswer]:
    """The webhooks, newest first, without their secrets."""
    query = select(WebhookRow).where(WebhookRow.tenant == caller.tenant)
    with house.database.reading() as session:
        return page(session, query, WebhookRow.id, limit=limit, after=after, answer=_answer)


@router.get("/{webhook_id}", responses=problems("not_found"))
def show_webhook(webhook_id: AssetId, house: HouseDep, caller: Reader) -> WebhookAnswer:
    """One webhook."""
    with house.database.reading() as session:
        return _answer(_find(session, webhook_id, caller))


@router.delete("/{webhook_id}", status_code=204, responses=problems("not_found"))
def remove_webhook(webhook_id: AssetId, house: HouseDep, caller: Writer) -> Response:
    """Remove a webhook and the record of what was sent to it; nothing more is sent."""
    with house.database.writing() as session:
        webhooks.remove(session, _find(session, webhook_id, caller))
    return Response(status_code=204)


@router.get("/{webhook_id}/deliveries", responses=problems("not_found"))
def list_deliveries(
    webhook_id: AssetId, house: HouseDep, caller: Reader, limit: Limit = 20, after: After = None
) -> Page[Delivery]:
    """What was sent and is to be sent, newest first, for 30 days."""
    with house.database.reading() as session:
        _find(session, webhook_id, caller)
        query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id)
        return page(session, query, DeliveryRow.id, limit=limit, after=after, answer=_delivery)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    responses=problems("not_found", "idempotency_key_reused"),
)
def redeliver(
    webhook_id: AssetId,
    delivery_id: AssetId,
    caller: Writer,
    once: IdempotencyDep,
) -> Delivery:
    """Send an event once more, under the same `webhook-id`, so that a receiver can tell."""
    with once.writing(None) as session:
        _find(session, webhook_id, caller)
        row = session.get(DeliveryRow, delivery_id)
        if row is None or row.webhook_id != webhook_id:
            raise not_found("delivery", delivery_id)
        webhooks.again(session, row)
        return once.keep(session, _delivery(row), status=202)


def _find(session: Session, webhook_id: str, caller: Caller) -> WebhookRow:
    row = session.get(WebhookRow, webhook_id)
    if row is None or row.tenant != caller.tenant:
        raise not_found("webhook", webhook_id)
    return row


def _answer(row: WebhookRow) -> WebhookAnswer:
    return WebhookAnswer(
        id=row.id, url=row.url, events=row.events, created_at=timestamp(row.created_at)
    )


def _delivery(row: DeliveryRow) -> Delivery:
    pending = row.status == "pending"
    return Delivery(
        id=row.id,
        event=row.event,
        job_id=row.job_id,
        status=row.status.value,
        attempt=row.attempt,
        answered=row.answered,
        error=row.error,
        created_at=timestamp(row.created_at),
        attempted_at=timestamp(row.attempted_at),
        next_at=timestamp(row.next_at) if pending else None,
    )
