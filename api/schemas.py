"""Response classes of the API. Requests are classes of `adap.core.config`."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from adap.core.config.base import Split
from adap.core.config.deployment import PipelineStep
from adap.core.report import APFigure, Difference, Verdict
from adap.core.resolve import DatasetSummary, plainly_positive
from adap.models.header import Manifest, ProbeResult
from adap.store import uploads
from adap.store.kinds import Queue
from adap.store.tables import DatasetRow, JobKind, JobRow, JobStatus, ModelRow, UploadRow

Timestamp = Annotated[
    datetime,
    PlainSerializer(lambda value: value.isoformat(timespec="milliseconds").replace("+00:00", "Z")),
]
Status = Literal["validating", "ready", "rejected"]
Item = TypeVar("Item")
SCORE = "logit of the positive side; log-odds of the positive classes for a multiclass model"


def timestamp(seconds: float | None) -> datetime | None:
    """A time of the database, in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class Answer(BaseModel):
    """Base of what the API answers."""

    model_config = ConfigDict(extra="forbid")


class Page(Answer, Generic[Item]):
    """One page of a list, newest first."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None = Field(description="pass it as `after` to get the next page")


class Dataset(Answer):
    """A data set."""

    id: str = Field(examples=["ds_01k9x2v7m3c5r8t1w4z6y0b2d4"])
    name: str
    status: Status = Field(description="validating, then ready or rejected")
    created_at: Timestamp
    job_id: str | None = Field(description="the job that checks it: watch it, or wait for it")
    reasons: list[str] = Field(
        description="why it was rejected, by file: the first hundred reasons, where there are more"
    )
    sha256: str | None = Field(description="hash of the stored form, once ready")
    summary: DatasetSummary | None = Field(description="counts and sizes, once ready")
    positive: list[str] | None = Field(
        description="the classes that count as positive where neither a request nor a model names "
        "any; null where that is not plain from their names"
    )
    note: str | None = Field(
        description="what was noted about it, see PATCH /v1/datasets/{dataset_id}"
    )


class StoredImage(Answer):
    """An image of a data set."""

    index: int = Field(description="its place in the data set, from 0")
    example_id: str
    labels: list[str] = Field(description="its classes: one, or any number where it may have so")
    split: Split | None = Field(description="null where none is declared")
    group: str | None = Field(description="null where the data set has no groups")
    cluster: str | None = Field(description="null where the data set has no clusters")
    image: str = Field(description="where its pixels are, as PNG; `?size=N` for a thumbnail")


class StoredImages(Answer):
    """Some images of a data set, in the order of the data."""

    data: list[StoredImage]
    has_more: bool
    next_cursor: str | None = Field(description="pass it as `after` to get the next ones")
    total: int = Field(description="how many images fit what was asked for")


class Upload(Answer):
    """A file that comes in parts."""

    id: str
    file_name: str
    size: int = Field(description="bytes of the whole file")
    part_bytes: int = Field(description="bytes of each part but the last")
    parts: int = Field(description="how many parts make the file")
    received: list[int] = Field(description="numbers of the parts that are there, until complete")
    complete: bool = Field(description="whether data sets and models can be made of it")
    sha256: str | None = Field(description="of the whole file, where it was said")
    created_at: Timestamp
    expires_at: Timestamp = Field(description="when it is forgotten; each part puts it off")


class Model(Answer):
    """A model."""

    id: str
    name: str
    status: Status
    created_at: Timestamp
    job_id: str | None = Field(description="the job that checks it, or that trained it")
    reasons: list[str]
    sha256: str | None
    manifest: Manifest | None = Field(description="architecture, input, output, how it was trained")
    findings: ProbeResult | None = Field(description="what trying it on probe images showed")
    note: str | None = Field(description="what was noted about it, see PATCH /v1/models/{model_id}")


class Progress(Answer):
    """How far a job is."""

    phase: str
    completed: int
    total: int
    unit: str
    eta_s: float | None = Field(description="estimated seconds until the end of this phase")


class JobFailure(Answer):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool = Field(description="whether the same request might succeed another time")


class Job(Answer):
    """A job of any kind."""

    id: str
    kind: JobKind
    status: JobStatus
    done: bool = Field(description="whether the status is final")
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    attempt: int = Field(description="how often a worker has taken it up")
    progress: Progress | None = Field(
        description="of a queued job: how far it was when its checkpoint was made, if it has one"
    )
    queue_position: int | None = Field(description="jobs ahead of it, while it is queued")
    waiting_for: str | None = Field(description="why a queued job cannot start yet")
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: JobFailure | None
    retry_of: str | None
    links: dict[str, str]


class Estimate(Answer):
    """What a job would cost, which was not made."""

    understood: list[str] = Field(description="what the request asks for, in words")
    images: int = Field(description="that are attacked, or trained on")
    trials: int | None = Field(None, description="of a sweep, whose passes and seconds are of all")
    attacks: list[str] = Field(description="of an audit, by their names")
    corruptions: int = Field(0, description="of an audit: kinds of corruption times severities")
    passes: int = Field(
        description="of single images through the network, forward and backward; of an audit with "
        "those of its checks and without those of bounds"
    )
    search_on: list[str] = Field(
        [], description="attacks by which an audit goes on where the gradient hides something"
    )
    most_passes: int | None = Field(
        None, description="where it does go on; null where no audit like this one does"
    )
    seconds: float | None = Field(
        description="of one worker, by what like jobs have taken; null where there was none"
    )
    most_seconds: float | None = Field(None, description="of `most_passes`")
    basis: str = Field(description="where the seconds come from")
    warnings: list[str] = Field([], description="what to know before it is started")


class JobEvent(Answer):
    """Something that happened to a job."""

    seq: int
    at: Timestamp
    type: str
    data: dict[str, Any]


class RankedExample(Answer):
    """One image of a ranking."""

    rank: int
    example_id: str
    score: float = Field(description=SCORE)
    label: str = Field(description="its class; of several all, with | between them")
    positive: bool | None = None


class RankedImage(StoredImage):
    """An image of a ranking, as its data set has it."""

    rank: int = Field(description="from 1, for the highest score")
    score: float = Field(description=SCORE)
    positive: bool | None = Field(description="null where no classes are positive")
    clean_rank: int | None = Field(description="its rank without the attack, where there is one")


class RankedImages(Answer):
    """Some images of a ranking, in order."""

    data: list[RankedImage]
    has_more: bool
    next_cursor: str | None = Field(description="pass it as `after` to get the next ones")
    total: int = Field(description="how many images fit what was asked for")
    examples: int = Field(description="how many images were ranked")
    positives: int | None = Field(description="how many of them are positive")
    cut: int | None = Field(description="what counts as found: the first so many")


class Place(Answer):
    """Where a score would stand in a ranking."""

    rank: int = Field(description="from 1: behind every image of at least this score")
    examples: int = Field(description="how many images were ranked")
    positives: int | None = Field(description="how many of them are positive")
    positives_before: int | None = Field(description="positives of at least this score")
    before: RankedImage | None = Field(description="the image right before it")
    behind: RankedImage | None = Field(description="the image right behind it")
    cut: int | None = Field(description="how many images count as the first, by default positives")
    boundary: float | None = Field(
        description="the score of the last of them: another image below it is not among the "
        "first; of one of the first k that is in the ranking itself, ask cut=k+1, as at rank k "
        "this is its own score"
    )


class ExampleScores(Answer):
    """One image of one task of an audit."""

    task: str | None = Field(None, description="its positive classes, joined by +")
    example_id: str
    target: int = Field(description="1 for a positive, 0 for a negative")
    clean: float = Field(description="logit without attack")
    attacks: dict[str, float] = Field(description="logit under each attack")
    cluster: str | None = Field(None, description="where the data set has clusters")


class Contender(Answer):
    """A model on a leaderboard, by its newest ranked audit, or else its newest."""

    rank: int | None = Field(description="null below the line, see `missing`")
    missing: list[str] = Field(
        description="what the audits with a rank have and this one lacks: attacks, trust checks"
    )
    model_id: str
    model_name: str
    job_id: str = Field(description="the audit")
    clean: APFigure
    worst_case: APFigure
    problem: str | None = Field(
        None, description="why there are no intervals: the content that they come from is lost"
    )
    to_leader: Difference | None = Field(
        description="worst-case AP minus the leader's, paired; null for the leader and below the "
        "line"
    )
    trust: Verdict | None = Field(description="whether the audit can be relied on")
    attacks: list[str]


NO_PIPELINE = "none"  # in the query of a leaderboard


class LeaderboardSetting(Answer):
    """What the audits of a leaderboard have in common."""

    positive: list[str] | None = Field(description="null: the mean over a task for each class")
    split: str | None
    norm: str
    epsilon: float
    pipeline: list[PipelineStep] = Field(description="through which they were attacked")
    sample: int | None = Field(description="examples sampled; null where all were audited")
    sample_seed: int | None = Field(description="by which they were; null where all were audited")


class Leaderboard(Answer):
    """Models compared on one data set, the highest worst-case AP first."""

    dataset_id: str
    setting: LeaderboardSetting | None = Field(
        description="of those that fit what was asked for the one with most models; null where no "
        "audit fits"
    )
    other_settings: list[LeaderboardSetting] = Field(
        description="the others that fit: ask for one by its fields, in a query"
    )
    contenders: list[Contender]


class Trial(Answer):
    """One training of a sweep."""

    number: int
    job_id: str = Field(description="the training job")
    status: JobStatus
    progress: Progress | None
    parameters: dict[str, Any] = Field(description="what it changes, by the paths of fields")
    clean_ap: float | None = Field(description="validation AP of its best epoch")
    robust_ap: float | None = Field(description="the same under attack")
    best_epoch: int | None
    model_id: str | None
    on_front: bool = Field(description="whether no other trial beats it at both APs")
    error: JobFailure | None


class SweepInfo(Answer):
    """A sweep, without its trials."""

    id: str
    name: str | None
    status: JobStatus = Field(
        description="queued until a trial runs; at the end succeeded if any trial has"
    )
    done: bool = Field(description="whether no trial runs or is to be made")
    created_at: Timestamp
    dataset_id: str
    planned: int = Field(description="trials in all")
    counts: dict[JobStatus, int] = Field(description="trials made so far, by status")
    # generators of clients name it by its title, and SweepRequest is the body of the POST
    request: dict[str, Any] = Field(
        title="Asked", description="the SweepRequest, with its defaults"
    )
    links: dict[str, str]


class Sweep(SweepInfo):
    """A sweep and its trials."""

    trials: list[Trial]
    best: int | None = Field(description="number of the trial of highest robust AP")
    front: list[int] = Field(
        description="numbers of the trials on the Pareto front of clean and robust AP"
    )


class ImageScore(Answer):
    """One image that was sent for scoring."""

    file_name: str | None = Field(description="of an image that came as a file")
    score: float = Field(description=SCORE)
    rank: int | None = Field(
        description="1 for the highest score of the request, ties in the order of the images; "
        "where `rank` was asked for"
    )


class ImageScores(Answer):
    """Scores in the order in which the images came."""

    model_id: str
    scores: list[ImageScore]


class SmallestChange(Answer):
    """How little of an image has to change for its score to fall below a bound.

    Found, not proven: a smaller change may exist. Pictures are PNG files in base64, of 8 bits a
    channel: what is scored are the floats.
    """

    model_id: str
    below: float = Field(description="the bound")
    size: float | None = Field(
        description="the largest change of a pixel, in [0, 1]; null where none was found, 0 where "
        "the image is below the bound as it is"
    )
    score: float = Field(description=f"of the changed image: {SCORE}")
    steps: int = Field(description="gradients that it was searched by")
    original: str = Field(description="the image as the model is given it")
    changed: str
    difference: str = Field(description="what changed, `magnified` times, around grey")
    magnified: float


class ApiKey(Answer):
    """An API key, without the key."""

    id: str
    name: str
    tenant: str
    scopes: list[str]
    created_at: Timestamp
    expires_at: Timestamp | None
    revoked_at: Timestamp | None


class NewApiKey(ApiKey):
    """An API key, shown this one time."""

    key: str


class WebhookAnswer(Answer):
    """Where to tell of the end of jobs."""

    id: str
    url: str
    events: list[str]
    created_at: Timestamp


class NewWebhook(WebhookAnswer):
    """A webhook, with its secret this one time."""

    secret: str = Field(description="signs what is sent, see standardwebhooks.com")


class Delivery(Answer):
    """An event for a webhook; `id` is the header `webhook-id`."""

    id: str
    event: str
    job_id: str
    status: Literal["pending", "delivered", "failed"]
    attempt: int = Field(description="how often it was sent")
    answered: int | None = Field(description="HTTP status of the last attempt")
    error: str | None = Field(description="why the last attempt had none")
    created_at: Timestamp
    attempted_at: Timestamp | None
    next_at: Timestamp | None = Field(description="when it is sent again, while it is pending")


class CatalogueEntry(Answer):
    """Something that can be asked for by name."""

    name: str
    description: str
    parameters: dict[str, Any] = Field(description="JSON schema, or figures")


class Liveness(Answer):
    """The process answers."""

    status: Literal["ok"] = "ok"


class WorkerInfo(Answer):
    """A worker that has been seen in the last seconds."""

    id: str
    queue: str
    sandbox: str = Field(
        description="how it opens uploads, and what they are kept from, for example "
        "`bubblewrap: files, network, processes, user namespaces, system calls, memory`"
    )
    seen_s_ago: float


class QueueInfo(Answer):
    """A queue of jobs, and whether workers take any from it."""

    name: Queue
    paused: bool = Field(description="workers take no job of it; what runs goes on")
    paused_at: datetime | None
    reason: str | None = Field(description="why it is paused, as whoever paused it said")
    queued: int = Field(description="jobs that wait, without parts of audits")
    running: int = Field(description="jobs and parts of audits that workers hold")


class Readiness(Answer):
    """Whether jobs will be worked on."""

    status: Literal["ok", "degraded"] = Field(
        description="degraded: requests are taken and kept, but something is missing"
    )
    database: Literal["ok"] = "ok"
    blobs: Literal["ok", "unavailable", "full"] = Field(description="the store of files")
    disk: Literal["ok", "unavailable", "full"] = Field(description="the disk of `ADAP_HOME`")
    broker: Literal["ok", "unreachable", "full"]
    scoring: Literal["ok", "unreachable", "none"] = Field(
        description="the process that scores single images; none where the settings name none"
    )
    workers: list[WorkerInfo]
    problems: list[str]


def dataset_answer(row: DatasetRow) -> Dataset:
    """A data set as the API shows it."""
    summary = None if row.summary is None else DatasetSummary.model_validate(row.summary)
    return Dataset(
        id=row.id,
        name=row.name,
        status=row.status.value,
        created_at=timestamp(row.created_at),
        job_id=row.job_id,
        reasons=row.reasons or [],
        sha256=row.content_sha256,
        summary=summary,
        positive=None if summary is None else plainly_positive(summary),
        note=row.note,
    )


def model_answer(row: ModelRow) -> Model:
    """A model as the API shows it."""
    ready = row.content_sha256 is not None
    return Model(
        id=row.id,
        name=row.name,
        status=row.status.value,
        created_at=timestamp(row.created_at),
        job_id=row.job_id,
        reasons=row.reasons or [],
        sha256=row.content_sha256,
        manifest=Manifest.model_validate(row.manifest) if ready else None,
        findings=None if row.findings is None else ProbeResult.model_validate(row.findings),
        note=row.note,
    )


def upload_answer(row: UploadRow, *, received: list[int]) -> Upload:
    """An upload as the API shows it."""
    return Upload(
        id=row.id,
        file_name=row.file_name,
        size=row.size,
        part_bytes=row.part_bytes,
        parts=uploads.parts(row),
        received=received,
        complete=row.blob_sha256 is not None,
        sha256=row.blob_sha256 or row.sha256,
        created_at=timestamp(row.created_at),
        expires_at=timestamp(row.expires_at),
    )


def job_answer(row: JobRow, *, queue_position: int | None, waiting_for: str | None) -> Job:
    """A job as the API shows it."""
    result = None
    if row.result is not None:
        result = {key: value for key, value in row.result.items() if key != "blobs"}
    return Job(
        id=row.id,
        kind=row.kind,
        status=row.status,
        done=row.finished_at is not None,
        created_at=timestamp(row.created_at),
        started_at=timestamp(row.started_at),
        finished_at=timestamp(row.finished_at),
        attempt=row.attempt,
        progress=None if row.progress is None else Progress.model_validate(row.progress),
        queue_position=queue_position,
        waiting_for=waiting_for,
        request=row.request,
        result=result,
        error=None if row.error is None else JobFailure.model_validate(row.error),
        retry_of=row.retry_of,
        links=_links(row),
    )


def _links(row: JobRow) -> dict[str, str]:
    links = {"self": f"/v1/jobs/{row.id}", "events": f"/v1/jobs/{row.id}/events"}
    if row.dataset_id is not None:
        links["dataset"] = f"/v1/datasets/{row.dataset_id}"
    # a training reads at most the model that it starts from; its result is another
    model_id = (row.result or {}).get("model_id") or row.model_id
    if model_id is not None:
        links["model"] = f"/v1/models/{model_id}"
    if "blobs" in (row.result or {}):
        links |= {name: path.format(id=row.id) for name, path in row.kind.about.links.items()}
    return links
