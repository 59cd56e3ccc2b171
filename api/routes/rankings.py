"""Rankings: every image of a data set by its score, best first."""

from fastapi import APIRouter, Response

from api import assets
from api.assets import AssetId
from api.deps import HouseDep, Reader, Writer
from api.errors import POSTED, problems
from api.idempotency import IdempotencyDep
from api.listing import After, Limit
from api.routes.audits import read_rows
from api.routes.jobs import describe_job, finished_blob
from api.schemas import Job, Page, RankedExample
from core.config import RankingRequest
from core.resolve import DatasetSummary, check_fits, resolve_split, resolve_task
from models.header import Manifest
from store import jobs
from store.tables import DatasetRow, JobKind, ModelRow

router = APIRouter(prefix="/v1/rankings", tags=["rankings"])


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
        resolve_split(request.split, summary)
        if request.task is not None:
            resolve_task(request.task, summary)
        manifest = Manifest.model_validate(model.manifest)
        positive = manifest.positive if request.task is None else request.task.positive
        manifest.output.columns(positive)  # raises where these classes have no score
        spec = manifest.input
        check_fits(summary, channels=spec.channels, height=spec.height, width=spec.width)
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


@router.get("/{job_id}", responses=problems("not_found", "not_ready"))
def show_ranking(
    job_id: AssetId, house: HouseDep, caller: Reader, limit: Limit = 100, after: After = None
) -> Page[RankedExample]:
    """A finished ranking, best first; equal scores are ordered by example id."""
    sha256 = finished_blob(house, job_id, caller, JobKind.RANK, "ranking")
    rows, cursor = read_rows(house, sha256, limit=limit, after=after)
    return Page(
        data=[RankedExample.model_validate(row) for row in rows],
        has_more=cursor is not None,
        next_cursor=cursor,
    )
