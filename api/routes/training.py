"""Training jobs: their result is a model."""

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from api import assets
from api.deps import Caller, HouseDep, Writer
from api.errors import ApiError, problems
from api.routes.jobs import answer_job
from api.schemas import Job
from core.config import TrainingRequest
from core.resolve import DatasetSummary, check_both_sides, resolve_task
from models.catalogue import ARCHITECTURES
from store import jobs
from store.tables import DatasetRow, JobKind

router = APIRouter(prefix="/v1/training-jobs", tags=["training"])


@router.post(
    "",
    status_code=201,
    responses=problems("not_found", "not_ready", "invalid_config", "invalid_data"),
)
def train(request: TrainingRequest, house: HouseDep, caller: Writer, response: Response) -> Job:
    """Train a model. `{dataset_id, task}` alone trains AdAP_LPN with the small network."""
    with house.database.writing() as session:
        request, columns = resolve(session, request, caller)
        job = jobs.enqueue(
            session, JobKind.TRAIN, tenant=caller.tenant, request=request.as_json(), **columns
        )
    house.ring(job)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return answer_job(house, job)


def resolve(
    session: Session, request: TrainingRequest, caller: Caller
) -> tuple[TrainingRequest, dict[str, str | None]]:
    """The request with its task filled in, and the rows that its job refers to.

    Raises where no training could come of it: ApiError, ConfigError or DataError.
    """
    dataset = assets.find(session, DatasetRow, request.dataset_id, caller)
    assets.require_ready(dataset)
    summary = DatasetSummary.model_validate(dataset.summary)
    task = resolve_task(request.task, summary)
    check_both_sides(task, summary, "train" if "train" in summary.splits else None)
    check_trainable(request.architecture, summary)
    return request.model_copy(update={"task": task}), {"dataset_id": dataset.id}


def check_trainable(architecture: str, summary: DatasetSummary) -> None:
    """422 for an architecture that nobody has built, or that takes no images as small as these."""
    if architecture not in ARCHITECTURES:
        raise ApiError(
            "invalid_request",
            f"/body/architecture: expected one of {', '.join(ARCHITECTURES)}; got {architecture!r}",
        )
    smallest = ARCHITECTURES[architecture].minimum_size
    if min(summary.height, summary.width) < smallest:
        raise ApiError(
            "invalid_config",
            f"/body/architecture: {architecture} expects images of at least "
            f"{smallest} pixels a side, this data set has {summary.height}x{summary.width}",
        )
