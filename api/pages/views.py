"""Values of each HTML page: the answer that the JSON gives too, and what goes with it on a page."""

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from adap.api.deps import Caller
from adap.api.pages import asked, page
from adap.api.pages.curves import AP, Count, Epoch, curves_of, curves_of_job
from adap.api.schemas import Dataset, Job, JobEvent, Model, job_answer
from adap.api.signing import kept_key
from adap.core.report import ThresholdResult
from adap.reading import Fact
from adap.store.tables import DatasetRow, JobKind, JobRow, JobStatus, ModelRow

NEWEST = 10  # audits on the page of a model
LAST_EVENTS = 20

ADVICE = {  # by the code of an error
    "dataset_rejected": "Mend the file by the reasons on the page of the data set; send it again.",
    "model_rejected": "Mend the file by the reasons on the page of the model; send it again.",
    "out_of_memory": "Ask for less at a time: a smaller batch_size, a smaller network or images.",
    "training_failed": "Train with a lower learning rate; the events tell how the loss went.",
    "timeout": "Ask for fewer epochs, steps or images, or have ADAP_JOB_LIMIT_S raised.",
    "disk_full": "Run it again once there is room on the disk of the service.",
    "internal_error": "Tell whoever runs the service, with the id of the job: the log says more.",
}


class Figures(BaseModel):
    """The figures of a finished audit that a page shows; older audits lack some."""

    clean_ap: AP
    worst_case_ap: AP
    chance: AP | None = None
    trust: str | None = None
    thresholds: list[ThresholdResult] = []


class Training(BaseModel):
    """How a model was trained, as far as a page draws it.

    It may have come inside a stranger's file, so that nothing is sure of it but that it is JSON.
    """

    method: dict[str, Any]
    task: dict[str, Any]
    dataset: dict[str, Any]
    train_examples: Count
    validation_examples: Count
    best: Epoch
    history: list[Epoch]
    facts: list[Fact] = []

    @property
    def positive(self) -> list[str] | None:
        """The classes that it ranks first; None for each class against the rest."""
        classes = self.task.get("positive")
        return [str(name) for name in classes] if isinstance(classes, list) else None

    @property
    def chosen(self) -> int | None:
        """The best epoch, if it is one of those that it tells of."""
        epochs = [epoch.epoch for epoch in self.history]
        return self.best.epoch if self.best.epoch in epochs else None


Parsed = TypeVar("Parsed", bound=BaseModel)


def model_page(request: Request, session: Session, caller: Caller, model: Model) -> Response:
    """A model: what it is, what trying it showed, how it was made, how it fared."""
    audits = _audits(session, caller, model.id)
    row = None if model.job_id is None else session.get(JobRow, model.job_id)
    training_job = None if row is None or row.kind != JobKind.TRAIN else _answer(row)
    told = None if model.manifest is None else model.manifest.training
    training = _parsed(Training, told)
    return page(
        "model",
        model=model,
        follow=_events_of(model),
        audits=[(audit, figures_of(audit)) for audit in audits],
        names=_names(session, caller, [*audits, *([training_job] if training_job else [])]),
        training_job=training_job,
        training=training,
        curves=None if training is None else curves_of(training.history, chosen=training.chosen),
        training_json=None if told is None else _pretty(told),
        commands=_commands_of_model(request, model),
    )


def dataset_page(request: Request, dataset: Dataset) -> Response:
    """A data set: what is in it, drawn, or why it was rejected."""
    commands = [("The same as JSON", _curl(request, f"/v1/datasets/{dataset.id}"))]
    if dataset.summary is not None:
        counts = dataset.summary.classes
        meant = dataset.positive or [min(reversed(counts), key=counts.__getitem__)]  # the rarest
        positive = shlex.join([word for name in meant for word in ("--positive", name)])
        of_this = f"--dataset {dataset.id} {positive} --watch"
        commands = [
            ("Train a model on it", f"adap train {of_this}"),
            ("Audit a model on it", f"adap audit --model mdl_… {of_this}"),
            *commands,
        ]
    return page(
        "dataset",
        dataset=dataset,
        follow=_events_of(dataset),
        commands=commands,
    )


