"""Rules of requests: defaults filled in by data set and model, misfits refused.

The API asks this when a request comes, so that a request that cannot work never becomes a job; the
worker asks it again when the job starts, as an upload may have been checked only in between.
Plain values in, plain values out; no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from adap.core.audit.sampling import check_sample
from adap.core.config.audits import AuditConfig
from adap.core.config.base import Split
from adap.core.config.data import AnyTask, EachClass, Resize, Task
from adap.core.config.deployment import ImageSize
from adap.core.config.rankings import RankingRequest
from adap.core.config.training import TrainingRequest
from adap.core.corruptions.parameters import refuse_too_small
from adap.core.direction import refuse_other_side
from adap.core.errors import ConfigError, DataError
from adap.core.figures import gate
from adap.faults import suggestion
from adap.reading import Reading

POSITIVE_NAMES = ("positive", "pos", "1", "true", "yes")
MIN_PER_SIDE = 2  # an average precision over fewer positives or negatives says nothing


class DatasetSummary(BaseModel):
    """What a data set holds, as counted when it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int
    multilabel: bool = Field(
        False, description="whether an example may have several of the classes, or none"
    )
    classes: dict[str, int] = Field(description="examples of each class")
    prevalence: dict[str, float] = Field(description="share of the examples that has each class")
    splits: dict[Split, dict[str, int]] = Field(
        description="examples of each class in each declared split; empty where none is declared"
    )
    split_examples: dict[Split, int] = Field(description="examples of each declared split")
    groups: dict[str, int] | None = Field(
        None, description="examples of each group; null where none is declared"
    )
    clusters: int | None = Field(
        None,
        description="how many clusters (patients, drives) the examples are of; null where none is "
        "declared",
    )
    channels: int
    height: int
    width: int
    sizes: dict[str, int] = Field(
        description="examples of each size as they came, width x height, the twenty most frequent",
    )
    resize: Resize | None = Field(None, description="how they were made the size that they have")
    duplicates: int = Field(description="examples whose pixels equal those of an earlier one")
    conflicting: int = Field(
        description="duplicates whose labels differ from those of the earlier one"
    )
    across_splits: int | None = Field(
        description="duplicates in another split than the earlier one; null without splits"
    )
    reading: Reading | None = Field(None, description="how the upload was understood")
    warnings: list[str] = Field([], description="what to know before trusting figures of it")

    @property
    def image(self) -> ImageSize:
        """Channels, height and width of each image."""
        return self.channels, self.height, self.width

    def examples_in(self, split: Split | None) -> int:
        """How many examples there are in a split, or in the whole data set."""
        return self.examples if split is None else self.split_examples[split]

    def counts(self, split: Split | None) -> dict[str, int]:
        """Examples of each class in a split, or in the whole data set."""
        return self.classes if split is None else self.splits[split]


def plainly_positive(summary: DatasetSummary) -> list[str] | None:
    """The classes that are the positive ones by their names alone; None where that is not plain.

    Plain: two classes, of which exactly one is named positive, pos, 1, true or yes.
    """
    named = [name for name in summary.classes if name.lower() in POSITIVE_NAMES]
    return named if len(summary.classes) == 2 and len(named) == 1 else None


def resolve_task(
    asked: Task | None, summary: DatasetSummary, *, trained_for: Sequence[str] | None = None
) -> Task:
    """The task asked for, else the one the model was trained for, else the obvious one.

    Obvious is what `plainly_positive` finds.
    Raises ConfigError where nothing is obvious, or for a class that the data set does not have.
    """
    classes = list(summary.classes)
    if asked is not None:
        task = asked
    elif trained_for is not None:
        task = Task(positive=list(trained_for))
    else:
        named = plainly_positive(summary)
        if named is None:
            raise ConfigError(
                f"task: expected the classes to rank first (--positive), for example "
                f"{classes[-1]}: the data set has the classes {', '.join(classes[:20])}, and it "
                "is not plain which are positive"
            )
        task = Task(positive=named)
    unknown = [name for name in task.positive if name not in summary.classes]
    if unknown:
        raise ConfigError(
            f"expected positive classes among {', '.join(classes[:20])}; got {', '.join(unknown)}"
            + suggestion(unknown[0], classes)
        )
    return task


