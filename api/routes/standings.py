"""The images of a ranking or of an audit in order of score, and where another score would stand.

What was measured is read from the files that the job made, the rest from its data set. Both never
change, so they are kept in memory for a while: a hundred thousand images take a tenth of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from numpy.typing import NDArray

from adap.api import assets
from adap.api.assets import AssetId
from adap.api.deps import Caller, House, HouseDep, Reader
from adap.api.errors import ApiError, ErrorItem, problems
from adap.api.guarded import GuardedRoute
from adap.api.listing import After, Limit, Start, following, read_start
from adap.api.pages import PAGE, wants_page
from adap.api.pages.ranking import Ways, ranking_page
from adap.api.routes.images import (
    Group,
    Label,
    image_answer,
    matching,
    read_set,
    require_known,
    stored,
)
from adap.api.routes.jobs import find_job, finished_blob
from adap.api.schemas import Place, RankedImage, RankedImages, dataset_answer
from adap.core.datasets import ImageSet
from adap.core.rankings import Own
from adap.core.scores import Scores, load_scores
from adap.core.standing import Mistake, Standing, standing_of
from adap.store.tables import DatasetRow, JobKind, ModelRow

router = APIRouter(prefix="/v1", route_class=GuardedRoute)

Order = Literal["rank", "moved"]


Cut = Annotated[
    int | None,
    Query(ge=1, le=2**31, description="how many count as the first; by default all positives"),
]


class Choice:
    """Which images of a ranking are shown."""

    def __init__(
        self,
        label: Label = None,
        group: Group = None,
        positive: Annotated[bool | None, Query(description="positives alone, or the rest")] = None,
        mistake: Annotated[
            Mistake | None,
            Query(
                description="`missed`: positives that are not among the first `cut`; "
                "`false_alarm`: what is among them and is none"
            ),
        ] = None,
        cut: Cut = None,
    ) -> None:
        self.label = label
        self.group = group
        self.positive = positive
        self.mistake = mistake
        self.cut = cut


@dataclass(frozen=True)
class Wanted:
    """Which images of whose job, and by whom: what is asked of rankings and of audits alike."""

    job_id: AssetId
    request: Request
    response: Response
    house: HouseDep
    caller: Reader
    choice: Annotated[Choice, Depends()]
    limit: Limit = 60
    after: After = None
    start: Start = None

    @property
    def as_page(self) -> bool:
        return wants_page(self.request, self.response)


Asked = Annotated[Wanted, Depends()]
Task = Annotated[
    str | None,
    Query(max_length=1000, description="of an audit of several tasks: its positive classes, by +"),
]
By = Annotated[
    str,
    Query(max_length=100, description="`clean`, `worst_case`, or the name of an attack"),
]
Score = Annotated[float, Query(ge=-1e300, le=1e300, description="a score by the same model")]


@dataclass(frozen=True)
class _Ranked:
    """A standing, and the data set of which it is."""

    standing: Standing
    image_set: ImageSet
    dataset_id: str
    attacks: Sequence[str] = ()

    def answer(self, place: int) -> RankedImage:
        """The image at this place, from 0."""
        standing, i = self.standing, int(self.standing.index[place])
        return RankedImage(
            **image_answer(self.image_set, self.dataset_id, i).model_dump(),
            rank=place + 1,
            score=float(standing.scores[place]),
            positive=None if standing.targets is None else bool(standing.targets[place]),
            clean_rank=(None if standing.clean_ranks is None else int(standing.clean_ranks[place])),
        )

    @property
    def positives(self) -> int | None:
        targets = self.standing.targets
        return None if targets is None else int(targets.sum())


@router.get(
    "/rankings/{job_id}/images",
    tags=["rankings"],
    response_model=RankedImages,
    responses=problems("not_found", "not_ready", "not_acceptable") | PAGE,
)
def ranked_images(asked: Asked) -> RankedImages | Response:
    """The images of a finished ranking, best first: all, or those that fit; also as a page."""
    ranked = _of_ranking(asked.house, asked.job_id, asked.caller)
    if asked.as_page:
        return _shown(asked, Ways(sides=ranked.standing.targets is not None))
    return _page(ranked, asked, "rank")


@router.get(
    "/audits/{job_id}/images",
    tags=["audits"],
    response_model=RankedImages,
    responses=problems("not_found", "not_ready", "not_acceptable") | PAGE,
)
def audited_images(
    asked: Asked,
    task: Task = None,
    by: By = Own.CLEAN.value,
    order: Annotated[
        Order, Query(description="`moved`: those first that an attack took farthest up or down")
    ] = "rank",
) -> RankedImages | Response:
    """The images of an audit in order of score: clean, in the worst case, or under an attack.

    The pictures are those of the data set; what attacks made of them is not kept, but for the few
    that the report shows. Also as a page (`text/html`).
    """
    house, job_id, caller = asked.house, asked.job_id, asked.caller
    if asked.as_page:
        tasks = _tasks(house, job_id, caller)
        ranked = _of_audit(house, job_id, caller, task=task or next(iter(tasks), None), by=by)
        return _shown(asked, Ways(by=_ways(ranked.attacks), tasks=tasks))
    return _page(_of_audit(house, job_id, caller, task=task, by=by), asked, order)


@router.get(
    "/rankings/{job_id}/place", tags=["rankings"], responses=problems("not_found", "not_ready")
)
def place_in_ranking(
    job_id: AssetId, house: HouseDep, caller: Reader, score: Score, cut: Cut = None
) -> Place:
    """Where an image of this score would stand in a finished ranking.

    `boundary` is what takes another image out of the first `cut`; for one of the first k of the
    ranking itself ask `cut=k+1`, as at rank k the boundary is its own score.
    """
    return _place(_of_ranking(house, job_id, caller), score, cut)


@router.get("/audits/{job_id}/place", tags=["audits"], responses=problems("not_found", "not_ready"))
def place_in_audit(
    job_id: AssetId,
    house: HouseDep,
    caller: Reader,
    score: Score,
    task: Task = None,
    by: By = Own.CLEAN.value,
    cut: Cut = None,
) -> Place:
    """Where an image of this score would stand among the images of an audit.

    `boundary` is what takes another image out of the first `cut`; for one of the audit's own first
    k ask `cut=k+1`, as at rank k the boundary is its own score.
    """
    return _place(_of_audit(house, job_id, caller, task=task, by=by), score, cut)


def _place(ranked: _Ranked, score: float, cut: int | None) -> Place:
    rank = ranked.standing.rank_of(score)
    first = cut or ranked.positives
    there = first is not None and first <= len(ranked.standing)
    targets, examples = ranked.standing.targets, len(ranked.standing)
    return Place(
        rank=rank,
        examples=examples,
        positives=ranked.positives,
        positives_before=None if targets is None else int(targets[: rank - 1].sum()),
        before=ranked.answer(rank - 2) if rank > 1 else None,
        behind=ranked.answer(rank - 1) if rank <= examples else None,
        cut=first,
        boundary=float(ranked.standing.scores[first - 1]) if first and there else None,
    )


def _page(ranked: _Ranked, asked: Wanted, order: Order) -> RankedImages:
    cut = asked.choice.cut or ranked.positives
    places = _fitting(ranked, asked.choice, order, cut=cut)
    start = read_start(asked.start, asked.after)
    end = start + asked.limit
    cursor = following(end, total=len(places))
    return RankedImages(
        data=[ranked.answer(place) for place in places[start:end].tolist()],
        has_more=cursor is not None,
        next_cursor=cursor,
        total=len(places),
        examples=len(ranked.standing),
        positives=ranked.positives,
        cut=cut,
    )


def _fitting(ranked: _Ranked, choice: Choice, order: Order, *, cut: int | None) -> NDArray[np.intp]:
    """The places, from 0, of the images that fit, in this order."""
    standing = ranked.standing
    wanted = np.ones(len(standing), bool)
    if choice.label is not None or choice.group is not None:
        among = np.zeros(len(ranked.image_set), bool)
        among[matching(ranked.image_set, split=None, label=choice.label, group=choice.group)] = True
        wanted &= among[standing.index]
    if choice.positive is not None:
        wanted &= _targets(standing, "positive") == int(choice.positive)
    if choice.mistake is not None:
        _targets(standing, "mistake")
        assert cut is not None
        wanted &= standing.mistakes(choice.mistake, cut=cut)
    places = np.flatnonzero(wanted)
    if order == "moved":
        if standing.moved is None:
            raise _refused("order", "expected `moved` of an attack alone; name one as `by`")
        places = places[np.argsort(-np.abs(standing.moved[places]), kind="stable")]
    return places


def _targets(standing: Standing, field: str) -> NDArray[np.int64]:
    if standing.targets is None:
        raise _refused(field, "expected none, as this ranking has no task, and so no positives")
    return standing.targets


def _refused(field: str, detail: str) -> ApiError:
    item = ErrorItem(pointer=f"/query/{field}", detail=detail)
    return ApiError("invalid_request", f"/query/{field}: {detail}", errors=[item])


def _of_ranking(house: House, job_id: str, caller: Caller) -> _Ranked:
    sha256 = finished_blob(house, job_id, caller, JobKind.RANK, "standing")
    image_set, dataset_id = _dataset(house, job_id, caller)
    path = house.blobs.local_path(sha256)
    standing = house.kept.get(
        caller.tenant, ("standing", sha256), lambda: Standing.load(path), weigh=_standing_bytes
    )
    return _Ranked(standing, image_set, dataset_id)


def _of_audit(house: House, job_id: str, caller: Caller, *, task: str | None, by: str) -> _Ranked:
    names = _tasks(house, job_id, caller)
    if task is not None:
        require_known("task", task, names)
    elif len(names) > 1:
        raise _refused("task", f"expected one of {', '.join(names[:20])}; got none")
    sha256 = finished_blob(house, job_id, caller, JobKind.AUDIT, "scores")
    image_set, dataset_id = _dataset(house, job_id, caller)
    number = 0 if task is None else names.index(task)
    measured = house.kept.get(
        caller.tenant,
        ("measured", sha256, dataset_id, number),
        lambda: _measured(house.blobs.local_path(sha256), number, image_set),
        weigh=_measured_bytes,
    )
    attacks = list(measured.scores.attacked)
    require_known("by", by, [Own.CLEAN.value, Own.WORST_CASE.value, *attacks])
    standing = house.kept.get(
        caller.tenant,
        ("audited", sha256, dataset_id, number, by),
        lambda: _stand(measured, by),
        weigh=_standing_bytes,
    )
    return _Ranked(standing, image_set, dataset_id, attacks)


def _ways(attacks: Sequence[str]) -> dict[str, str]:
    """What the images of an audit may be scored by, in words."""
    return {
        Own.CLEAN.value: "clean",
        Own.WORST_CASE.value: "worst case over all attacks",
        **{name: f"under {name}" for name in attacks},
    }


def _shown(asked: Wanted, ways: Ways) -> Response:
    """The page of a ranking or an audit."""
    with asked.house.database.reading() as session:
        job = find_job(session, asked.job_id, asked.caller)
        assert job.dataset_id is not None
        dataset = dataset_answer(assets.find(session, DatasetRow, job.dataset_id, asked.caller))
        row = None if job.model_id is None else session.get(ModelRow, job.model_id)
        model = None
        if row is not None and row.deleted_at is None:
            model = (f"/v1/models/{row.id}", row.name)
    path = asked.request.url.path
    return ranking_page(dataset, ways, path=path, job_id=asked.job_id, model=model)


def _tasks(house: House, job_id: str, caller: Caller) -> list[str]:
    """The tasks of an audit by the names that its scores have them under."""
    with house.database.reading() as session:
        row = find_job(session, job_id, caller, JobKind.AUDIT)
        told = (row.result or {}).get("summary", {}).get("tasks", [])
    return ["+".join(task["positive"]) for task in told]


def _dataset(house: House, job_id: str, caller: Caller) -> tuple[ImageSet, str]:
    """The data set of a job; 404 where it was removed, and its images with it."""
    with house.database.reading() as session:
        dataset_id = find_job(session, job_id, caller).dataset_id
    assert dataset_id is not None
    return read_set(house, stored(house, dataset_id, caller), caller), dataset_id


@dataclass(frozen=True)
class _Measured:
    """The scores of one task of an audit, and the place of each example in the data set."""

    scores: Scores
    places: NDArray[np.int64]


def _measured(path: Path, number: int, image_set: ImageSet) -> _Measured:
    scores = load_scores(path, only=number)[0]
    places = {name: i for i, name in enumerate(image_set.example_ids)}
    index = map(places.__getitem__, scores.example_ids)
    return _Measured(
        replace(scores, example_ids=(), groups=None, clusters=None, evidence=()),
        np.fromiter(index, np.int64, len(scores)),
    )


def _measured_bytes(measured: _Measured) -> int:
    scores = measured.scores
    arrays = (*scores.attacked.values(), *scores.curve.values(), *scores.corrupted.values())
    bounds = 0 if scores.bounds is None else scores.bounds.nbytes
    return bounds + (3 + len(arrays)) * measured.places.nbytes


def _stand(measured: _Measured, by: str) -> Standing:
    """An audit's task in order of score, with the places of its examples in the data set."""
    standing = standing_of(measured.scores, by)
    index = measured.places[standing.index]
    return Standing(index, standing.scores, standing.targets, standing.clean_ranks)


def _standing_bytes(standing: Standing) -> int:
    arrays = (standing.index, standing.scores, standing.targets, standing.clean_ranks)
    return sum(0 if array is None else array.nbytes for array in arrays)
