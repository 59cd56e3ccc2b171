"""The images of a data set: a list of them, and each as a PNG file.

Pixels come from the stored form, which this service has written itself, and of which only the rows
that are asked for are read. Files that others have sent are opened nowhere here.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from numpy.typing import NDArray

from adap.api import assets
from adap.api.assets import AssetId
from adap.api.deps import Caller, House, HouseDep, Reader
from adap.api.errors import ApiError, ErrorItem, problems
from adap.api.guarded import GuardedRoute
from adap.api.listing import After, Limit, Start, following, read_start
from adap.api.pages import PAGE, wants_page
from adap.api.pages.images import images_page
from adap.api.schemas import StoredImage, StoredImages, dataset_answer
from adap.core.config.base import SPLITS, Split
from adap.core.datasets import ImageSet, stored_images
from adap.core.rendering.pictures import png
from adap.store.tables import DatasetRow

router = APIRouter(
    prefix="/v1/datasets/{dataset_id}/images", tags=["data sets"], route_class=GuardedRoute
)

MAX_NAMES = 20  # of what there is, in a sentence
MAX_SIDE = 1024
KEPT_S = 3600  # by a browser, which asks nothing meanwhile

ImageIndex = Annotated[
    int, Path(ge=0, le=2**31, description="the place of the image in the data set, from 0")
]
Label = Annotated[str | None, Query(max_length=1000, description="images of this class")]
Group = Annotated[str | None, Query(max_length=1000, description="images of this group")]


@router.get(
    "",
    response_model=StoredImages,
    responses=problems("not_found", "not_ready", "not_acceptable") | PAGE,
)
def list_images(
    dataset_id: AssetId,
    request: Request,
    response: Response,
    house: HouseDep,
    caller: Reader,
    limit: Limit = 60,
    after: After = None,
    start: Start = None,
    split: Split | None = None,
    label: Label = None,
    group: Group = None,
) -> StoredImages | Response:
    """The images of a data set, in the order of the data: all, or those of a split, class, group.

    An image that has several labels is listed with each of its classes. Also as a page
    (`text/html`).
    """
    as_page = wants_page(request, response)
    image_set = read_set(house, stored(house, dataset_id, caller), caller)
    chosen = matching(image_set, split=split, label=label, group=group)
    if as_page:
        with house.database.reading() as session:
            dataset = dataset_answer(assets.find(session, DatasetRow, dataset_id, caller))
        return images_page(dataset)
    first = read_start(start, after)
    cursor = following(first + limit, total=len(chosen))
    return StoredImages(
        data=[
            image_answer(image_set, dataset_id, i) for i in chosen[first : first + limit].tolist()
        ],
        has_more=cursor is not None,
        next_cursor=cursor,
        total=len(chosen),
    )


@router.get(
    "/{index}",
    response_class=Response,
    responses=problems("not_found", "not_ready")
    | {
        200: {
            "description": "The image",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "Not modified"},
    },
)
def show_image(
    dataset_id: AssetId,
    index: ImageIndex,
    request: Request,
    house: HouseDep,
    caller: Reader,
    size: Annotated[
        int | None,
        Query(
            ge=1,
            le=MAX_SIDE,
            description="pixels of the longer side at most, for a thumbnail; by default the image "
            "comes as it is stored",
        ),
    ] = None,
) -> Response:
    """One image as a PNG file: pixel for pixel as it is stored, or smaller.

    Of two channels the first is shown in grey, of more than three the first three in colour.
    """
    sha256 = stored(house, dataset_id, caller)
    images = stored_images(house.blobs.local_path(sha256))
    if index >= len(images):
        raise ApiError(
            "not_found",
            f"Expected an image of the data set {dataset_id}, from 0 to {len(images) - 1}; got "
            f"{index}.",
        )
    return assets.made_response(
        request,
        lambda: png(np.array(images[index]), side=size),
        of=f"{sha256}-{index}-{size or 'all'}",
        media_type="image/png",
        kept_s=KEPT_S,
    )


def stored(house: House, dataset_id: str, caller: Caller) -> str:
    """The hash of the stored form of a data set of the caller's; 404 or 409 where there is none."""
    with house.database.reading() as session:
        row = assets.find(session, DatasetRow, dataset_id, caller)
        assets.require_ready(row)
    assert row.content_sha256 is not None
    return row.content_sha256


def read_set(house: House, sha256: str, caller: Caller) -> ImageSet:
    """A data set by the hash of its stored form; what is kept of it are its names and labels."""
    path = house.blobs.local_path(sha256)
    return house.kept.get(
        caller.tenant, ("set", sha256), lambda: ImageSet.load(path), weigh=_names_and_labels_bytes
    )


def _names_and_labels_bytes(image_set: ImageSet) -> int:
    names = (image_set.example_ids, image_set.groups or (), image_set.clusters or ())
    return image_set.labels.nbytes + sum(sum(map(sys.getsizeof, one)) for one in names)


def matching(
    image_set: ImageSet, *, split: Split | None, label: str | None, group: str | None
) -> NDArray[np.int64]:
    """Indices of the images of this split, class and group, rising; of all for None.

    ApiError for one that the data set does not have.
    """
    wanted = np.ones(len(image_set), bool)
    if split is not None:
        declared = [name for name in SPLITS if image_set.has_split(name)]
        require_known("split", split, declared)
        assert image_set.splits is not None
        wanted &= image_set.splits == SPLITS.index(split)
    if label is not None:
        require_known("label", label, image_set.classes)
        wanted &= image_set.label_matrix([label])[:, 0] == 1
    if group is not None:
        groups = image_set.groups or []
        require_known("group", group, sorted(set(groups)))
        wanted &= np.fromiter((name == group for name in groups), bool, len(groups))
    return np.flatnonzero(wanted).astype(np.int64)


def require_known(field: str, got: str, known: Sequence[str]) -> None:
    """ApiError where a field of the query names none of these."""
    if got in known:
        return
    shown = ", ".join(known[:MAX_NAMES]) + (", …" if len(known) > MAX_NAMES else "")
    expected = f"expected one of {shown}" if known else f"expected none, as there is no {field}"
    detail = f"{expected}; got {got[:100]!r}"
    item = ErrorItem(pointer=f"/query/{field}", detail=detail)
    raise ApiError("invalid_request", f"/query/{field}: {detail}", errors=[item])


def image_answer(image_set: ImageSet, dataset_id: str, i: int) -> StoredImage:
    """An image as the API lists it."""
    split = None if image_set.splits is None else int(image_set.splits[i])
    return StoredImage(
        index=i,
        example_id=image_set.example_ids[i],
        labels=image_set.labels_of(i),
        split=None if split is None else SPLITS[split],
        group=None if image_set.groups is None else image_set.groups[i],
        cluster=None if image_set.clusters is None else image_set.clusters[i],
        image=picture_path(dataset_id, i),
    )


def picture_path(dataset_id: str, i: int) -> str:
    """Where the pixels of an image are."""
    return f"/v1/datasets/{dataset_id}/images/{i}"
