"""Training jobs: their result is a model."""

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from adap.api import assets, estimates
from adap.api.deps import Caller, HouseDep, Writer
from adap.api.errors import POSTED, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.routes.jobs import describe_job
from adap.api.schemas import Estimate, Job
from adap.core.config.training import TrainingRequest
from adap.core.resolve import DatasetSummary, resolve_training
from adap.models.catalogue import SMALLEST
from adap.models.header import Manifest
from adap.store import jobs
from adap.store.tables import DatasetRow, JobKind, ModelRow

router = APIRouter(prefix="/v1/training-jobs", tags=["training"], route_class=GuardedRoute)


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
    """Train a model. `{dataset_id, task}` alone trains AdAP_LPN with the small network.

    With the task `{"each": true}` the model has a logit for each class, and is trained on their
    mean AP. `warm_start` names a model whose weights to start from.
    """
    with once.writing(request.as_json(), new_jobs=1) as session:
        request, columns = resolve(session, request, caller)
        job = jobs.enqueue(
            session, JobKind.TRAIN, tenant=caller.tenant, request=request.as_json(), **columns
        )
        location = response.headers["Location"] = f"/v1/jobs/{job.id}"
        answer = once.keep(session, describe_job(session, house, job), location=location)
    house.ring(job)
    return answer


@router.post(
    "/estimate",
    responses=problems("not_found", "not_ready", "invalid_config", "invalid_data"),
)
def estimate_training(request: TrainingRequest, house: HouseDep, caller: Writer) -> Estimate:
    """What this training would cost; nothing is made. It is refused as the training would be."""
    with house.database.reading() as session:
        request, _ = resolve(session, request, caller)
        row = assets.find(session, DatasetRow, request.dataset_id, caller)
        summary = DatasetSummary.model_validate(row.summary)
        return estimates.of_training(session, caller, request, summary)


def resolve(
    session: Session, request: TrainingRequest, caller: Caller
) -> tuple[TrainingRequest, dict[str, str | None]]:
    """The request with its task filled in, and the rows that its job refers to.

    Raises where no training could come of it: ApiError, ConfigError or DataError.
    """
    dataset = assets.find(session, DatasetRow, request.dataset_id, caller)
    assets.require_ready(dataset)
    summary = DatasetSummary.model_validate(dataset.summary)
    start = None
    if request.warm_start is not None:
        model = assets.find(session, ModelRow, request.warm_start.model_id, caller)
        assets.require_ready(model)
        start = Manifest.model_validate(model.manifest)
    resolved = resolve_training(request, summary, start=start, smallest=SMALLEST)
    return resolved, {
        "dataset_id": dataset.id,
        "model_id": None if request.warm_start is None else request.warm_start.model_id,
    }
