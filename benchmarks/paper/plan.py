"""From the declarations (experiments/, methods.toml, scales/) to pieces, tuned where they ask."""

import itertools
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from adap.core.config.base import Config
from adap.core.config.training import TrainingConfig
from benchmarks.paper import data
from benchmarks.paper.runs import DataSpec, Evaluation, Piece, Training

HERE = Path(__file__).parent

Values = Mapping[str, float]
"""Hyperparameters by name: lr, lambda, gamma1, gamma2, batch_size."""
Compute = Callable[[Sequence[Piece]], list[dict[str, Any]]]
"""The results of these pieces, in their order."""


class Method(Config):
    """How one of the ten methods is tuned."""

    label: str
    start_from: str | None = None
    tune: list[dict[str, list[float]]]


class Size(Config):
    """How much is computed for one network."""

    seeds: list[int]
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    epochs: int


class Own(Config):
    """What a data set has of its own, in place of the scale's."""

    epochs: int | None = None
    optimizer: dict[str, Any] = Field({}, description="of `core/config/training.py`: Optimizer")


class Scale(Config):
    """What all experiments of one scale have in common."""

    title: str
    device: Literal["cpu", "cuda"]
    network: str
    tasks: list[str]
    sources: dict[str, str] = Field(description="by task or by data set, see `data.load`")
    instead: dict[str, str] = Field(
        {}, description="by source: the one to read where that one's files are not there"
    )
    fixed: dict[str, dict[str, float]] = Field(
        {}, description="by method: values chosen beforehand; methods without any are tuned"
    )
    own: dict[str, Own] = Field({}, description="by data set")
    full: Size
    small: Size
    reading: str = Field("", description="what the figures say, written by who has read them")
    training: dict[str, Any] = Field({}, description="of `core/config/training.py`: TrainingConfig")

    def of_what_is_in(self, root: Path) -> "Scale":
        """The scale with each source replaced whose files are not below `root`, if it may be."""
        there = {
            of: source if data.is_there(source, root) else self.instead.get(source, source)
            for of, source in self.sources.items()
        }
        return self.model_copy(update={"sources": there})


class PaperValue(Config):
    """What the paper reports for one entry: means and standard deviations over its seeds."""

    robust: float | None = None
    robust_sd: float | None = None
    clean: float | None = None
    clean_sd: float | None = None
    seconds: float | None = None


class Experiment(Config):
    """One table or figure of the paper."""

    title: str
    source: str = Field(description="where it is in the paper")
    methods: list[str]
    vary: dict[str, list[float]] = Field({}, description="in all combinations; the rest is tuned")
    size: Literal["full", "small"] = "full"
    epoch: Literal["best", "last"] = "best"
    attack: Literal["pgd", "apgd", "black_box"] = "pgd"
    read: Literal["test", "validation", "history", "time"] = "test"
    tasks: list[str] | None = Field(None, description="by default all of the scale")
    paper: dict[str, dict[str, PaperValue]] = Field(
        {}, description="by task or data set (its average), then by `entry_name`"
    )
    note: str = ""

    def of_paper(self, task: str, method: str, varied: Values) -> PaperValue:
        """What the paper has for an entry: of the task, or else the mean over its data set."""
        values = self.paper.get(task) or self.paper.get(task.split("/")[0]) or {}
        return values.get(entry_name(method, varied), PaperValue())


def entry_name(method: str, varied: Values) -> str:
    """How an entry is called: the method, and the values it varies, as in `ap` or `trades 0.4`."""
    return " ".join([method, *(["/".join(f"{v:g}" for v in varied.values())] if varied else [])])


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def methods() -> dict[str, Method]:
    """The ten methods, by name."""
    return {
        name: Method.model_validate(value) for name, value in _read(HERE / "methods.toml").items()
    }


def scale(name: str) -> Scale:
    """What scales/NAME.toml says."""
    return Scale.model_validate(_read(HERE / "scales" / f"{name}.toml"))


def experiments() -> dict[str, Experiment]:
    """All of experiments/, by the names of their files."""
    return {
        path.stem: Experiment.model_validate(_read(path))
        for path in sorted((HERE / "experiments").glob("*.toml"))
    }


