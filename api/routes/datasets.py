"""Data sets: upload, look at, download, remove."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from api import assets, quotas
from api.assets import AssetId
from api.deps import HouseDep, Reader, Writer
from api.errors import POSTED, problems
from api.idempotency import IdempotencyDep
from api.listing import After, Limit, page
from api.schemas import Dataset, Page, dataset_answer
from core.config import Name
from store.tables import DatasetRow

router = APIRouter(prefix="/v1/datasets", tags=["data sets"])


class DatasetForm(BaseModel):
    """`POST /v1/datasets`, multipart/form-data."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile = Field(
        description="a zip of class folders (optionally below train/, validation/, test/), or of "
        "images and a metadata.csv (file_name,label[,split][,group]); or an .npz with `images`, "
        "`labels` and optionally `classes`, `split` and `groups`"
    )
    name: Name | None = Field(None, description="by default the file's name")


@router.post("", status_code=201, responses=problems("too_large", *POSTED, "storage_full"))
def add_dataset(
    form: Annotated[DatasetForm, Form(media_type="multipart/form-data")],
    house: HouseDep,
    caller: Writer,
    once: IdempotencyDep,
    response: Response,
) -> Dataset:
    """Upload a data set; a job checks it in a sandbox.

    Its status is `validating`, then `ready` or `rejected` with every reason.
    """
    sha256 = assets.receive(form.file, house, caller)
    name, size = assets.display_name(form.name, form.file), form.file.size or 0
    with once.writing({"file": sha256, "name": name}, new_jobs=1) as session:
        quotas.check_bytes(session, house.settings, caller.tenant, new=size)
        row, job = assets.add_dataset(session, caller, name=name, sha256=sha256, size=size)
        location = response.headers["Location"] = f"/v1/datasets/{row.id}"
        answer = once.keep(session, dataset_answer(row), location=location)
    house.ring(job)
    return answer


@router.get("", responses=problems())
def list_datasets(
    house: HouseDep, caller: Reader, limit: Limit = 20, after: After = None
) -> Page[Dataset]:
    """The data sets, newest first."""
    query = select(DatasetRow).where(
        DatasetRow.tenant == caller.tenant, DatasetRow.deleted_at.is_(None)
    )
    with house.database.reading() as session:
        return page(session, query, DatasetRow.id, limit=limit, after=after, answer=dataset_answer)


@router.get("/{dataset_id}", responses=problems("not_found"))
def show_dataset(dataset_id: AssetId, house: HouseDep, caller: Reader) -> Dataset:
    """One data set: its status, and once ready its counts."""
    with house.database.reading() as session:
        return dataset_answer(assets.find(session, DatasetRow, dataset_id, caller))


@router.get(
    "/{dataset_id}/content",
    response_class=Response,
    responses=problems("not_found", "not_ready") | {304: {"description": "Not modified"}},
)
def download_dataset(
    dataset_id: AssetId, request: Request, house: HouseDep, caller: Reader
) -> Response:
    """The stored form: a safetensors file with uint8 `images` (N, C, H, W) and `labels` (N,)."""
    with house.database.reading() as session:
        row = assets.find(session, DatasetRow, dataset_id, caller)
        assets.require_ready(row)
    assert row.content_sha256 is not None
    return assets.content(request, house, row.content_sha256, filename=f"{row.id}.safetensors")


@router.delete("/{dataset_id}", status_code=204, responses=problems("not_found", "in_use"))
def remove_dataset(dataset_id: AssetId, house: HouseDep, caller: Writer) -> Response:
    """Remove a data set; 409 while a job uses it."""
    with house.database.writing() as session:
        return assets.remove(session, DatasetRow, dataset_id, caller)