def resolve_tasks(
    asked: AnyTask | None,
    summary: DatasetSummary,
    *,
    trained_for: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> list[Task]:
    """The tasks of an audit: one as in `resolve_task`, or one for each class of the data set.

    outputs: the classes that the model has outputs for, None for a model of one logit. With
    outputs, and nothing else asked for or known, each class is a task.
    Raises ConfigError as `resolve_task` does, or where the model lacks an output that is needed.
    """
    if asked is None and outputs is not None and trained_for is None:
        asked = EachClass(each=True)
    if not isinstance(asked, EachClass):
        tasks = [resolve_task(asked, summary, trained_for=trained_for)]
    elif outputs is None:
        raise ConfigError(
            "task: expected a model with an output for each class to audit each of them; this one "
            "has a single output: name the classes that it ranks first (--positive), for example "
            f"{next(iter(summary.classes))}"
        )
    else:
        tasks = [Task(positive=[name]) for name in summary.classes]
    if outputs is not None:
        wanted = [name for task in tasks for name in task.positive]
        unknown = [name for name in wanted if name not in outputs]
        if unknown:
            raise ConfigError(
                f"expected classes that the model has outputs for ({', '.join(outputs[:20])}); "
                f"got {', '.join(unknown[:20])}" + _other_letters(unknown[0], outputs)
            )
    return tasks


def _other_letters(name: str, outputs: Sequence[str]) -> str:
    """What to do about a class that the model and the data set write with other letters."""
    same = [one for one in outputs if one.casefold() == name.casefold()]
    if not same:
        return suggestion(name, outputs)
    return (
        f": the data set writes {name} what the model calls {same[0]}. Rename it in one of them: "
        f"add the model again with --classes as the data set has them, or the data set with its "
        "folders or labels renamed"
    )


class _Input(Protocol):
    @property
    def channels(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class _Output(Protocol):
    @property
    def classes(self) -> list[str] | None: ...
    def columns(self, positive: Sequence[str] | None) -> list[int]: ...


class Ranker(Protocol):
    """What a model's manifest says of it; `adap.models.header.Manifest` is one."""

    @property
    def architecture(self) -> str: ...
    @property
    def input(self) -> _Input: ...
    @property
    def output(self) -> _Output: ...
    @property
    def positive(self) -> list[str] | None: ...


@dataclass(frozen=True)
class Known:
    """A model that was checked: its content by hash, and what its manifest says."""

    sha256: str | None
    ranker: Ranker


def resolve_audit(
    config: AuditConfig, summary: DatasetSummary, model: Known, *, surrogate: Known | None
) -> tuple[list[Task], Split | None]:
    """The tasks of an audit and the split that it looks at.

    Raises ConfigError, DataError or the manifest's own error for what no audit could do.
    """
    ranker = model.ranker
    tasks = resolve_tasks(
        config.task, summary, trained_for=ranker.positive, outputs=ranker.output.classes
    )
    split = resolve_split(config.split, summary)
    for task in tasks:
        ranker.output.columns(task.positive)  # raises where these classes have no score
        check_both_sides(task, summary, split)
        _check_side(task.positive, ranker, meant=config.other_positive)
        _check_sample(config, task, summary, split)
    _fits(summary, ranker, config)
    config.threat.refuse_beyond_images(summary.height, summary.width)
    if config.corruptions is not None:
        refuse_too_small(summary.height, summary.width)
    if config.smallest_changes is not None:
        examples = summary.examples_in(split)
        config.smallest_changes.refuse_beyond_examples(config.sampled(examples) or examples)
    gate.refuse_unknown(config, tasks, grouped=summary.groups is not None)
    if surrogate is not None:
        check_black_box(model.sha256, surrogate.sha256)
        each = EachClass(each=True) if len(tasks) > 1 else tasks[0]
        check_surrogate(each, surrogate, other_positive=config.other_positive)
        for task in tasks:
            surrogate.ranker.output.columns(task.positive)
        _fits(summary, surrogate.ranker, config)
    return tasks, split


def resolve_audit_of_files(
    config: AuditConfig, *, declared: Sequence[str] | None, surrogate: Known | None
) -> None:
    """Refuse what can be refused of an audit whose model and data set are still to be checked.

    declared: the classes that the model's single logit is said to rank first.
    The rest is for `resolve_audit`, once they are. Raises as it does.
    """
    if isinstance(config.task, Task):
        gate.refuse_unknown(config, [config.task])
        refuse_other_side(config.task.positive, declared, meant=config.other_positive)
    if surrogate is not None and config.task is not None:
        check_surrogate(config.task, surrogate, other_positive=config.other_positive)


def check_surrogate(task: AnyTask, surrogate: Known, *, other_positive: bool) -> None:
    """Raise ConfigError, or the manifest's own error, for a surrogate without a score for these."""
    if isinstance(task, Task):
        _check_side(task.positive, surrogate.ranker, meant=other_positive, whose="the surrogate")
    elif surrogate.ranker.output.classes is None:
        raise ConfigError(
            "expected a surrogate with an output for each class, got one with a single output"
        )


def _check_side(
    positive: Sequence[str] | None, ranker: Ranker, *, meant: bool, whose: str = "the model"
) -> None:
    """Raise the manifest's own error for classes without a score, ConfigError for another side."""
    ranker.output.columns(positive)
    if positive is not None and ranker.output.classes is None:
        refuse_other_side(positive, ranker.positive, meant=meant, whose=whose)


def resolve_ranking(
    request: RankingRequest, summary: DatasetSummary, ranker: Ranker
) -> tuple[RankingRequest, Split | None]:
    """The request with the model's own task where it names none, and the split to rank.

    Raises ConfigError or the manifest's own error for what no ranking could do.
    """
    split = resolve_split(request.split, summary)
    if request.task is not None:
        resolve_task(request.task, summary)
    positive = ranker.positive if request.task is None else request.task.positive
    _check_side(positive, ranker, meant=request.other_positive)
    _fits(summary, ranker)
    if request.task is None and positive:
        request = request.model_copy(update={"task": Task(positive=list(positive))})
    return request, split


def resolve_training(
    request: TrainingRequest,
    summary: DatasetSummary,
    *,
    start: Ranker | None,
    smallest: Mapping[str, int],
) -> TrainingRequest:
    """The request with its task filled in.

    start: the model to start from, where the request names one.
    smallest: of each architecture that is trained, the least height and width of an image.
    Raises ConfigError or DataError for what no training could do.
    """
    _check_trainable(request.architecture, summary, smallest)
    tasks = training_tasks(request.task, summary)
    if request.sample is not None:
        for task in tasks:
            _check_training_sample(request.sample, task, summary)
    each = isinstance(request.task, EachClass)
    if start is not None:
        _fits(summary, start)
        check_start(
            architecture=start.architecture,
            outputs=start.output.classes,
            wanted=request.architecture,
            classes=list(summary.classes) if each else None,
            fresh_head=request.fresh_head(),
        )
    return request if each else request.model_copy(update={"task": tasks[0]})


def _check_trainable(
    architecture: str, summary: DatasetSummary, smallest: Mapping[str, int]
) -> None:
    if architecture not in smallest:
        raise ConfigError(
            f"architecture: expected one of {', '.join(smallest)}; got {architecture!r}"
            + suggestion(architecture, smallest)
        )
    if min(summary.height, summary.width) < smallest[architecture]:
        raise ConfigError(
            f"architecture: {architecture} expects images of at least {smallest[architecture]} "
            f"pixels a side, this data set has {summary.width}x{summary.height}"
        )


def _fits(summary: DatasetSummary, ranker: Ranker, config: AuditConfig | None = None) -> None:
    """Raise ConfigError for images that the model cannot be given.

    config: of an audit, whose pipeline may change their size.
    """
    spec = ranker.input
    wanted, got = (spec.channels, spec.height, spec.width), summary.image
    if config is None or not config.pipeline:
        check_fits(summary, channels=spec.channels, height=spec.height, width=spec.width)
    elif config.behind_pipeline(got) != wanted:
        behind = config.behind_pipeline(got)
        raise ConfigError(
            "expected images of the model's input size {}x{}x{} (channels, height, width) behind "
            "the pipeline".format(*wanted)
            + "; it makes {}x{}x{} of this data set's {}x{}x{}".format(*behind, *got)
        )


def training_tasks(asked: AnyTask | None, summary: DatasetSummary) -> list[Task]:
    """The tasks of a training: one as in `resolve_task`, or one for each class of the data set.

    Raises ConfigError as `resolve_task` does, DataError where training or choosing the epoch lacks
    positives or negatives.
    """
    if isinstance(asked, EachClass):
        tasks = [Task(positive=[name]) for name in summary.classes]
    else:
        tasks = [resolve_task(asked, summary)]
    splits: list[Split | None] = [s for s in ("train", "validation") if s in summary.splits]
    for split in splits or [None]:
        for task in tasks:
            check_both_sides(task, summary, split)
    return tasks


def check_start(
    *,
    architecture: str,
    outputs: Sequence[str] | None,
    wanted: str,
    classes: Sequence[str] | None,
    fresh_head: bool,
) -> None:
    """Raise ConfigError unless training can start from the weights of a model.

    architecture, outputs: of that model; the classes it has outputs for, None for one logit.
    wanted, classes: the same of the model to be trained.  fresh_head: its last layer is not used.
    """
    if architecture != wanted:
        raise ConfigError(
            f"expected a model of the architecture {wanted} to start from, got one of "
            f"{architecture}"
        )
    if fresh_head or outputs == classes:
        return
    ours, theirs = (
        "one logit" if names is None else f"the outputs {', '.join(names[:20])}, in this order"
        for names in (classes, outputs)
    )
    raise ConfigError(
        f"expected a model with {ours} to start from, got one with {theirs}; "
        "fresh_head: true leaves its last layer out"
    )


def resolve_split(asked: Split | None, summary: DatasetSummary) -> Split | None:
    """The split asked for, else the test split where there is one, else None for every example."""
    if asked is None:
        return "test" if "test" in summary.splits else None
    if asked not in summary.splits:
        raise ConfigError(
            f"expected a data set with a {asked} split; this one declares "
            + (", ".join(summary.splits) or "no splits")
        )
    return asked


def check_both_sides(task: Task, summary: DatasetSummary, split: Split | None) -> None:
    """Raise DataError unless there are at least two positives and two negatives to rank."""
    counts = summary.counts(split)
    of_each = [counts.get(name, 0) for name in task.positive]
    # where they overlap there are as many as of the largest class, or more
    positives = max(of_each) if summary.multilabel else sum(of_each)
    negatives = summary.examples_in(split) - positives
    if min(positives, negatives) < MIN_PER_SIDE:
        where = "the data set" if split is None else f"the {split} split"
        raise DataError(
            f"expected at least {MIN_PER_SIDE} positives and {MIN_PER_SIDE} negatives in {where}, "
            f"got {positives} positives ({', '.join(task.positive)}) and {negatives} negatives"
        )


def _check_sample(
    config: AuditConfig, task: Task, summary: DatasetSummary, split: Split | None
) -> None:
    """Raise DataError for a sample without two of each side, as far as the counts tell."""
    examples = summary.examples_in(split)
    count = config.sampled(examples)
    if count is None or (summary.multilabel and len(task.positive) > 1):  # classes may overlap
        return
    counts = summary.counts(split)
    positives = sum(counts.get(name, 0) for name in task.positive)
    check_sample(count, positives=positives, examples=examples, named=", ".join(task.positive))


def _check_training_sample(count: int, task: Task, summary: DatasetSummary) -> None:
    """Raise DataError for a sample without two of each side to train on, or to choose the epoch by
    where a split is declared for that, as far as the counts tell."""
    if summary.multilabel and len(task.positive) > 1:
        return
    splits: list[Split | None] = [s for s in ("train", "validation") if s in summary.splits]
    splits = splits or [None]
    whole = sum(summary.examples_in(split) for split in splits)
    if count >= whole:
        return
    for split in splits:
        check_sample(
            count,
            positives=sum(summary.counts(split).get(name, 0) for name in task.positive),
            examples=summary.examples_in(split),
            named=", ".join(task.positive),
            part="" if split is None else f" in the {split} split",
            whole=whole,
        )


def check_fits(summary: DatasetSummary, *, channels: int, height: int, width: int) -> None:
    """Raise ConfigError unless the images have the size that a model declares as its input."""
    if summary.image != (channels, height, width):
        raise ConfigError(
            f"expected images of the model's input size {channels}x{height}x{width} "
            "(channels, height, width); this data set has {}x{}x{}".format(*summary.image)
        )


def check_black_box(model_sha256: str | None, surrogate_sha256: str | None) -> None:
    """Raise ConfigError for a surrogate that is the audited model itself."""
    if model_sha256 == surrogate_sha256:
        raise ConfigError(
            "expected a surrogate other than the audited model: an attack computed on the model "
            "itself is not black box"
        )
