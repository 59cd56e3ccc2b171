"""Rankings: every image of a data set by its score, best first."""

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from adap.api import assets
from adap.api.accept import choose
from adap.api.assets import AssetId
from adap.api.deps import HouseDep, Reader, Writer
from adap.api.errors import POSTED, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.listing import After, Limit
from adap.api.routes.audits import read_rows
from adap.api.routes.jobs import describe_job, finished_blob, remove_files
from adap.api.schemas import Job, Page, RankedExample
from adap.core.config.rankings import RankingRequest
from adap.core.resolve import DatasetSummary, resolve_ranking
from adap.models.header import Manifest
from adap.store import jobs
from adap.store.tables import DatasetRow, JobKind, ModelRow

router = APIRouter(prefix="/v1/rankings", tags=["rankings"], route_class=GuardedRoute)


@router.post(
    "", status_code=201, responses=problems("not_found", "not_ready", "invalid_config", *POSTED)
)
def rank(
    request: RankingRequest,
    house: HouseDep,
    caller: Writer,
    once: IdempotencyDep,
    response: Response,
) -> Job:
    """Score every image of a data set (or of a split) with a model.

    A model with a logit for each class needs a `task`: the classes to rank first.
    """
    with once.writing(request.as_json(), new_jobs=1) as session:
        model = assets.find(session, ModelRow, request.model_id, caller)
        dataset = assets.find(session, DatasetRow, request.dataset_id, caller)
        assets.require_ready(model)
        assets.require_ready(dataset)
        summary = DatasetSummary.model_validate(dataset.summary)
        resolve_ranking(request, summary, Manifest.model_validate(model.manifest))
        job = jobs.enqueue(
            session,
            JobKind.RANK,
            tenant=caller.tenant,
            request=request.as_json(),
            dataset_id=dataset.id,
            model_id=model.id,
        )
        location = response.headers["Location"] = f"/v1/jobs/{job.id}"
        answer = once.keep(session, describe_job(session, house, job), location=location)
    house.ring(job)
    return answer


FORMS = {
    "application/json": None,
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
    "application/x-ndjson": "ranking",
}
_SUFFIXES = {"csv": "csv", "parquet": "parquet", "ranking": "ndjson"}


@router.get(
    "/{job_id}",
    response_model=Page[RankedExample],
    responses=problems("not_found", "not_ready", "not_acceptable")
    | {
        200: {
            "description": "A page of the ranking, or all of it as one file",
            "content": {
                form: {"schema": {"type": "string", "format": "binary"}} for form in list(FORMS)[1:]
            },
        },
        304: {"description": "Not modified"},
    },
)
def show_ranking(
    job_id: AssetId,
    request: Request,
    response: Response,
    house: HouseDep,
    caller: Reader,
    limit: Limit = 100,
    after: After = None,
    accept: Annotated[str, Header(max_length=1000)] = "application/json",
) -> Page[RankedExample] | Response:
    """A finished ranking, best first; equal scores are ordered by example id.

    With `Accept: text/csv`, `application/vnd.apache.parquet` or `application/x-ndjson` the whole
    ranking as one file, with ranges and an ETag. In CSV a text that a spreadsheet would run as a
    formula gets an apostrophe before it.
    """
    form = choose(accept, list(FORMS))
    name = FORMS[form]
    if name is not None:
        answer = assets.blob_response(
            request,
            house,
            finished_blob(house, job_id, caller, JobKind.RANK, name),
            media_type=form,
            filename=f"{job_id}.{_SUFFIXES[name]}",
        )
        answer.headers["Vary"] = "Accept"
        return answer
    response.headers["Vary"] = "Accept"
    sha256 = finished_blob(house, job_id, caller, JobKind.RANK, "ranking")
    rows, cursor = read_rows(house, sha256, limit=limit, after=after)
    return Page(
        data=[RankedExample.model_validate(row) for row in rows],
        has_more=cursor is not None,
        next_cursor=cursor,
    )


@router.delete("/{job_id}", status_code=204, responses=problems("not_found", "not_ready"))
def remove_ranking(job_id: AssetId, house: HouseDep, caller: Writer) -> Response:
    """Remove the files of a ranking; the job stays."""
    return remove_files(house, job_id, caller, JobKind.RANK)
