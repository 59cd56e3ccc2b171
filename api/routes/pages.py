"""The pages that are of no one thing: home, lists and forms.

They hold nothing of anybody: a script of theirs asks the API for what they show.
"""

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from adap.api.accept import choose
from adap.api.deps import Reader
from adap.api.guarded import GuardedRoute
from adap.api.pages import page

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

PAGES = {  # by path: the template
    "/": "home",
    "/datasets": "datasets",
    "/models": "models",
    "/jobs": "jobs",
    "/sweeps": "sweeps",
    "/datasets/new": "dataset_new",
    "/models/new": "model_new",
    "/audits/new": "audit_new",
    "/rankings/new": "ranking_new",
    "/sweeps/new": "sweep_new",
    "/trainings/new": "training_new",
    "/try": "try",
}


def _shows(template: str) -> Callable[[Request, Reader], Response]:
    def show(request: Request, _caller: Reader) -> Response:
        choose(request.headers.get("accept", ""), ["text/html"])
        return page(template)

    return show


for path, template in PAGES.items():
    router.add_api_route(
        path, _shows(template), response_class=HTMLResponse, name=f"show_{template}_page"
    )
