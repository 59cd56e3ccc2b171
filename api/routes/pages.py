"""The pages that are of no one thing: home, lists and forms.

They hold nothing of anybody: a script of theirs asks the API for what they show.
"""

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from adap.api.accept import choose
from adap.api.deps import HouseDep, Reader
from adap.api.guarded import GuardedRoute
from adap.api.pages import page, views
from adap.api.routes.datasets import list_datasets
from adap.api.routes.jobs import list_jobs
from adap.api.routes.models import list_models

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

PAGES = {  # by path: the template
    "/datasets": "datasets",
    "/models": "models",
    "/jobs": "jobs",
}


@router.get("/", response_class=HTMLResponse)
def show_start(request: Request, house: HouseDep, caller: Reader) -> Response:
    """The newest jobs, models and data sets as a page, from which links lead on."""
    choose(request.headers.get("accept", ""), ["text/html"])
    jobs = list_jobs(house, caller, limit=views.NEWEST).data
    models = list_models(house, caller, limit=views.NEWEST).data
    datasets = list_datasets(house, caller, limit=views.NEWEST).data
    with house.database.reading() as session:
        return views.start_page(session, caller, jobs=jobs, models=models, datasets=datasets)


def _shows(template: str) -> Callable[[Request, Reader], Response]:
    def show(request: Request, _caller: Reader) -> Response:
        choose(request.headers.get("accept", ""), ["text/html"])
        return page(template)

    return show


for path, template in PAGES.items():
    router.add_api_route(
        path, _shows(template), response_class=HTMLResponse, name=f"show_{template}_page"
    )
