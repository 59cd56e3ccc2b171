"""What a training reached epoch by epoch, drawn: of a job while it runs, of a model for good.

A model's history may have come inside a stranger's file: what is no figure is not drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from markupsafe import Markup
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from adap.api.pages.plots import Line, curves
from adap.store.tables import JobEventRow

AP = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Rate = Annotated[float, Field(ge=0, le=1e6)]

MOST_EPOCHS = 2000  # that are drawn

SHOWN = (  # a figure of an epoch, its words, its colour
    ("clean_ap", "clean AP", "--clean"),
    ("robust_ap", "AP under attack", "--worst"),
    ("surrogate_ap", "surrogate AP, on the training images", "--attack-1"),
)
_DASHES = {"surrogate_ap": "dash"}
_AP: TypeAdapter[float] = TypeAdapter(AP)


class Epoch(BaseModel):
    """What one epoch of a training did; AP on the validation images."""

    epoch: Count
    clean_ap: AP | None = None
    robust_ap: AP | None = None
    lr: Rate | None = None
    metrics: dict[str, Any] = {}

    @property
    def surrogate_ap(self) -> float | None:
        """What the objective is after, on the training images, if it says so."""
        try:
            return _AP.validate_python(self.metrics.get("surrogate_ap"))
        except ValidationError:
            return None


@dataclass(frozen=True)
class Curves:
    """Plots of a history, and the history itself for a table."""

    history: Sequence[Epoch]
    aps: Markup
    rate: Markup
    legend: Sequence[tuple[str, str]]
    """Of each line what it is called in the sheet, and its words."""

    def last(self, figure: str) -> float:
        """The last value of a line."""
        return _points(self.history, figure)[-1][1]


def curves_of(history: Sequence[Epoch], *, chosen: int | None = None) -> Curves:
    """Plots of these epochs; chosen: the one whose weights are kept."""
    history = history[:MOST_EPOCHS]
    lines = [
        (name, Line(words, color, _DASHES.get(name, "solid"), points))
        for name, words, color in SHOWN
        if (points := _points(history, name))
    ]
    rate = _points(history, "lr")
    aps = [line for _, line in lines]
    drawn = Markup("")
    return Curves(
        history=history,
        aps=curves(aps, title="average precision", chosen=chosen, whole=True) if aps else drawn,
        rate=(
            curves(
                [Line("learning rate", "--attack-3", "solid", rate)],
                title="learning rate",
                chosen=chosen,
                whole=False,
            )
            if rate
            else drawn
        ),
        legend=[(name, line.name) for name, line in lines],
    )


def curves_of_job(session: Session, job_id: str) -> Curves:
    """Plots of the epochs that a training has told of so far."""
    told = session.scalars(
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id, JobEventRow.type == "epoch")
        .order_by(JobEventRow.seq)
        .limit(MOST_EPOCHS)
    )
    history = []
    for event in told:
        try:
            history.append(Epoch.model_validate(event.data))
        except ValidationError:
            continue
    return curves_of(history)


def _points(history: Sequence[Epoch], figure: str) -> list[tuple[float, float]]:
    values = [(float(epoch.epoch), getattr(epoch, figure)) for epoch in history]
    return [(epoch, value) for epoch, value in values if value is not None]
