"""The route class of the API: who asks is known before a byte of the body is read.

FastAPI reads a body before it asks the dependencies of a route. Here the key, its scope, the rate
and the tenant's room come first, so that nobody without them can make the service keep anything.
"""

import math
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.params import Form
from fastapi.routing import APIRoute

from adap.api import bodies, forms, quotas, signing
from adap.api.deps import House, Require, admit, bearer, has_body, refuse_unknown_query
from adap.api.errors import ApiError

FORM = "multipart/form-data"
SHORT_FORM = "application/x-www-form-urlencoded"  # of fields alone; its values are kept in memory
SHORT_FORM_BYTES = 256 * 1024
FIELDS_BYTES = 16 * 1024  # of a form that takes no files at all
MAX_QUERY_PARAMETERS = 1100  # as many classes as one request may name, and some more
FORM_BYTES = 1 << 20  # around a file: what a form may add to it


class GuardedRoute(APIRoute):
    """A route that admits its caller first, then reads the body, then does its work."""

    forms: ClassVar[Mapping[str, float]] = {FORM: math.inf, SHORT_FORM: SHORT_FORM_BYTES}
    """The kinds of form that it takes, where it takes any, and of how many bytes."""

    def __init__(self, *about: Any, **more: Any) -> None:
        super().__init__(*about, **more)
        if any(_required(self.dependant)):
            self.openapi_extra = {
                "security": [{bearer.scheme_name: []}],
                **(self.openapi_extra or {}),
            }

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        answer = super().get_route_handler()
        needed = next(_required(self.dependant), None)
        field = self.body_field
        takes_form = field is not None and isinstance(field.field_info, Form)
        takes_json = field is not None and not takes_form
        lists = forms.lists_of_route(self.dependant) if takes_form else frozenset()

        async def guarded(request: Request) -> Response:
            if request.scope["query_string"].count(b"&") >= MAX_QUERY_PARAMETERS:
                raise ApiError(
                    "invalid_request",
                    f"/query: expected at most {MAX_QUERY_PARAMETERS} parameters, got more.",
                )
            house = request.app.state.house
            if needed is not None:
                try:
                    caller = await admit(request, house)
                except ApiError as error:
                    if error.code == "unauthorized" and signing.asks_for_page(request):
                        return signing.sign_in_first(request)
                    raise
                needed.check(caller)
                if has_body(request.scope):
                    if needed.stores:
                        await _require_room(request, house)
                    if _kind(request) == FORM:
                        turns = house.turns.receive(request.receive, caller.tenant)
                        request = Request(request.scope, turns)
            if request.scope["query_string"]:
                refuse_unknown_query(request)
            content_type = request.headers.get("content-type", "")
            kind = _kind(request)
            if takes_form and has_body(request.scope):
                _require_form(self.forms, kind, _declared_bytes(request))
                await forms.require_once(request, lists=lists)
            if takes_json and bodies.is_json(content_type):
                await bodies.replace(request)
            return await answer(request)

        return guarded


class FieldsRoute(GuardedRoute):
    """A route whose form has a few short fields and no files: nobody unpacks parts for it."""

    forms: ClassVar[Mapping[str, float]] = {SHORT_FORM: FIELDS_BYTES}


def _require_form(forms: Mapping[str, float], kind: str, size: float) -> None:
    """Raise ApiError for another kind of form, or too long a one, before it is read."""
    if size <= forms.get(kind, -1):
        return
    expected = next(iter(forms))
    most = forms[expected]
    raise ApiError(
        "unsupported_media_type",
        f"Expected {expected}"
        + ("" if most == math.inf else f" with a Content-Length of at most {most:g}")
        + f", got {kind or 'nothing'!s:.100}"
        + (f" of {size:g} bytes." if kind in forms and size < math.inf else "."),
    )


def _required(dependant: Dependant) -> Iterator[Require]:
    """What a route asks of its caller, from the dependency that says so."""
    for inner in dependant.dependencies:
        if isinstance(inner.call, Require):
            yield inner.call
        yield from _required(inner)


def _kind(request: Request) -> str:
    """What a body is said to be, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _declared_bytes(request: Request) -> float:
    """How long a body says to be; infinite where it says nothing."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() and len(declared) < 20 else math.inf


async def _require_room(request: Request, house: House) -> None:
    """Raise ApiError where the tenant has no room for the file of a request."""
    if house.settings.max_tenant_bytes is None:
        return
    caller = await admit(request, house)
    size = _declared_bytes(request)
    size = 0 if size == math.inf else size

    def check() -> None:
        with house.database.reading() as session:
            new = max(int(size) - FORM_BYTES, 1)
            quotas.check_bytes(session, house.settings, caller.tenant, new=new)

    await run_in_threadpool(check)
