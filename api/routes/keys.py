"""API keys: create (shown once), list, revoke."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import ConfigDict, Field
from sqlalchemy import select

from adap import faults
from adap.api.assets import AssetId
from adap.api.deps import Admin, HouseDep
from adap.api.errors import ApiError, not_found, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.listing import After, Limit, Match, matching, page
from adap.api.schemas import ApiKey, NewApiKey, Page, timestamp
from adap.core.config.base import Config, Name
from adap.store import keys
from adap.store.keys import Scope
from adap.store.tables import ApiKeyRow

router = APIRouter(prefix="/v1/api-keys", tags=["API keys"], route_class=GuardedRoute)


Tenant = Annotated[str, Field(pattern=faults.TENANT, max_length=63)]


class ApiKeyRequest(Config):
    """`POST /v1/api-keys`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "nightly audit", "scopes": ["read", "write"]}]}
    )

    name: Name
    scopes: list[Scope] = Field(["read", "write"], min_length=1, max_length=3)
    tenant: Annotated[str, Field(pattern=faults.TENANT, max_length=63)] | None = Field(
        None, description="by default the caller's; tenants cannot see each other's things"
    )
    expires_in_s: float | None = Field(None, gt=0, le=10 * 366 * 86400)
    allow_no_admin: bool = Field(
        False,
        description="make an admin key that expires although no other lasts: once it has, only "
        "`adap key create` on the service's own machine makes another",
    )


AllowNoAdmin = Annotated[
    bool,
    Query(
        description="revoke it even if no admin key that lasts is left: then only "
        "`adap key create` on the service's own machine makes another"
    ),
]


@router.post(
    "",
    status_code=201,
    responses=problems(
        "conflict", "last_admin_key", "shown_once", "bad_request", "idempotency_key_reused"
    ),
)
def create_key(request: ApiKeyRequest, caller: Admin, once: IdempotencyDep) -> NewApiKey:
    """Create a key. It is shown in this answer only; the service keeps its hash."""
    with once.writing(request.as_json()) as session:
        if "admin" not in request.scopes and not keys.any_made(session):
            raise ApiError(
                "conflict",
                "The first key must have the scope 'admin', or nobody could create another.",
            )
        expires = "admin" in request.scopes and request.expires_in_s is not None
        if expires and not request.allow_no_admin and not keys.lasting_admin(session):
            raise ApiError(
                "last_admin_key",
                "Expected an admin key without expires_in_s, as no other admin key lasts and "
                "nobody could administer the service once this one has expired; "
                "allow_no_admin: true makes it nevertheless.",
            )
        row, key = keys.create(
            session,
            name=request.name,
            scopes=request.scopes,
            tenant=request.tenant or caller.tenant,
            expires_in_s=request.expires_in_s,
        )
        session.refresh(row)
        once.refuse_later(
            session,
            "shown_once",
            f"This Idempotency-Key made the API key {row.id}, which was shown then and is not "
            "kept; revoke it and create another.",
        )
        answer = NewApiKey(**_answer(row).model_dump(), key=key)
    once.house.callers.forget()
    return answer


@router.get("", responses=problems())
def list_keys(
    house: HouseDep,
    _caller: Admin,
    limit: Limit = 20,
    after: After = None,
    match: Match = None,
) -> Page[ApiKey]:
    """All keys, without the keys themselves."""
    with house.database.reading() as session:
        return page(
            session,
            matching(select(ApiKeyRow), ApiKeyRow.id, ApiKeyRow.name, match),
            ApiKeyRow.id,
            limit=limit,
            after=after,
            answer=_answer,
        )


@router.delete("/{key_id}", status_code=204, responses=problems("not_found", "last_admin_key"))
def revoke_key(
    key_id: AssetId, house: HouseDep, _caller: Admin, allow_no_admin: AllowNoAdmin = False
) -> Response:
    """Revoke a key; it stops working at once, in other processes of the API within a second.

    The last admin key that lasts stays, unless `allow_no_admin` says otherwise.
    """
    with house.database.writing() as session:
        if not allow_no_admin and keys.locks_out(session, key_id):
            raise ApiError(
                "last_admin_key",
                f"The API key {key_id} is the last one of the scope 'admin' that lasts; create "
                "another first, or add ?allow_no_admin=true.",
            )
        if not keys.revoke(session, key_id):
            raise not_found("valid API key", key_id)
    house.callers.forget()
    return Response(status_code=204)


def _answer(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        tenant=row.tenant,
        scopes=row.scopes,
        created_at=timestamp(row.created_at),
        expires_at=timestamp(row.expires_at),
        revoked_at=timestamp(row.revoked_at),
    )
