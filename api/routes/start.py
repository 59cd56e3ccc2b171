"""The start page: what is newest, for people with a browser."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from adap.api.accept import choose
from adap.api.deps import HouseDep, Reader
from adap.api.errors import problems
from adap.api.guarded import GuardedRoute
from adap.api.pages import views
from adap.api.routes.datasets import list_datasets
from adap.api.routes.jobs import list_jobs
from adap.api.routes.models import list_models

router = APIRouter(tags=["pages"], route_class=GuardedRoute)


@router.get("/", response_class=HTMLResponse, responses=problems("not_acceptable"))
def show_start(request: Request, house: HouseDep, caller: Reader) -> Response:
    """The newest jobs, models and data sets as a page, from which links lead on."""
    choose(request.headers.get("accept", ""), ["text/html"])
    jobs = list_jobs(house, caller, limit=views.NEWEST).data
    models = list_models(house, caller, limit=views.NEWEST).data
    datasets = list_datasets(house, caller, limit=views.NEWEST).data
    with house.database.reading() as session:
        return views.start_page(session, caller, jobs=jobs, models=models, datasets=datasets)
