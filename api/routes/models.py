"""Models: upload, look at, rename and annotate, download, remove."""

from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import APIRouter, BackgroundTasks, Form, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
)
from sqlalchemy import select

from adap.api import assets, forms, quotas
from adap.api.assets import AssetId
from adap.api.deps import (
    Caller,
    House,
    HouseDep,
    Reader,
    Uploader,
    Writer,
    require_still_admitted,
)
from adap.api.errors import POSTED, ApiError, explain_validation, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.listing import After, Limit, Match, Search, SortedBy, having, matching, page
from adap.api.noting import Change
from adap.api.pages import PAGE, views, wants_page
from adap.api.routes.jobs import wait_until_done
from adap.api.schemas import Model, Page, Status, model_answer
from adap.core.config.base import Identifier, Name
from adap.faults import NamedFields, explain
from adap.models import catalogue
from adap.models.header import ONE_LOGIT, Declaration, InputSpec, OutputSpec
from adap.store import jobs
from adap.store.tables import AssetStatus, JobKind, JobRow, JobStatus, ModelRow

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=GuardedRoute)

Format = Literal["safetensors", "onnx"]
Spec = TypeVar("Spec", InputSpec, OutputSpec)
Positive = Annotated[
    str | None,
    Field(
        max_length=4000,
        description="of a model of one logit: the class that it ranks first, several of them "
        "separated by commas, or as a JSON list; audits and rankings of others are then refused",
        examples=["tumour"],
    ),
]


