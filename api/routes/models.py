"""Models: upload, look at, download, remove."""

from typing import Annotated, TypeVar

from fastapi import APIRouter, BackgroundTasks, Form, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import select

from api import assets
from api.assets import AssetId
from api.deps import HouseDep, Reader, Writer
from api.errors import POSTED, ApiError, explain_validation, problems
from api.idempotency import IdempotencyDep
from api.listing import After, Limit, page
from api.schemas import Model, Page, model_answer
from core.config import Identifier, Name
from models.catalogue import ARCHITECTURES
from models.header import ONE_LOGIT, InputSpec, Manifest, OutputSpec
from store.tables import ModelRow

router = APIRouter(prefix="/v1/models", tags=["models"])

Spec = TypeVar("Spec", InputSpec, OutputSpec)


class ModelForm(BaseModel):
    """`POST /v1/models`, multipart/form-data."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile | None = Field(None, description="weights as a safetensors file")
    upload_id: Identifier | None = Field(
        None, description="instead of `file`: one that came in parts, see POST /v1/uploads"
    )
    name: Name | None = Field(None, description="by default the file's name")
    architecture: str | None = Field(
        None,
        max_length=64,
        description="what the tensors belong to, see GET /v1/architectures; may be left out "
        "for a file that this service has written",
    )
    input: str | None = Field(
        None,
        max_length=4096,
        description="how images become the network's input, as JSON; goes with `architecture`",
        examples=[
            '{"channels": 3, "height": 32, "width": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}'
        ],
    )
    output: str | None = Field(
        None,
        max_length=60_000,  # a thousand names of a usual length
        description="what the network answers, as JSON: by default one logit of the positive "
        "side; else a logit for each class, of which one is true (`multiclass`) or each may be "
        "(`multilabel`); goes with `architecture`",
        examples=['{"kind": "multiclass", "classes": ["cat", "dog", "other"]}'],
    )


def declared_manifest(
    architecture: str | None, spec: str | None, output: str | None = None
) -> Manifest | None:
    """What the request says about the file; None leaves it to the file itself."""
    if architecture is None and spec is None and output is None:
        return None
    if architecture is None or spec is None:
        raise ApiError(
            "invalid_request",
            "/body: expected `architecture` and `input` together, with `output` unless it is one "
            "logit, or none of them for a file that carries its own manifest.",
        )
    if architecture not in ARCHITECTURES:
        raise ApiError(
            "invalid_request",
            f"/body/architecture: expected one of {', '.join(ARCHITECTURES)}; got {architecture!r}",
        )
    return Manifest(
        architecture=architecture,
        input=_parsed(InputSpec, spec, field="input"),
        output=ONE_LOGIT if output is None else _parsed(OutputSpec, output, field="output"),
    )


def _parsed(kind: type[Spec], text: str, *, field: str) -> Spec:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise explain_validation(error.errors(), prefix=f"body/{field}") from error


@router.post(
    "",
    status_code=201,
    responses=problems("too_large", *POSTED, "storage_full", "not_found", "not_ready"),
)
def add_model(
    form: Annotated[ModelForm, Form(media_type="multipart/form-data")],
    house: HouseDep,
    caller: Writer,
    once: IdempotencyDep,
    response: Response,
) -> Model:
    """Upload a model; a job loads it in a sandbox and tries it on probe images.

    Its status is `validating`, then `ready` or `rejected` with every reason.
    """
    manifest = declared_manifest(form.architecture, form.input, form.output)
    came = assets.receive(form.file, form.upload_id, house, caller)
    name = form.name or came.name
    content = {
        "file": came.sha256,
        "name": name,
        "manifest": None if manifest is None else manifest.model_dump(mode="json"),
    }
    with once.writing(content, new_jobs=1) as session:
        came.take(session, house, caller)
        row, job = assets.add_model(
            session, caller, name=name, sha256=came.sha256, size=came.size, manifest=manifest
        )
        location = response.headers["Location"] = f"/v1/models/{row.id}"
        answer = once.keep(session, model_answer(row), location=location)
    house.ring(job)
    return answer


@router.get("", responses=problems())
def list_models(
    house: HouseDep, caller: Reader, limit: Limit = 20, after: After = None
) -> Page[Model]:
    """The models, newest first."""
    query = select(ModelRow).where(ModelRow.tenant == caller.tenant, ModelRow.deleted_at.is_(None))
    with house.database.reading() as session:
        return page(session, query, ModelRow.id, limit=limit, after=after, answer=model_answer)


@router.get("/{model_id}", responses=problems("not_found"))
def show_model(model_id: AssetId, house: HouseDep, caller: Reader) -> Model:
    """One model: its status, its manifest, how it was trained."""
    with house.database.reading() as session:
        return model_answer(assets.find(session, ModelRow, model_id, caller))


@router.get(
    "/{model_id}/content",
    response_class=Response,
    responses=problems("not_found", "not_ready") | {304: {"description": "Not modified"}},
)
def download_model(
    model_id: AssetId, request: Request, house: HouseDep, caller: Reader
) -> Response:
    """The weights as safetensors, with the manifest inside: upload it elsewhere as it is."""
    with house.database.reading() as session:
        row = assets.find(session, ModelRow, model_id, caller)
        assets.require_ready(row)
    assert row.content_sha256 is not None
    return assets.content(request, house, row.content_sha256, filename=f"{row.id}.safetensors")


@router.delete("/{model_id}", status_code=204, responses=problems("not_found", "in_use"))
def remove_model(
    model_id: AssetId, house: HouseDep, caller: Writer, background: BackgroundTasks
) -> Response:
    """Remove a model; 409 while a job uses it."""
    with house.database.writing() as session:
        answer = assets.remove(session, ModelRow, model_id, caller)
    background.add_task(house.scoring.forget, model_id)
    return answer
