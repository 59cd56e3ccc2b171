"""Data sets: upload, look at, rename and annotate, download, remove."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response, UploadFile
from pydantic import ConfigDict, Field, ValidationError
from sqlalchemy import select

from adap.api import assets, forms
from adap.api.assets import AssetId
from adap.api.deps import HouseDep, Reader, Uploader, Writer
from adap.api.errors import POSTED, ApiError, explain_validation, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.listing import After, Limit, Match, Search, SortedBy, having, matching, page
from adap.api.noting import Change
from adap.api.pages import PAGE, views, wants_page
from adap.api.schemas import Dataset, Page, Status, dataset_answer
from adap.core.config.base import Identifier, Name
from adap.core.config.data import DatasetOptions
from adap.faults import NamedFields
from adap.store.tables import AssetStatus, DatasetRow

router = APIRouter(prefix="/v1/datasets", tags=["data sets"], route_class=GuardedRoute)


class DatasetFields(NamedFields):
    """How a data set in a form is to be read: each field but `resize` is what the command takes."""

    model_config = ConfigDict(extra="forbid")

    resize: str | None = Field(
        None,
        max_length=200,
        description="how images become one size, as JSON: needed where they have several",
        examples=['{"height": 224, "width": 224, "fit": "crop"}'],
    )
    folders: str | None = Field(
        None,
        description="what the folders are, from the outermost: class, split, group, cluster, or - "
        "for nothing; needed where they can be read in more than one way",
        examples=["split/class"],
    )
    levels: str | None = Field(
        None,
        max_length=100,
        description="the values that become black and white, of images deeper than 8 bits",
        examples=["0:4095"],
    )
    label_separator: str | None = Field(
        None,
        description="what stands between the labels of an image that may have several: |, a comma, "
        "a semicolon, a slash or a space; none where each text is one label",
        examples=["|"],
    )
    label_columns: str | None = Field(
        None,
        max_length=4000,
        description="columns of 0 and 1, each of which is a class, separated by commas; * for all "
        "that mean nothing else",
        examples=["*"],
    )
    label_in_name: str | None = Field(
        None,
        description="the label is what stands in the name of an image before the last of these: an "
        "underscore, a hyphen, a full stop or a space",
        examples=["_"],
    )
    image_column: str | None = Field(None, description="the column, or array, of the images")
    label_column: str | None = Field(None, description="the column, or array, of the labels")
    split_column: str | None = Field(None, description="the column, or array, of the splits")
    group_column: str | None = Field(None, description="the column, or array, of the groups")
    cluster_column: str | None = Field(None, description="the column, or array, of the clusters")
    skip_unreadable: bool = Field(
        False, description="leave out images that cannot be read, and count them"
    )
    hold_out: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of a data set without a test split: the share of each class that becomes one, "
        "at random, whole clusters and images that are there twice together; no training sees it",
        examples=[0.2],
    )

    def options(self) -> DatasetOptions:
        """The options that the fields stand for. ApiError where one stands for none."""
        given: dict[str, Any] = {
            name: value
            for name in DatasetOptions.model_fields
            if (value := getattr(self, name)) is not None
        }
        if self.resize is not None:
            given["resize"] = forms.json_of(self.resize, field="resize")
        if self.levels is not None:
            low, _, high = self.levels.partition(":")
            given["levels"] = {"low": _number(low), "high": _number(high)}
        try:
            return DatasetOptions.model_validate(given)
        except ValidationError as error:
            raise explain_validation(error, content=given) from error


class DatasetForm(DatasetFields):
    """`POST /v1/datasets`, multipart/form-data."""

    file: UploadFile | None = Field(
        None,
        description="a zip of class folders (optionally below train/, validation/, test/), or of "
        "images and a metadata.csv (file_name,label[,split][,group][,cluster]; or labels, as "
        "cat|dog); or an .npz with `images`, `labels` and optionally `classes`, `split`, `groups` "
        "and `clusters`; or Parquet with the columns image and label, or labels",
    )
    upload_id: Identifier | None = Field(
        None, description="instead of `file`: one that came in parts, see POST /v1/uploads"
    )
    name: Name | None = Field(None, description="by default the file's name")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ApiError(
            "invalid_request",
            "/body/levels: expected two numbers such as 0:4095, the values that become black and "
            "white",
        ) from error


@router.post(
    "",
    status_code=201,
    responses=problems(
        *("too_large", "unsupported_media_type", *POSTED, "storage_full", "not_found", "not_ready")
    ),
)
def add_dataset(
    form: Annotated[DatasetForm, Form(media_type="multipart/form-data")],
    house: HouseDep,
    caller: Uploader,
    once: IdempotencyDep,
    response: Response,
) -> Dataset:
    """Upload a data set; a job checks it in a sandbox.

    Its status is `validating`, then `ready` or `rejected` with every reason.
    """
    options = form.options()
    with assets.receiving(form.file, form.upload_id, house, caller) as came:
        name = form.name or came.name
        content = {
            "file": came.sha256,
            "name": name,
            "options": options.as_json(),
        }
        with once.writing(content, new_jobs=1) as session:
            came.take(session, house, caller)
            row, job = assets.add_dataset(
                session, caller, name=name, sha256=came.sha256, size=came.size, options=options
            )
            location = response.headers["Location"] = f"/v1/datasets/{row.id}"
            answer = once.keep(session, dataset_answer(row), location=location)
    house.ring(job)
    return answer


@router.get("", responses=problems())
def list_datasets(
    house: HouseDep,
    caller: Reader,
    limit: Limit = 20,
    after: After = None,
    status: Status | None = None,
    search: Search = None,
    match: Match = None,
    sort: SortedBy = "newest",
) -> Page[Dataset]:
    """The data sets, newest first: those of a status, or all but what was rejected."""
    query = select(DatasetRow).where(
        DatasetRow.tenant == caller.tenant,
        DatasetRow.deleted_at.is_(None),
        DatasetRow.status != AssetStatus.REJECTED
        if status is None
        else DatasetRow.status == AssetStatus(status),
    )
    with house.database.reading() as session:
        return page(
            session,
            having(matching(query, DatasetRow.id, DatasetRow.name, match), DatasetRow.name, search),
            DatasetRow.id,
            limit=limit,
            after=after,
            answer=dataset_answer,
            sort=sort,
        )


@router.get(
    "/{dataset_id}",
    response_model=Dataset,
    responses=problems("not_found", "not_acceptable") | PAGE,
)
def show_dataset(
    dataset_id: AssetId, request: Request, response: Response, house: HouseDep, caller: Reader
) -> Dataset | Response:
    """One data set: its status, and once ready its counts; also as a page (`text/html`)."""
    as_page = wants_page(request, response)
    with house.database.reading() as session:
        dataset = dataset_answer(assets.find(session, DatasetRow, dataset_id, caller))
    return views.dataset_page(request, dataset) if as_page else dataset


@router.get(
    "/{dataset_id}/content",
    response_class=Response,
    responses=problems("not_found", "not_ready") | {304: {"description": "Not modified"}},
)
def download_dataset(
    dataset_id: AssetId, request: Request, house: HouseDep, caller: Reader
) -> Response:
    """The stored form: a safetensors file with uint8 `images` (N, C, H, W) and `labels`.

    labels: (N,) indices into the classes, or (N, K) of 0 and 1 where an image may have several.
    """
    with house.database.reading() as session:
        row = assets.find(session, DatasetRow, dataset_id, caller)
        assets.require_ready(row)
    assert row.content_sha256 is not None
    return assets.content(request, house, row.content_sha256, filename=f"{row.id}.safetensors")


@router.patch("/{dataset_id}", responses=problems("not_found"))
def change_dataset(dataset_id: AssetId, change: Change, house: HouseDep, caller: Writer) -> Dataset:
    """Call a data set otherwise, or note something about it; what is left out stays.

    Reports and jobs that there are keep the name that it had.
    """
    with house.database.writing() as session:
        row = assets.find(session, DatasetRow, dataset_id, caller)
        change.make(row)
        return dataset_answer(row)


@router.delete("/{dataset_id}", status_code=204, responses=problems("not_found", "in_use"))
def remove_dataset(dataset_id: AssetId, house: HouseDep, caller: Writer) -> Response:
    """Remove a data set; 409 while a job uses it."""
    with house.database.writing() as session:
        return assets.remove(session, DatasetRow, dataset_id, caller)