@dataclass(frozen=True)
class Cell:
    """One entry of a table: a method on a task with some values, over the seeds."""

    task: str
    method: str
    varied: Values
    chosen: Values
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Planner:
    """Says which pieces an experiment needs; asks for results where one depends on another."""

    scale: Scale
    compute: Compute

    def cells(self, experiment: Experiment) -> Iterator[tuple[str, str, Values]]:
        """Task, method and varied values of each entry."""
        names, lists = list(experiment.vary), list(experiment.vary.values())
        for task in self.tasks(experiment):
            for method in experiment.methods:
                for values in itertools.product(*lists):
                    yield task, method, dict(zip(names, values, strict=True))

    def tasks(self, experiment: Experiment) -> list[str]:
        """The tasks of an experiment that this scale has."""
        wanted = experiment.tasks
        return [task for task in self.scale.tasks if wanted is None or task in wanted]

    def cell(self, experiment: Experiment, task: str, method: str, varied: Values) -> Cell:
        """The pieces of one entry, everything computed that they depend on."""
        size = getattr(self.scale, experiment.size)
        chosen = {**self.tuned(method, task), **varied}
        trainings = [
            self.training(method, task, chosen, seed=seed, size=size) for seed in size.seeds
        ]
        if experiment.read != "test":
            return Cell(task, method, varied, chosen, trainings)
        evaluations = [
            self.evaluation(
                training, experiment.epoch, task=task, with_black_box=experiment.size == "full"
            )
            for training in trainings
        ]
        needed = [e.surrogate for e in evaluations if e.surrogate is not None]
        self.compute([*trainings, *needed])
        return Cell(task, method, varied, chosen, evaluations)

    def tuned(self, method: str, task: str) -> dict[str, float]:
        """The values fixed beforehand, or the best on validation images, found stage by stage."""
        if method in self.scale.fixed:
            return self.scale.fixed[method]
        chosen: dict[str, float] = {}
        size = self.scale.small
        for stage in methods()[method].tune:
            candidates = [
                {**chosen, **dict(zip(stage, values, strict=True))}
                for values in itertools.product(*stage.values())
            ]
            results = self.compute(
                [
                    self.training(method, task, candidate, seed=size.seeds[0], size=size)
                    for candidate in candidates
                ]
            )
            best = max(results, key=lambda result: result["best"][result["select_by"]])
            chosen = candidates[results.index(best)]
        return chosen

    def training(
        self, method: str, task: str, values: Values, *, seed: int, size: Size
    ) -> Training:
        """A network trained by a method with these values; `start_from` is computed first."""
        start = None
        if (before := methods()[method].start_from) is not None:
            start = self.training(before, task, self.tuned(before, task), seed=seed, size=size)
            self.compute([start])
        dataset, positive = task.split("/")
        ours = self.scale.own.get(dataset, Own())
        own = {name: values[name] for name in values if name not in ("lr", "batch_size")}
        optimizer = {**self.scale.training.get("optimizer", {}), **ours.optimizer}
        if "lr" in values:
            optimizer["lr"] = values["lr"]
        config = TrainingConfig.model_validate(
            {
                **self.scale.training,
                "method": {"name": method, **own},
                "optimizer": optimizer,
                "epochs": ours.epochs or size.epochs,
                "batch_size": int(values.get("batch_size", 128)),
                "seed": seed,
            }
        )
        return Training(
            data=DataSpec(
                source=self.scale.sources.get(task) or self.scale.sources[dataset],
                positive=[positive],
                seed=seed,
                train=size.train,
                validation=size.validation,
                test=size.test,
            ),
            network=self.scale.network,
            config=config,
            start=start,
            device=self.scale.device,
        )

    def evaluation(
        self,
        training: Training,
        epoch: Literal["best", "last"],
        *,
        task: str,
        with_black_box: bool,
    ) -> Evaluation:
        """The test figures of a network; black box by a CE network of the same task and seed."""
        if not with_black_box:
            return Evaluation(training=training, epoch=epoch)
        surrogate = self.training(
            "ce",
            task,
            self.tuned("ce", task),
            seed=training.config.seed,
            size=self.scale.full,
        )
        return Evaluation(
            training=training,
            epoch=epoch,
            surrogate=surrogate,
            attacks=("pgd", "apgd", "black_box"),
        )
