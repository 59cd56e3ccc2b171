"""Dependencies of the routes: the house (database, blobs, doorbell) and the caller."""

import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import HTTPConnection
from starlette.types import Scope as ScopeOfRequest

from adap.api import signing
from adap.api.errors import MAX_ITEMS, MAX_NAME_CHARACTERS, ApiError, ErrorItem
from adap.api.gathered import Gathered
from adap.api.kept import Kept
from adap.api.quotas import Places, Rates
from adap.api.recent import Recent, Together
from adap.api.schemas import Job
from adap.api.turns import Turns
from adap.api.watch import Health, Watch
from adap.models.header import Manifest
from adap.store import keys
from adap.store.blobs import Blobs
from adap.store.database import Database
from adap.store.keys import Scope
from adap.store.settings import Settings
from adap.store.signing import SigningKey
from adap.store.tables import LOCAL_TENANT, JobRow
from adap.worker.app import Bells
from adap.worker.scoring.link import ScoringLink

log = logging.getLogger(__name__)

FORWARDING_PREFIXES = (
    *("x-forwarded", "x-original-", "x-real-", "x-rewrite-", "x-proxy", "x-envoy-", "x-akamai-"),
    *("x-amz-cf-", "x-azure-", "x-arr-", "x-vercel-", "x-nginx-"),
    *("cf-", "fly-", "fastly-", "akamai-", "cloudfront-"),
)
FORWARDING = frozenset(
    {
        *("forwarded", "via", "cdn-loop", "max-forwards", "proxy-connection", "x-host"),
        *("client-ip", "true-client-ip", "x-client-ip", "x-cluster-client-ip", "remote-addr"),
        *("x-remote-ip", "x-remote-addr", "x-originating-ip", "wl-proxy-client-ip"),
        *("proxy-client-ip", "x-scheme", "x-varnish", "x-request-start", "x-appengine-user-ip"),
    }
)
"""What proxies add to a request that they pass on, in lower case."""


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may do."""

    tenant: str
    scopes: frozenset[str]


@dataclass(frozen=True)
class Target:
    """A model that the caller may use, ready to score."""

    model_id: str
    tenant: str
    sha256: str
    manifest: Manifest


@dataclass(frozen=True)
class ShownJob:
    """A job as the API shows it, and written out as JSON."""

    job: Job
    body: bytes


@dataclass(frozen=True)
class House:
    """Everything that a route may touch."""

    settings: Settings
    database: Database
    blobs: Blobs
    bells: Bells
    rates: Rates
    scoring: ScoringLink
    watch: Watch
    places: Places
    signing: SigningKey | None  # of webhooks; None where they are off
    callers: Recent[str | None, Caller] = field(default_factory=Recent)  # by API key, if any
    asking: Together[str | None, Caller] = field(default_factory=Together)  # who a key is of
    targets: Recent[tuple[str, str], Target] = field(default_factory=Recent)  # by tenant and id
    shown: Gathered[tuple[Caller, str], ShownJob] = field(default_factory=Gathered)  # jobs, by id
    turns: Turns = field(default_factory=Turns)
    kept: Kept = field(default_factory=Kept)  # names and scores that pages look at
    health: Health = field(default_factory=Health)
    halted: Recent[str, str] = field(default_factory=Recent)  # by queue: why none works, or ""

    def ring(self, job: JobRow) -> None:
        """Tell the workers of a job whose row is committed; they find it by themselves too."""
        log.info("job.queued", extra={"job_id": job.id, "kind": job.kind})
        self.bells.ring(job)


PROVEN = "adap.proven"  # in the scope: what to call with the tenant who was let in
END = "adap.end"  # in the scope: what to call to hang up
CALLER = "adap.caller"  # in the scope of a request whose caller is known
ADMITTED_AT = "adap.admitted_at"  # in the scope of a request whose caller is known: when that was
BRIEF_S = 1.0  # a body that comes in this time is not worth another look at the key

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})

bearer = HTTPBearer(auto_error=False, description="an API key, `Authorization: Bearer adap_…`")


def house_of(request: Request) -> House:
    """The house of the application that a request came to."""
    house = request.app.state.house
    assert isinstance(house, House)
    return house


async def _house(request: Request) -> House:  # async: no thread is needed for this
    return house_of(request)


HouseDep = Annotated[House, Depends(_house)]


def has_body(scope: ScopeOfRequest) -> bool:
    """Whether a request brings a body, or says so."""
    return any(name in _BODY_HEADERS for name, _ in scope["headers"])


async def admit(request: Request, house: House) -> Caller:
    """The owner of the key; while no key was ever made, whoever is on this machine.

    Counts the request, once. Raises ApiError for whoever is not let in.
    """
    known = request.scope.get(CALLER)
    if isinstance(known, Caller):
        return known
    key = await _key_of(request)
    caller = await identify(house, key)
    if key is None:
        require_this_machine(request, house.settings)
    house.rates.take(caller.tenant)
    request.scope[CALLER] = caller
    request.scope[ADMITTED_AT] = time.monotonic()
    request.scope.get(PROVEN, _nothing)(caller.tenant)
    return caller


async def still_admitted(request: Request, house: House) -> bool:
    """Whether the key of a caller who was let in still opens the same.

    To be asked now and then of answers that last longer than a key may. Where the database cannot
    be asked, what it said before holds.
    """
    try:
        return bool(await identify(house, await _key_of(request)) == request.scope[CALLER])
    except ApiError:
        return False
    except SQLAlchemyError:
        return True


async def require_still_admitted(request: Request, house: House) -> None:
    """Raise ApiError where the key of a caller ended while the answer was waited for."""
    if not await still_admitted(request, house):
        raise ApiError("unauthorized", "This API key was revoked or has expired meanwhile.")


async def require_admitted_at_the_end(request: Request, house: House) -> None:
    """Raise ApiError where the key of a caller ended while the body, which is here now, came."""
    if time.monotonic() - request.scope[ADMITTED_AT] > BRIEF_S:
        await require_still_admitted(request, house)


async def _key_of(request: Request) -> str | None:
    """The key that a request brings; ApiError where a browser may not send it with this one."""
    credentials = await bearer(request)
    if credentials is not None:
        return credentials.credentials
    key = signing.kept_key(request)
    if key is not None and request.method not in signing.READING:
        signing.require_own_page(request, key)
    return key


async def identify(house: House, key: str | None) -> Caller:
    """Whose key this is; ApiError where it, or having none, opens nothing."""
    caller = house.callers.get(key)
    if caller is None:
        asked_at = time.monotonic()
        caller = await house.asking.ask(key, lambda: run_in_threadpool(_read_caller, house, key))
        if key is not None and house.callers.get(None) is not None:
            house.callers.forget()  # another process made this key: now everybody needs one
        house.callers.keep(key, caller, asked_at=asked_at)
    return caller


def _nothing(_: str) -> None:
    """What a connection is told that nobody counts."""


async def _caller(request: Request) -> Caller:
    house = await _house(request)
    caller = await admit(request, house)
    await require_admitted_at_the_end(request, house)
    return caller


def _read_caller(house: House, key: str | None) -> Caller:
    """Raises ApiError where this key, or no key, opens nothing."""
    with house.database.reading() as session:
        if key is None:
            if keys.any_made(session):
                raise ApiError(
                    "unauthorized",
                    "Expected an API key (--api-key, ADAP_API_KEY; over HTTP in the header "
                    "`Authorization: Bearer …`), got none.",
                )
            return Caller(LOCAL_TENANT, frozenset({"read", "write", "admin"}))
        row = keys.find(session, key)
    if row is None:
        raise ApiError("unauthorized", "This API key is unknown, revoked or expired.")
    return Caller(row.tenant, frozenset(row.scopes))


def require_this_machine(request: HTTPConnection, settings: Settings) -> None:
    """Without keys only this machine is served, and no web page that its browser has open.

    That the caller is here is read from the connection, never from what the caller writes; a
    request that a proxy has passed on comes from anywhere. What the caller writes can only refuse:
    a page elsewhere can make the browser call loopback addresses, under a name of its own (DNS
    rebinding) or as a cross-site form, and the Host and Origin headers give both away.
    """
    peer = request.client.host if request.client is not None else ""
    passed_on = [name for name in request.headers if is_forwarding(name)]
    if passed_on:
        raise ApiError(
            "forbidden",
            f"Without API keys only this machine is served, and a request with {passed_on[0]:.40} "
            "was passed on from elsewhere; `adap key create --scope admin` opens the service.",
        )
    if not all(map(is_loopback, (settings.host, peer, request.url.hostname or ""))):
        raise ApiError(
            "forbidden",
            "Without API keys only this machine is served; `adap key create --scope admin` opens "
            "the service.",
        )
    signing.refuse_other_sites(request)


def is_forwarding(header: str) -> bool:
    """Whether a header is one that proxies add to what they pass on."""
    return header.lower().startswith(FORWARDING_PREFIXES) or header.lower() in FORWARDING


def refuse_unknown_query(request: Request) -> None:
    """Refuse what a path does not take in its query, or not twice, as in a body."""
    operation = request.app.openapi()["paths"].get(request.scope["route"].path)
    if operation is None:  # a page, which reads by script what it was called with
        return
    parameters = operation[request.method.lower()].get("parameters", [])
    known = {
        parameter["name"]: _takes_many(parameter["schema"])
        for parameter in parameters
        if parameter["in"] == "query"
    }
    counts = Counter(name for name, _ in request.query_params.multi_items())
    faults = {name: f"expected one of {sorted(known)} or nothing" for name in counts}
    faults |= dict.fromkeys(known, "expected one value, got several")
    items = [
        ErrorItem(pointer=f"/query/{name:.{MAX_NAME_CHARACTERS}}", detail=faults[name])
        for name, count in counts.items()
        if name not in known or (count > 1 and not known[name])
    ][:MAX_ITEMS]
    if items:
        first = items[0]
        raise ApiError("invalid_request", f"{first.pointer}: {first.detail}", errors=items)


def _takes_many(schema: Mapping[str, Any]) -> bool:
    return any(one.get("type") == "array" for one in (schema, *schema.get("anyOf", ())))


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Require:
    """A dependency that asks for a scope; `GuardedRoute` asks it before the body comes.

    stores: whether the files of a request stay, and need room.
    """

    def __init__(self, scope: Scope, *, stores: bool = False) -> None:
        self.scope = scope
        self.stores = stores

    async def __call__(self, request: Request) -> Caller:
        # of no dependencies of its own: to solve them costs more than all that they do
        return self.check(await _caller(request))

    def check(self, caller: Caller) -> Caller:
        """The caller. ApiError where the scope is not theirs."""
        if self.scope not in caller.scopes:
            raise ApiError("forbidden", f"This needs an API key with the scope {self.scope!r}.")
        return caller


AnyCaller = Annotated[Caller, Depends(_caller)]
Reader = Annotated[Caller, Depends(Require("read"))]
Writer = Annotated[Caller, Depends(Require("write"))]
Uploader = Annotated[Caller, Depends(Require("write", stores=True))]
Admin = Annotated[Caller, Depends(Require("admin"))]