class ModelForm(NamedFields):
    """`POST /v1/models`, multipart/form-data."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile | None = Field(
        None,
        description="weights as safetensors or as a state dict that torch.save wrote, or a whole "
        "network as ONNX",
    )
    upload_id: Identifier | None = Field(
        None, description="instead of `file`: one that came in parts, see POST /v1/uploads"
    )
    name: Name | None = Field(None, description="by default the file's name")
    architecture: str | None = Field(
        None,
        max_length=64,
        description="what the tensors belong to, see GET /v1/architectures; also "
        "`torchvision/NAME` and `timm/NAME`, and `onnx` for ONNX; may be left out where the file "
        "tells it: one that this service has written, ONNX, or tensors of known names and shapes",
    )
    input: str | None = Field(
        None,
        max_length=4096,
        description="how images become the network's input, as JSON; mean and std are of pixels in "
        "`value_range`, and the network takes red, green, blue unless `channel_order` says `bgr` "
        "(blue, green, red, as OpenCV and Caffe have them); left out only where the file carries "
        "its own manifest",
        examples=[
            '{"channels": 3, "height": 32, "width": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}'
        ],
    )
    output: str | None = Field(
        None,
        max_length=forms.MAX_TEXT,
        description="what the network answers, as JSON: by default one logit of the positive "
        "side; else a logit for each class, of which one is true (`multiclass`) or each may be "
        "(`multilabel`); or a `probability`, or `probabilities` of classes; of an ONNX file with "
        "several outputs, `name` says which",
        examples=['{"kind": "multiclass", "classes": ["cat", "dog", "other"]}'],
    )
    weights: str | None = Field(
        None,
        max_length=200,
        description="of a checkpoint with several sets of weights, such as raw and averaged ones: "
        "the name of the one to take",
        examples=["model_ema"],
    )
    positive: Positive = None


class Declared(Protocol):
    """The fields of a form that say what a model file is."""

    architecture: str | None
    input: str | None
    output: str | None
    weights: str | None
    positive: str | None


def declared_model(form: Declared) -> Declaration | None:
    """What the request says about the file; None leaves it to the file itself."""
    told = (form.architecture, form.input, form.output, form.weights, form.positive)
    if all(field is None for field in told):
        return None
    if form.input is None:
        raise ApiError(
            "invalid_request",
            "/body: expected `input` (--size) with `architecture`, `output`, `weights` or "
            "`positive`, or none of them for a file that carries its own manifest.",
        )
    if form.architecture is not None and not catalogue.is_known(form.architecture):
        raise ApiError(
            "invalid_request",
            f"/body/architecture: expected one of {catalogue.known()}; got {form.architecture!r}",
        )
    output = form.output
    positive = None
    if form.positive is not None:
        positive = forms.class_names(form.positive, pointer="/body/positive", separator=",")
    spec = _parsed(InputSpec, form.input, field="input")
    answers = ONE_LOGIT if output is None else _parsed(OutputSpec, output, field="output")
    try:
        return Declaration(
            architecture=form.architecture,
            input=spec,
            output=answers,
            weights=form.weights,
            positive=positive,
        )
    except ValidationError as error:
        raise ApiError(
            "invalid_request", f"/body/positive: {explain(error.errors()[0])}"
        ) from error


def _parsed(kind: type[Spec], text: str, *, field: str) -> Spec:
    try:
        return kind.model_validate(forms.json_of(text, field=field))
    except ValidationError as error:
        raise explain_validation(error, prefix=f"body/{field}") from error


@router.post(
    "",
    status_code=201,
    responses=problems(
        *("too_large", "unsupported_media_type", *POSTED, "storage_full", "not_found", "not_ready")
    ),
)
def add_model(
    form: Annotated[ModelForm, Form(media_type="multipart/form-data")],
    house: HouseDep,
    caller: Uploader,
    once: IdempotencyDep,
    response: Response,
) -> Model:
    """Upload a model; a job loads it in a sandbox and tries it on probe images.

    Its status is `validating`, then `ready` or `rejected` with every reason.
    """
    declared = declared_model(form)
    with assets.receiving(form.file, form.upload_id, house, caller) as came:
        name = form.name or came.name
        content = {
            "file": came.sha256,
            "name": name,
            "declared": None if declared is None else declared.model_dump(mode="json"),
        }
        with once.writing(content, new_jobs=1) as session:
            came.take(session, house, caller)
            row, job = assets.add_model(
                session, caller, name=name, sha256=came.sha256, size=came.size, declared=declared
            )
            location = response.headers["Location"] = f"/v1/models/{row.id}"
            answer = once.keep(session, model_answer(row), location=location)
    house.ring(job)
    return answer


@router.get("", responses=problems())
def list_models(
    house: HouseDep,
    caller: Reader,
    limit: Limit = 20,
    after: After = None,
    status: Status | None = None,
    search: Search = None,
    match: Match = None,
    sort: SortedBy = "newest",
) -> Page[Model]:
    """The models, newest first: those of a status, or all but what was rejected."""
    query = select(ModelRow).where(
        ModelRow.tenant == caller.tenant,
        ModelRow.deleted_at.is_(None),
        ModelRow.status != AssetStatus.REJECTED
        if status is None
        else ModelRow.status == AssetStatus(status),
    )
    with house.database.reading() as session:
        return page(
            session,
            having(matching(query, ModelRow.id, ModelRow.name, match), ModelRow.name, search),
            ModelRow.id,
            limit=limit,
            after=after,
            answer=model_answer,
            sort=sort,
        )


@router.get(
    "/{model_id}", response_model=Model, responses=problems("not_found", "not_acceptable") | PAGE
)
def show_model(
    model_id: AssetId, request: Request, response: Response, house: HouseDep, caller: Reader
) -> Model | Response:
    """One model: its status, its manifest, how it was trained; also as a page (`text/html`)."""
    as_page = wants_page(request, response)
    with house.database.reading() as session:
        model = model_answer(assets.find(session, ModelRow, model_id, caller))
        return views.model_page(request, session, caller, model) if as_page else model


@router.get(
    "/{model_id}/content",
    response_class=Response,
    responses=problems("not_found", "not_ready", "invalid_model", "too_many_jobs")
    | {304: {"description": "Not modified"}},
)
async def download_model(
    model_id: AssetId,
    request: Request,
    house: HouseDep,
    caller: Reader,
    file_format: Annotated[Format, Query(alias="format")] = "safetensors",
) -> Response:
    """The model as a file.

    safetensors: the weights with the manifest inside; upload it elsewhere as it is. onnx: pixels in
    [0, 1] to logits, for use without PyTorch; made by a job when it is first asked for, which needs
    the scope `write`.
    """
    exported = None
    if file_format == "onnx":
        exported = await _exported(house, caller, model_id)
        await require_still_admitted(request, house)

    def answer() -> Response:
        sha256 = exported or _content_sha256(house, caller, model_id)
        return assets.content(request, house, sha256, filename=f"{model_id}.{file_format}")

    return await run_in_threadpool(answer)


def _content_sha256(house: House, caller: Caller, model_id: str) -> str:
    with house.database.reading() as session:
        row = assets.find(session, ModelRow, model_id, caller)
        assets.require_ready(row)
    assert row.content_sha256 is not None
    return row.content_sha256


async def _exported(house: House, caller: Caller, model_id: str) -> str:
    """The hash of a model as ONNX, by the job that made it or one that makes it now."""
    job = await run_in_threadpool(_export_job, house, caller, model_id)
    ended = await wait_until_done(house, job.id, wait_s=house.settings.max_wait_s)
    if ended.status == JobStatus.FAILED:
        error = ended.error or {}
        raise ApiError(error["code"], error["message"])
    if ended.status != JobStatus.SUCCEEDED:
        raise ApiError(
            "not_ready", f"The model {model_id} is still being exported; wait for {job.id}."
        )
    return str((ended.result or {})["blobs"]["onnx"])


def _export_job(house: House, caller: Caller, model_id: str) -> JobRow:
    _content_sha256(house, caller, model_id)  # raises where it is not ready
    query = select(JobRow).where(
        JobRow.kind == JobKind.EXPORT,
        JobRow.model_id == model_id,  # its content never changes
        JobRow.status.not_in([JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.CANCELLING]),
    )
    with house.database.writing() as session:
        job = session.scalars(query.order_by(JobRow.id)).first()
        if job is None:
            if "write" not in caller.scopes:
                raise ApiError(
                    "forbidden",
                    f"The model {model_id} was not exported yet: a job has to do it, which needs "
                    "an API key with the scope 'write'. Its safetensors can be had at once.",
                )
            quotas.check_jobs(session, house.settings, caller.tenant, new=1)
            job = jobs.enqueue(
                session,
                JobKind.EXPORT,
                tenant=caller.tenant,
                request={"model_id": model_id},
                model_id=model_id,
            )
    house.ring(job)
    return job


@router.patch("/{model_id}", responses=problems("not_found"))
def change_model(model_id: AssetId, change: Change, house: HouseDep, caller: Writer) -> Model:
    """Call a model otherwise, or note something about it; what is left out stays.

    Reports and jobs that there are keep the name that it had.
    """
    with house.database.writing() as session:
        row = assets.find(session, ModelRow, model_id, caller)
        change.make(row)
        return model_answer(row)


@router.delete("/{model_id}", status_code=204, responses=problems("not_found", "in_use"))
def remove_model(
    model_id: AssetId, house: HouseDep, caller: Writer, background: BackgroundTasks
) -> Response:
    """Remove a model; 409 while a job uses it."""
    with house.database.writing() as session:
        answer = assets.remove(session, ModelRow, model_id, caller)
    house.targets.forget()
    background.add_task(house.scoring.forget, model_id)
    return answer
