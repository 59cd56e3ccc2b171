"""`/static`: the style sheet and the scripts of the pages, as they lie in the folder of that name.

They are read once and tell nothing of anybody, so that they are there for whoever can reach the
service. A browser keeps them and asks whether they are still the same.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import FastAPI, Request, Response

from adap.api.errors import ApiError

PREFIX = "/static/"
_TYPES = {".css": "text/css", ".js": "text/javascript"}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def install(app: FastAPI) -> None:
    """Serve them."""

    async def show(request: Request) -> Response:
        name = request.path_params["name"]
        found = _files().get(name)
        if found is None:
            raise ApiError("not_found", f"There is no file {name:.100} of the pages.")
        headers = {"Cache-Control": "no-cache", "ETag": found.etag}
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.media_type, headers=headers)

    app.add_route(PREFIX + "{name}", show, include_in_schema=False)


@cache
def _files() -> Mapping[str, _File]:
    """All of them, by name; the sheet of the pages goes on from the report's."""
    found = {
        file.name: file.read_bytes()
        for file in files("adap.api.pages").joinpath("static").iterdir()
    }
    report = files("adap.core.rendering").joinpath("templates", "report.css").read_bytes()
    found["pages.css"] = report + b"\n" + found["pages.css"]
    return {
        name: _File(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()}"')
        for name, content in found.items()
        if (suffix := name[name.rfind(".") :]) in _TYPES
    }
