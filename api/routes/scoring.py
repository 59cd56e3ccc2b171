"""Scores of a few images at once; the scoring process opens and scores them, with all others'.

This process checks who asks, reads the request and passes bytes on: it opens no image.
"""

import asyncio
import base64
import binascii
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile as FormPart

from adap.api import assets, bodies, forms
from adap.api.assets import AssetId
from adap.api.deps import (
    Caller,
    House,
    HouseDep,
    Target,
    Writer,
    require_admitted_at_the_end,
)
from adap.api.errors import ApiError, ErrorItem, explain_validation, problems, try_again
from adap.api.guarded import GuardedRoute
from adap.api.long_texts import LongTexts
from adap.api.schemas import ImageScore, ImageScores, SmallestChange
from adap.core.config.data import MAX_CLASSES_IN_URL, ClassName
from adap.core.rendering.pictures import png
from adap.faults import NamedFields
from adap.models.header import Manifest
from adap.store.tables import ModelRow
from adap.worker.scoring.link import ScoringGoneError

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=GuardedRoute)

MAX_IMAGES = 1000
MOST_MAGNIFIED = 1000.0  # of a difference that is drawn
FEW_FIELDS = 20  # of a form, that are read in less time than a thread takes to start
Read = TypeVar("Read")
Positive = Annotated[
    list[ClassName] | None,
    Field(
        max_length=1000,
        description="the classes to score, needed by a model with a logit for each class, refused "
        "for a model with one logit",
        examples=[["cat"]],
    ),
]


FormPositive = Annotated[Positive, forms.several_classes("/body/positive")]
RANK = "whether to say the place of each image among those of the request"


Fit = Literal["stretch", "crop", "pad"]
RESIZE = "how images of another size are made the model's; by default they are refused"


