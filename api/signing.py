"""A browser that is signed in: its API key in a cookie, and proof that its requests are its own.

The cookie is `HttpOnly` and `SameSite=Strict`, so that no script reads it and no page elsewhere
makes the browser send it. What changes something must bring a token beside it as well, which only
a page of this service can know: it is made of the key, and scripts read it from a cookie of its
own. A request with a key in its header needs neither: no browser adds that by itself.
"""

import hashlib
import hmac
import re
from urllib.parse import quote

from fastapi import Request, Response
from starlette.requests import HTTPConnection

from adap.api.accept import choose
from adap.api.errors import MEDIA_TYPE, ApiError
from adap.api.pages import FORMS

HEADER = "x-csrf-token"
SIGN_IN = "/sign-in"
READING = frozenset({"GET", "HEAD"})  # methods that change nothing
OWN_SITE = ("same-origin", "none")  # none: an address that somebody typed
ENDED = "This API key is unknown, or was revoked or has expired: sign in with another."

_OWN_PATH = re.compile(r"/(?![/\\])[^\x00-\x20\x7f\\]{0,2000}")


def token_of(key: str) -> str:
    """What proves that a request with this key in its cookie comes from a page of the service."""
    return hmac.new(key.encode(), b"adap csrf", hashlib.sha256).hexdigest()


def kept_key(request: HTTPConnection) -> str | None:
    """The key in a browser's cookie, read as it was written: no quotes are taken off.

    ApiError where there are two: a neighbour of this host may have set one of them, so that what
    somebody does here would be done for somebody else.
    """
    cookies = request.headers.get("cookie")
    if cookies is None:
        return None
    wanted = f"{_key_cookie(request)}="
    parts = (part.strip() for part in cookies.split(";"))
    found = {part.removeprefix(wanted) for part in parts if part.startswith(wanted)}
    if len(found) > 1:
        raise ApiError(
            "bad_request",
            f"Expected one cookie {_key_cookie(request)}, got {len(found)}: remove the cookies of "
            "this site, then sign in again.",
        )
    return next(iter(found), None) or None


def require_own_page(request: Request, key: str) -> None:
    """Raise ApiError unless a request that changes something comes from a page of the service."""
    refuse_other_sites(request)
    token = request.headers.get(HEADER, "")
    if not hmac.compare_digest(token.encode(), token_of(key).encode()):
        raise ApiError(
            "forbidden",
            "Expected the header `X-CSRF-Token` of a page of this service with a key from a "
            "cookie; load the page again, or send the key as `Authorization: Bearer …`.",
        )


def refuse_other_sites(request: HTTPConnection) -> None:
    """Raise ApiError for what a browser sends for a page of another site, as it says itself.

    That somebody follows a link from there to a page of the service is no such call. The site is
    said over https and to this machine; over plain HTTP, and by old browsers, the origin alone.
    """
    site, origin = (request.headers.get(name) for name in ("sec-fetch-site", "origin"))
    if site is None:
        elsewhere = origin not in (None, f"{request.url.scheme}://{request.url.netloc}")
    else:
        elsewhere = site not in OWN_SITE and not _follows_a_link(request)
    if elsewhere:
        raise ApiError("forbidden", "Calls from pages of other sites are refused.")


def _follows_a_link(request: HTTPConnection) -> bool:
    return (
        request.scope["method"] in READING
        and request.headers.get("sec-fetch-mode") == "navigate"
        and request.headers.get("sec-fetch-dest") == "document"
    )


def asks_for_page(request: Request) -> bool:
    """Whether a request is a browser's for a page, which can be led elsewhere.

    A program that wants a page, and its problems to read, accepts `application/problem+json` too.
    """
    try:
        return (
            request.method in READING
            and choose(request.headers.get("accept", ""), (MEDIA_TYPE, *FORMS)) == "text/html"
        )
    except ApiError:
        return False


def sign_in_first(request: Request) -> Response:
    """Lead a browser to the sign-in, and from there back to what it asked for."""
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    headers = {"Location": f"{SIGN_IN}?next={quote(path, safe='')}", "Cache-Control": "no-store"}
    return Response(status_code=303, headers=headers)


def own_path(text: str | None) -> str:
    """Where to go after the sign-in: a path of this service, else home."""
    return text if text is not None and _OWN_PATH.fullmatch(text) else "/"


def keep(response: Response, request: Request, key: str) -> None:
    """Have the browser keep a key until it is closed."""
    secure = request.url.scheme == "https"
    for name, value, hidden in (
        (_key_cookie(request), key, True),
        (_token_cookie(request), token_of(key), False),
    ):
        response.set_cookie(name, value, httponly=hidden, samesite="strict", secure=secure)


def forget(response: Response, request: Request) -> None:
    """Have the browser forget its key."""
    for name in (_key_cookie(request), _token_cookie(request)):
        response.delete_cookie(name, samesite="strict")


def _key_cookie(request: HTTPConnection) -> str:
    """By its port, as browsers send a cookie to every port of a host."""
    return f"adap_key_{request.url.port or ''}"


def _token_cookie(request: HTTPConnection) -> str:
    return f"adap_csrf_{request.url.port or ''}"