def job_page(
    request: Request, session: Session, caller: Caller, job: Job, events: Sequence[JobEvent]
) -> Response:
    """A job: how far it is, why it waits or failed, what it made. It follows it to the end."""
    failed = job.status in (JobStatus.FAILED, JobStatus.CANCELLED)
    commands = [("The same as JSON", _curl(request, f"/v1/jobs/{job.id}"))]
    if not job.done:
        commands = [
            ("Watch it", f"adap jobs watch {job.id}"),
            ("Stop it", f"adap jobs cancel {job.id}"),
            *commands,
        ]
    elif failed and job.kind.about.retried:
        commands = [("Run it again", f"adap jobs retry {job.id}"), *commands]
    return page(
        "job",
        job=job,
        title=job.kind.about.title,
        follow=None if job.done else job.links["events"],
        advice=None if job.error is None else _advice(job),
        figures=figures_of(job),
        names=_names(session, caller, [job]),
        events=events,
        curves=curves_of_job(session, job.id) if job.kind == JobKind.TRAIN else None,
        asked=asked(job.request),
        commands=commands,
    )


def _events_of(asset: Dataset | Model) -> str | None:
    """Where to follow the job that makes or checks it, until that has ended."""
    if asset.status != "validating" or asset.job_id is None:
        return None
    return f"/v1/jobs/{asset.job_id}/events"


def figures_of(job: Job) -> Figures | None:
    """The figures of an audit that has succeeded."""
    return _parsed(Figures, (job.result or {}).get("summary")) if job.kind == "audit" else None


def _audits(session: Session, caller: Caller, model_id: str) -> list[Job]:
    query = (
        select(JobRow)
        .where(
            JobRow.model_id == model_id,
            JobRow.kind == JobKind.AUDIT,
            JobRow.tenant == caller.tenant,
        )
        .order_by(JobRow.id.desc())
        .limit(NEWEST)
    )
    return [_answer(row) for row in session.scalars(query)]


def _answer(row: JobRow) -> Job:
    return job_answer(row, queue_position=None, waiting_for=None)


def _names(session: Session, caller: Caller, jobs: Iterable[Job]) -> dict[str, str]:
    """What the data sets and models of these jobs are called, by link; none that was removed."""
    ids = sorted({link.rpartition("/")[2] for job in jobs for link in job.links.values()})
    names: dict[str, str] = {}
    for path, table in (("/v1/datasets", DatasetRow), ("/v1/models", ModelRow)):
        query = select(table.id, table.name).where(
            table.id.in_(ids), table.tenant == caller.tenant, table.deleted_at.is_(None)
        )
        names |= {f"{path}/{row.id}": row.name for row in session.execute(query)}
    return names


def _advice(job: Job) -> str:
    assert job.error is not None
    known = ADVICE.get(job.error.code)
    if known is not None:
        return known
    if job.error.retryable:
        return "The same request may well succeed when it is run again."
    return "Change the request, the data set or the model as the sentence says, and ask again."


def _commands_of_model(request: Request, model: Model) -> list[tuple[str, str]]:
    commands = [("The same as JSON", _curl(request, f"/v1/models/{model.id}"))]
    if model.manifest is None:
        return commands
    adap, form = [], []
    if classes := model.manifest.output.classes:
        adap = ["--positive", classes[0]]
        form = ["--form-string", f"positive={classes[0]}"]  # -F would read a file for @NAME
    scores = _curl(request, f"/v1/models/{model.id}/scores", "-F", "images=@image.png", *form)
    return [
        ("Score an image", shlex.join(["adap", "score", model.id, *adap, "image.png"])),
        ("The same by HTTP alone", scores),
        ("Audit it", f"adap audit --model {model.id} --dataset ds_… --watch"),
        *commands,
    ]


def _curl(request: Request, path: str, *options: str) -> str:
    """A call as a line for a shell, which takes the key from the environment."""
    asked = "authorization" in request.headers or kept_key(request) is not None
    key = '-H "Authorization: Bearer $ADAP_API_KEY" ' if asked else ""
    return f"curl {key}{shlex.join([*options, str(request.base_url.replace(path=path))])}"


def _parsed(kind: type[Parsed], value: Any) -> Parsed | None:
    try:
        return kind.model_validate(value)
    except ValidationError:
        return None


def _pretty(value: Any) -> str:
    return json.dumps(_rounded(value), indent=2, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """The same with figures to six digits, as nobody reads sixteen."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