class ScoreRequest(NamedFields):
    """`POST /v1/models/{model_id}/scores`, application/json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[Annotated[str, Field(max_length=2**26)]] = Field(
        min_length=1,
        max_length=MAX_IMAGES,
        description="PNG, JPEG or WebP files of the model's input size, in base64",
    )
    positive: Positive = None
    rank: bool = Field(False, description=RANK)
    resize: Fit | None = Field(None, description=RESIZE)


class ScoreForm(NamedFields):
    """`POST /v1/models/{model_id}/scores`, multipart/form-data."""

    model_config = ConfigDict(extra="forbid")

    images: list[UploadFile] = Field(
        min_length=1,
        max_length=MAX_IMAGES,
        description="PNG, JPEG or WebP files of the model's input size",
    )
    positive: FormPositive = None
    rank: bool = Field(False, description=RANK)
    resize: Fit | None = Field(None, description=RESIZE)


class ChangeForm(NamedFields):
    """`POST /v1/models/{model_id}/smallest-change`, multipart/form-data."""

    model_config = ConfigDict(extra="forbid")

    image: UploadFile = Field(description="a PNG, JPEG or WebP file of the model's input size")
    below: float = Field(ge=-1e300, le=1e300, description="the score that it is to fall below")
    positive: FormPositive = None
    resize: Fit | None = Field(None, description=RESIZE)


_LISTS = forms.lists_of(ScoreForm)


@dataclass(frozen=True)
class Images:
    """What a request brings, as the scoring process takes it."""

    form: str  # `files`, `npz` or `tensor`
    data: list[bytes]
    names: Sequence[str | None] = ()  # of files, where they have names
    dtype: str | None = None  # of a tensor
    shape: Sequence[int] | None = None
    positive: list[str] | None = None
    rank: bool = False
    fit: Fit | None = None  # how files of another size are made the model's


_BODIES = {
    "multipart/form-data": {"schema": {"$ref": "#/components/schemas/ScoreForm"}},
    "application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}},
    "application/octet-stream": {
        "schema": {
            "type": "string",
            "format": "binary",
            "description": "an NPZ that holds `images` alone: (N, C, H, W), (N, H, W, C) or "
            "(N, H, W), uint8 or float in [0, 1]; with `positive` and `rank` in the query",
        }
    },
}


@router.post(
    "/{model_id}/scores",
    responses=problems(
        *("not_found", "not_ready", "too_large", "unsupported_media_type", "bad_request"),
        *("invalid_config", "invalid_data", "invalid_model"),
        *("overloaded", "scoring_unavailable", "timed_out"),
    ),
    openapi_extra={"requestBody": {"required": True, "content": _BODIES}},
)
async def score_images(
    model_id: AssetId,
    request: Request,
    house: HouseDep,
    caller: Writer,
    positive: Annotated[
        list[ClassName] | None,
        forms.several_classes("/query/positive"),
        Query(max_length=MAX_CLASSES_IN_URL),
    ] = None,
    rank: Annotated[bool, Query(description=RANK)] = False,
) -> ImageScores:
    """Score a few images, in the order in which they came; for data sets, `POST /v1/rankings`.

    Requests of the same moment share a forward pass. A score is the same alone and in company, to
    1e-5. `positive` and `rank` stand in the body, or in the query for an NPZ.
    """
    target = await find_target(house, caller, model_id)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/octet-stream":
        images = Images("npz", [await request.body()], positive=positive, rank=rank)
    elif positive is not None or rank:
        raise ApiError(
            "invalid_request", "/query: expected `positive` and `rank` in the body, got a query."
        )
    elif content_type == "application/json":
        images = await off_the_loop(_from_json, await request.body())
    elif content_type == "multipart/form-data":
        images = await _from_form(request)
    else:
        raise ApiError(
            "unsupported_media_type",
            f"Expected {', '.join(_BODIES)}; got {content_type or 'nothing'}.",
        )
    scores = await scores_of(request, house, target, images)
    ranks = _ranks(scores) if images.rank else [None] * len(scores)
    names = images.names or [None] * len(scores)
    return ImageScores(
        model_id=model_id,
        scores=[
            ImageScore(file_name=name, score=score, rank=place)
            for name, score, place in zip(names, scores, ranks, strict=True)
        ],
    )


@router.post(
    "/{model_id}/smallest-change",
    responses=problems(
        *("not_found", "not_ready", "too_large", "unsupported_media_type", "bad_request"),
        *("invalid_config", "invalid_data", "invalid_model"),
        *("overloaded", "scoring_unavailable", "timed_out"),
    ),
)
async def smallest_change(
    model_id: AssetId,
    form: Annotated[ChangeForm, Form(media_type="multipart/form-data")],
    request: Request,
    house: HouseDep,
    caller: Writer,
) -> SmallestChange:
    """How little of one image has to change for its score to fall below a bound, in L-inf.

    With the `boundary` of a place in a ranking it is the smallest attack found that moves the image
    out of the first. Searched for by FMN, up to 60 gradients, fewer of a network that is slow.
    """
    target = await find_target(house, caller, model_id)
    images = Images(
        "files",
        [await form.image.read()],
        names=[assets.display_name(None, form.image)],
        positive=form.positive,
        fit=form.resize,
    )
    answer = await _ask(request, house, target, images, {"ask": "smallest", "below": form.below})
    return await run_in_threadpool(_change, target, form.below, answer)


def _change(target: Target, below: float, answer: dict[str, Any]) -> SmallestChange:
    """What the scoring process found, with its pictures."""
    spec = target.manifest.input
    shape = (spec.channels, spec.height, spec.width)
    image, changed = (
        np.frombuffer(answer[name], np.float32).reshape(shape) for name in ("image", "changed")
    )
    most = float(np.abs(changed - image).max())
    magnified = min(0.5 / most, MOST_MAGNIFIED) if most > 0 else 1.0
    size = answer["size"]
    return SmallestChange(
        model_id=target.model_id,
        below=below,
        size=size if math.isfinite(size) else None,
        score=answer["score"],
        steps=answer["steps"],
        original=_picture(image),
        changed=_picture(changed),
        difference=_picture(0.5 + magnified * (changed - image)),
        magnified=magnified,
    )


def _picture(pixels: NDArray[np.float32]) -> str:
    levels = np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)
    return base64.b64encode(png(levels)).decode()


async def off_the_loop(read: Callable[..., Read], body: bytes, *arguments: Any) -> Read:
    """Read a body in a thread where it is long, so that other requests need not wait for it."""
    if len(body) <= bodies.SHORT_BYTES:
        return read(body, *arguments)
    return await run_in_threadpool(read, body, *arguments)


async def find_target(house: House, caller: Caller, model_id: str) -> Target:
    """The caller's model; 404 for anybody else's, 409 until it is ready."""
    key = (caller.tenant, model_id)
    target = house.targets.get(key)
    if target is None:
        asked_at = time.monotonic()
        target = await run_in_threadpool(_read_target, house, caller, model_id)
        house.targets.keep(key, target, asked_at=asked_at)
    return target


def _read_target(house: House, caller: Caller, model_id: str) -> Target:
    with house.database.reading() as session:
        row = assets.find(session, ModelRow, model_id, caller)
        assets.require_ready(row)
        assert row.content_sha256 is not None
        return Target(row.id, row.tenant, row.content_sha256, Manifest.model_validate(row.manifest))


async def scores_of(request: Request, house: House, target: Target, images: Images) -> list[float]:
    """The scores of these images, in their order.

    Raises ApiError with the scoring process's own reason; 503 where it is away or has too much to
    do; 504 after the time limit. If the client leaves, the work is taken back.
    """
    await require_admitted_at_the_end(request, house)
    answer = await _ask(request, house, target, images, {"ask": "score"})
    scores: list[float] = answer["scores"]
    return scores


async def _ask(
    request: Request, house: House, target: Target, images: Images, what: dict[str, Any]
) -> dict[str, Any]:
    """The scoring process's answer about these images. Raises as `scores_of` does."""
    limit_s = house.settings.scoring_limit_s
    question = {
        **what,
        "tenant": target.tenant,
        "model_id": target.model_id,
        "sha256": target.sha256,
        "positive": _positive(target, images.positive),
        "spec": target.manifest.input.model_dump(),
        "form": images.form,
        "data": images.data,
        "dtype": images.dtype,
        "shape": images.shape,
        "fit": images.fit,
    }
    limit = asyncio.timeout(limit_s)
    leaving = asyncio.create_task(_leave(request, limit))  # it begins when this waits
    try:
        async with limit:
            answer = await house.scoring.ask(question)
    except ScoringGoneError as error:
        raise ApiError(
            "scoring_unavailable",
            f"The scoring process cannot be reached: {error}. Nothing was kept; try again.",
            headers={"Retry-After": "2"},
        ) from error
    except TimeoutError as error:
        if leaving.done():
            raise ApiError(
                "bad_request", "Expected a client that waits for its scores, got none."
            ) from error
        raise ApiError(
            "timed_out",
            f"Expected the scores within {limit_s:g} s (ADAP_SCORING_LIMIT_S). Send fewer images "
            "at a time, or rank a data set.",
        ) from error
    finally:
        leaving.cancel()
    if "error" in answer:
        raise _refusal(answer, images)
    return answer


