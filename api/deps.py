"""What routes are given: the house (database, blobs, doorbell) and the caller."""

import ipaddress
import logging
from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.errors import ApiError, ErrorItem
from api.quotas import Rates
from store import keys
from store.artifacts import Blobs
from store.database import Database
from store.keys import Scope
from store.settings import Settings
from store.tables import LOCAL_TENANT, JobRow
from worker.app import ring
from worker.scoring.link import ScoringLink

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class House:
    """Everything that a route may touch."""

    settings: Settings
    database: Database
    blobs: Blobs
    broker: Celery
    rates: Rates
    scoring: ScoringLink

    def ring(self, job: JobRow) -> None:
        """Tell the workers of a job whose row is committed; they find it by themselves too."""
        log.info("job.queued", extra={"job_id": job.id, "kind": job.kind})
        ring(self.broker, job)


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may do."""

    tenant: str
    scopes: frozenset[str]


_bearer = HTTPBearer(auto_error=False, description="an API key, `Authorization: Bearer adap_…`")


async def _house(request: Request) -> House:  # async: no thread is needed for this
    house = request.app.state.house
    assert isinstance(house, House)
    return house


HouseDep = Annotated[House, Depends(_house)]


def _caller(
    request: Request,
    house: HouseDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The owner of the key; without any key in the database, whoever is on this machine."""
    with house.database.reading() as session:
        if credentials is not None:
            row = keys.find(session, credentials.credentials)
            if row is None:
                raise ApiError("unauthorized", "This API key is unknown, revoked or expired.")
            house.rates.take(row.tenant)
            return Caller(row.tenant, frozenset(row.scopes))
        if keys.any_valid(session):
            raise ApiError(
                "unauthorized",
                "Expected an API key in the header `Authorization: Bearer …`, got none.",
            )
    _require_this_machine(request)
    house.rates.take(LOCAL_TENANT)
    return Caller(LOCAL_TENANT, frozenset({"read", "write", "admin"}))


def _require_this_machine(request: Request) -> None:
    """Without keys only this machine is served, and no web page that its browser has open.

    A page elsewhere can make the browser call loopback addresses, under a name of its own (DNS
    rebinding) or as a cross-site form; the Host and Origin headers give both away.
    """
    names = [request.url.hostname or ""]
    origin = request.headers.get("origin")
    if origin is not None and origin != f"{request.url.scheme}://{request.url.netloc}":
        raise ApiError("forbidden", f"Calls from other web pages are refused; Origin is {origin}.")
    if not all(is_loopback(name) for name in names):
        raise ApiError(
            "forbidden", "Without API keys only this machine is served; create one to open it."
        )


def refuse_unknown_query(request: Request) -> None:
    """Refuse what a path does not take in its query, as unknown fields of a body are refused."""
    operation = request.app.openapi()["paths"][request.scope["route"].path]
    parameters = operation[request.method.lower()].get("parameters", [])
    known = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
    items = [
        ErrorItem(pointer=f"/query/{name}", detail=f"expected one of {sorted(known)} or nothing")
        for name in dict.fromkeys(request.query_params)
        if name not in known
    ]
    if items:
        first = items[0]
        raise ApiError("invalid_request", f"{first.pointer}: {first.detail}", errors=items)


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Require:
    """A dependency that asks for a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, caller: "AnyCaller") -> Caller:
        if self.scope not in caller.scopes:
            raise ApiError("forbidden", f"This needs an API key with the scope {self.scope!r}.")
        return caller


AnyCaller = Annotated[Caller, Depends(_caller)]
Reader = Annotated[Caller, Depends(_Require("read"))]
Writer = Annotated[Caller, Depends(_Require("write"))]
Admin = Annotated[Caller, Depends(_Require("admin"))]
