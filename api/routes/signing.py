"""Sign-in and sign-out of browsers: pages for people, no part of the API."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from adap.api import signing
from adap.api.deps import HouseDep, admit, identify
from adap.api.errors import ApiError
from adap.api.guarded import FieldsRoute
from adap.api.pages import page

router = APIRouter(route_class=FieldsRoute, include_in_schema=False)

Field = Annotated[str, Form(max_length=2500)]


@router.get(signing.SIGN_IN, response_class=HTMLResponse)
async def show_sign_in(request: Request, house: HouseDep) -> Response:
    """The page that asks for a key; whoever needs none is led on."""
    asked = request.query_params.get("next")
    key = signing.kept_key(request)
    try:
        await admit(request, house)
    except ApiError as error:
        if error.code != "unauthorized":
            raise
    else:
        return RedirectResponse(signing.own_path(asked), 303)
    said = "" if key is None else signing.ENDED
    if "out" in request.query_params:
        said = "You are signed out."
    answer = page("sign_in", next=signing.own_path(asked), said=said, failed=key is not None)
    if key is not None:
        signing.forget(answer, request)
    return answer


@router.post(signing.SIGN_IN, response_class=HTMLResponse)
async def sign_in(
    request: Request,
    house: HouseDep,
    key: Field = "",
    next_path: Annotated[str, Form(alias="next", max_length=2500)] = "/",
) -> Response:
    """Keep a good key in the browser, and go where it wanted to."""
    signing.refuse_other_sites(request)
    try:
        await identify(house, key.strip() or None)
    except ApiError as error:
        if error.code != "unauthorized":
            raise
        said = signing.ENDED if key.strip() else "Expected an API key, got none."
        answer = page("sign_in", next=signing.own_path(next_path), said=said, failed=True)
        answer.status_code = 401
        return answer
    answer = RedirectResponse(signing.own_path(next_path), 303)
    if key.strip():
        signing.keep(answer, request, key.strip())
    return answer


@router.post("/sign-out", status_code=204)
async def sign_out(request: Request) -> Response:
    """Have the browser forget its key; the key itself goes on."""
    signing.refuse_other_sites(request)
    key = signing.kept_key(request)
    if key is not None:
        signing.require_own_page(request, key)
    answer = Response(status_code=204)
    signing.forget(answer, request)
    return answer