def _positive(target: Target, asked: list[str] | None) -> list[str] | None:
    """The classes to score: those asked for, else those that the model was trained to rank."""
    output = target.manifest.output
    known = target.manifest.positive
    if asked and output.classes is None and set(asked) != set(known or []):
        whose = "" if known is None else f", which ranks {', '.join(known)[:200]} first"
        raise ApiError(
            "invalid_config",
            f"/body/positive: expected none, as the model {target.model_id} has one logit{whose}; "
            f"got {', '.join(asked)[:200]}",
        )
    positive = asked or known
    output.columns(positive)  # raises where these classes have no score
    return positive


def _from_json(body: bytes) -> Images:
    texts = LongTexts(body)
    try:
        given = texts.put_back(bodies.parse(texts.rest), images=("images",))
        request = ScoreRequest.model_validate(given)
    except ValidationError as error:
        raise explain_validation(error) from error
    files = []
    for place, text in enumerate(request.images):
        try:
            files.append(texts.decode(text))
        except (binascii.Error, ValueError) as error:
            detail = f"expected base64, got {str(error)[:100]}"
            pointer = f"/body/images/{place}"
            raise ApiError(
                "invalid_request",
                f"{pointer}: {detail}",
                errors=[ErrorItem(pointer=pointer, detail=detail)],
            ) from error
    return Images("files", files, positive=request.positive, rank=request.rank, fit=request.resize)


async def _from_form(request: Request) -> Images:
    # one more file than is taken, so that too many are told by number
    limits: forms.FormLimits = {**forms.LISTS_LIMITS, "max_files": MAX_IMAGES + 1}
    async with request.form(**limits) as form:
        items = form.multi_items()
        if len(items) <= FEW_FIELDS and all(
            _size(value) <= bodies.SHORT_BYTES for _, value in items
        ):
            return _of_fields(items)
        return await run_in_threadpool(_of_fields, items)


def _size(value: FormPart | str) -> int:
    return len(value) if isinstance(value, str) else value.size or 0


def _of_fields(items: list[tuple[str, Any]]) -> Images:
    forms.refuse_twice(items, lists=_LISTS)
    given: dict[str, Any] = {}
    for name, value in items:
        if name in _LISTS:
            given.setdefault(name, []).append(value)
        else:
            given[name] = value
    try:
        checked = ScoreForm.model_validate(given)
    except ValidationError as error:
        raise explain_validation(error) from error
    return Images(
        "files",
        [image.file.read() for image in checked.images],
        names=[assets.display_name(None, image) for image in checked.images],
        positive=checked.positive,
        rank=checked.rank,
        fit=checked.resize,
    )


def _ranks(scores: list[float]) -> list[int | None]:
    """1 for the highest; equal scores in the order of the images."""
    ranks: list[int | None] = [None] * len(scores)
    for place, i in enumerate(sorted(range(len(scores)), key=lambda i: -scores[i]), start=1):
        ranks[i] = place
    return ranks


def _refusal(answer: dict[str, Any], images: Images) -> ApiError:
    items = []
    for place, reason in answer.get("reasons", []):
        name = images.names[place] if place is not None and images.names else None
        pointer = "/body" if place is None else f"/body/images/{place}"
        items.append(
            ErrorItem(pointer=pointer, detail=reason if name is None else f"{name}: {reason}")
        )
    detail = "; ".join(item.detail for item in items[:3]) or answer["message"]
    code = answer["error"]
    return ApiError(code, detail, errors=items, headers=try_again(code))


async def _leave(request: Request, limit: asyncio.Timeout) -> None:
    """End what is waited for when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if not limit.expired():
        limit.reschedule(0.0)
