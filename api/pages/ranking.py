"""The page of a ranking, or of an audit in order of score: what there is to choose from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import Response

from adap.api.pages import page
from adap.api.schemas import Dataset


@dataclass(frozen=True)
class Ways:
    """The ways in which the images of a job can be put in order.

    by: what they may be scored by, the first by default; none where there is one way.
    tasks: of an audit of several, as its scores name them.
    sides: whether some are positive, and others not.
    """

    by: Mapping[str, str] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    sides: bool = True


def ranking_page(
    dataset: Dataset, ways: Ways, *, path: str, job_id: str, model: tuple[str, str] | None
) -> Response:
    """Images in order of score.

    path: of the list in the API. model: where it is, and its name; None where it was removed.
    """
    assert dataset.summary is not None
    return page(
        "ranking",
        dataset=dataset,
        ways=ways,
        path=path,
        job_id=job_id,
        model=model,
        side=max(dataset.summary.height, dataset.summary.width),
    )
