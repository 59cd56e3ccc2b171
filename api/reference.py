"""`/docs` and `/openapi.json`: what can be called, as a page and for programs.

The page is made here from the OpenAPI and asks nobody else for anything, so it is there without
internet, and nobody else's code runs beside the API. Both are made once.
"""

import json
from functools import cache
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from adap.api.pages import page

METHODS = ("get", "post", "put", "patch", "delete")


def install(app: FastAPI) -> None:
    """Serve both, to whoever can reach the service: they tell nothing that the source does not."""

    @cache
    def as_page() -> Response:
        return page("reference", groups=_groups(app.openapi()))

    @cache
    def as_json() -> Response:
        content = json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":"))
        return Response(content, media_type="application/json")

    async def show_page(_request: Request) -> Response:
        return _copy(await run_in_threadpool(as_page))

    async def show_json(_request: Request) -> Response:
        return _copy(await run_in_threadpool(as_json))

    async def lead_to_page(_request: Request) -> Response:
        return RedirectResponse("/docs", 308)

    app.add_route("/docs", show_page, include_in_schema=False)
    app.add_route("/openapi.json", show_json, include_in_schema=False)
    app.add_route("/redoc", lead_to_page, include_in_schema=False)


def _copy(made: Response) -> Response:
    """The same answer with headers of its own, to which each request adds some."""
    return Response(made.body, headers=dict(made.headers))


def _groups(openapi: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The operations by their tag, each as the template shows it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            if method in METHODS:
                tag = operation.get("tags", ["other"])[0]
                groups.setdefault(tag, []).append(_operation(openapi, method, path, operation))
    return groups


def _operation(
    openapi: dict[str, Any], method: str, path: str, operation: dict[str, Any]
) -> dict[str, Any]:
    bodies = operation.get("requestBody", {}).get("content", {})
    return {
        "name": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "description": operation.get("description", operation.get("summary", "")),
        "parameters": [
            {
                "name": parameter["name"],
                "where": parameter["in"],
                "required": parameter.get("required", False),
                "description": parameter.get("description", ""),
            }
            for parameter in operation.get("parameters", [])
        ],
        "bodies": [
            {"kind": kind, "fields": _fields(openapi, body.get("schema", {}))}
            for kind, body in bodies.items()
        ],
        "answers": sorted(operation["responses"]),
    }


def _fields(openapi: dict[str, Any], schema: dict[str, Any]) -> dict[str, str]:
    if "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    required = schema.get("required", [])
    return {
        name: field.get("description", "") + (" (required)" if name in required else "")
        for name, field in schema.get("properties", {}).items()
    }
