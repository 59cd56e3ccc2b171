"""Training jobs: their result is a model."""

from fastapi import APIRouter, Response

from api import assets
from api.deps import HouseDep, Writer
from api.errors import POSTED, ApiError, problems
from api.idempotency import IdempotencyDep
from api.routes.jobs import describe_job
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
    responses=problems("not_found", "not_ready", "invalid_config", "invalid_data", *POSTED),
)
def train(
    request: TrainingRequest,
    house: HouseDep,
    caller: Writer,
    once: IdempotencyDep,
    response: Response,
) -> Job:
    """Train a model. `{dataset_id, task}` alone trains AdAP_LPN with the small network."""
    with once.writing(request.as_json(), new_jobs=1) as session:
        dataset = assets.find(session, DatasetRow, request.dataset_id, caller)
        assets.require_ready(dataset)
        summary = DatasetSummary.model_validate(dataset.summary)
        task = resolve_task(request.task, summary)
        check_both_sides(task, summary, "train" if "train" in summary.splits else None)
        check_trainable(request.architecture, summary)
        job = jobs.enqueue(
            session,
            JobKind.TRAIN,
            tenant=caller.tenant,
            request=request.model_copy(update={"task": task}).as_json(),
            dataset_id=dataset.id,
        )
        location = response.headers["Location"] = f"/v1/jobs/{job.id}"
        answer = once.keep(session, describe_job(session, house, job), location=location)
    house.ring(job)
    return answer


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
