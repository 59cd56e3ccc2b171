"""A sweep: many trainings that differ in some fields, and which of them are worth having.

A grid runs every combination of the values given; a search asks `adap.core.training.search` for one
trial after the other. Trials are compared by the clean and the robust AP of their best epoch, on
validation images; the Pareto front holds those that no other trial beats at both. This module
imports no torch, so the web process can use it.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, ValidationError, model_validator

from adap import faults
from adap.core.config.base import Config, Name
from adap.core.config.training import TrainingRequest
from adap.core.errors import ConfigError

MAX_CORNERS = 10_000
_FIXED = ("dataset_id", "task", "warm_start", "name", "preset")

Parameters = dict[str, JsonValue]
"""What one trial changes: values by the paths of fields."""

FieldPath = Annotated[str, Field(pattern=faults.FIELD_PATH, max_length=100)]
Values = Annotated[list[JsonValue], Field(min_length=1, max_length=100)]


class Range(Config):
    """Numbers from `low` to `high`, both included; whole ones where both are whole."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="whether ratios count instead of differences")

    @model_validator(mode="after")
    def _rises(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"expected low below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"expected low above 0 where log is true, got {self.low}")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Grid(Config):
    """Every combination of the values given."""

    kind: Literal["grid"] = "grid"
    parameters: dict[FieldPath, Values] = Field(
        min_length=1,
        max_length=10,
        description="values by the path of a field, for example "
        '{"method.lambda": [0.1, 1, 10], "optimizer.lr": [0.001, 0.0001]}',
    )

    @model_validator(mode="after")
    def _values_differ(self) -> "Grid":
        _refuse_paths(self.parameters)
        return self


class Search(Config):
    """A tree-structured Parzen estimator (Bergstra et al. 2011) that learns from trials that ended.

    The parameters of a trial depend on the seed, its number and the trials that have ended by then,
    so a search with `at_once` of 1 repeats itself.
    """

    kind: Literal["tpe"] = "tpe"
    parameters: dict[FieldPath, Range | Values] = Field(
        min_length=1,
        max_length=10,
        description="a range or a list of values by the path of a field, for example "
        '{"method.lambda": {"low": 0.1, "high": 10, "log": true}}',
    )
    trials: int = Field(20, ge=1, le=10_000, description="trainings in all")
    at_once: int = Field(2, ge=1, le=100, description="trainings that are queued or run at a time")
    maximise: Literal["both", "robust_ap", "clean_ap"] = Field(
        "both", description="what the search is after; both: the whole Pareto front"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the search, not of the trainings")

    @model_validator(mode="after")
    def _values_differ(self) -> "Search":
        _refuse_paths(self.parameters)
        return self


class SweepRequest(Config):
    """`POST /v1/sweeps`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "training": {
                        "dataset_id": "ds_01k9x2v7m3c5r8t1w4z6y0b2d4",
                        "task": {"positive": ["truck"]},
                        "preset": "quick",
                    },
                    "search": {
                        "kind": "grid",
                        "parameters": {
                            "method": ["adap_ln", "adap_lpn"],
                            "method.lambda": [0.1, 1, 10],
                        },
                    },
                }
            ]
        }
    )

    name: Name | None = Field(None, description="of the sweep; models are named by the training")
    training: TrainingRequest = Field(
        description="what all trials have in common. Where it does not say how the epoch is chosen "
        "(`validation.select_by`), all trials choose it by robust AP, so that they compare"
    )
    search: Grid | Search = Field(discriminator="kind")

    @property
    def planned(self) -> int:
        """How many trainings this is."""
        if isinstance(self.search, Search):
            return self.search.trials
        return math.prod(len(values) for values in self.search.parameters.values())


def combinations(grid: Grid) -> Iterator[Parameters]:
    """The parameters of every trial of a grid; the last field changes fastest."""
    for values in product(*grid.parameters.values()):
        yield dict(zip(grid.parameters, values, strict=True))


def trial(request: SweepRequest, parameters: Parameters, *, number: int) -> TrainingRequest:
    """The training that a trial is. Raises ConfigError where these parameters make none.

    Shorter paths are set first, so `method` and `method.lambda` go together. A bare method name on
    the way is the entry of that name.
    """
    fields = request.training.as_json()
    fields["validation"]["select_by"] = fields["validation"]["select_by"] or "robust_ap"
    if request.training.name is not None:
        fields["name"] = f"{request.training.name[:190]} #{number}"
    for path in sorted(parameters, key=lambda path: path.count(".")):
        _assign(fields, path, parameters[path])
    try:
        return TrainingRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, faults.path_of(first, fields)))
        raise ConfigError(
            f"expected every trial to be a training, got {json.dumps(parameters)}: "
            f"{where + ': ' if where else ''}{faults.explain(first)}"
        ) from error


def refuse_unusable(request: SweepRequest) -> list[TrainingRequest]:
    """Raise ConfigError if a trial could come up that is no training; answers those looked at.

    Of a grid these are all trials; of a search the corners of its space, which suffice as every
    bound of a field, and every relation between two, is an inequality.
    """
    search = request.search
    if isinstance(search, Grid):
        looked_at = combinations(search)
    else:
        ends: dict[str, list[JsonValue]] = {
            path: [space.low, space.high] if isinstance(space, Range) else space
            for path, space in search.parameters.items()
        }
        corners = math.prod(len(values) for values in ends.values())
        if corners > MAX_CORNERS:
            raise ConfigError(
                f"expected a space of at most {MAX_CORNERS:,} combinations of values and ends of "
                f"ranges, got {corners:,}"
            )
        looked_at = combinations(Grid(parameters=ends))
    return [
        trial(request, parameters, number=number) for number, parameters in enumerate(looked_at)
    ]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial that has ended: APs of its best epoch, None where it has none."""

    number: int
    parameters: Parameters
    clean_ap: float | None
    robust_ap: float | None


def outcome(number: int, parameters: Parameters, result: Mapping[str, Any] | None) -> Outcome:
    """Of a trial whose training job has this result."""
    best = {} if result is None else result["summary"]["best"]
    return Outcome(number, parameters, best.get("clean_ap"), best.get("robust_ap"))


def pareto_front(outcomes: Sequence[Outcome]) -> list[int]:
    """Numbers of the trials that no other beats: as good at both APs, and better at one.

    Trials without both APs are not on it; equal ones are on it together.
    """
    points = {
        trial.number: (trial.clean_ap, trial.robust_ap)
        for trial in outcomes
        if trial.clean_ap is not None and trial.robust_ap is not None
    }
    return [
        number
        for number, (clean, robust) in points.items()
        if not any(
            other_clean >= clean
            and other_robust >= robust
            and (other_clean, other_robust) != (clean, robust)
            for other_clean, other_robust in points.values()
        )
    ]


def best(request: SweepRequest, outcomes: Sequence[Outcome]) -> int | None:
    """Number of the trial of highest robust AP, or of what the search is after.

    Of equal ones that of the higher other AP, so that it lies on the front; then the first.
    """
    clean_first = isinstance(request.search, Search) and request.search.maximise == "clean_ap"
    known: dict[int, tuple[float, float]] = {}
    for trial in outcomes:
        first, second = trial.robust_ap, trial.clean_ap
        if clean_first:
            first, second = second, first
        if first is not None:
            known[trial.number] = first, -math.inf if second is None else second
    return max(known, key=lambda number: known[number]) if known else None


def _refuse_paths(parameters: Mapping[str, Range | list[JsonValue]]) -> None:
    for path, values in parameters.items():
        if path.split(".")[0] in _FIXED:
            raise ValueError(f"expected fields other than {', '.join(_FIXED)}, got {path!r}")
        if isinstance(values, list):
            texts = [json.dumps(value, sort_keys=True) for value in values]
            if len(set(texts)) < len(texts):
                raise ValueError(f"expected each value of {path} once, got {texts}")


def _assign(fields: dict[str, Any], path: str, value: JsonValue) -> None:
    *way, last = path.split(".")
    inner: Any = fields
    for name in way:
        if isinstance(inner.get(name), str):
            inner[name] = {"name": inner[name]}
        inner = inner.get(name)
        if not isinstance(inner, dict):
            raise ConfigError(f"expected the path of a field of the training, got {path!r}")
    inner[last] = value
