"""The tables. Times are seconds since the epoch, on the database's clock (`store.database.now`)."""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Double,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    String,
    UniqueConstraint,
    and_,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from adap.store.database import now
from adap.store.kinds import QUEUES as QUEUES
from adap.store.kinds import JobKind as JobKind
from adap.store.traces import traceparent

LOCAL_TENANT = "local"


class JobStatus(StrEnum):
    """Where a job is. Terminal rows never change again."""

    QUEUED = "queued"  # waiting for a worker
    RUNNING = "running"  # a worker holds its lease
    CANCELLING = "cancelling"  # its worker was asked to stop
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
LIVE = frozenset(JobStatus) - TERMINAL
WORKED_ON = frozenset({JobStatus.RUNNING, JobStatus.CANCELLING})


class AssetStatus(StrEnum):
    """Where a data set or a model is."""

    VALIDATING = "validating"
    READY = "ready"
    REJECTED = "rejected"


class DeliveryStatus(StrEnum):
    """Where the delivery of an event to a webhook is."""

    PENDING = "pending"  # to be sent, or sent again
    DELIVERED = "delivered"  # answered by 2xx
    FAILED = "failed"  # given up, until somebody asks for it again


def _by_value(enum: type[StrEnum]) -> Enum:
    """Store the value as text: adding a state is then no migration."""
    return Enum(enum, native_enum=False, length=32, values_callable=lambda e: [m.value for m in e])


class Table(DeclarativeBase):
    """Base of the tables, with names for every constraint."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        float: Double,
        int: BigInteger,
        str: String,
        JobStatus: _by_value(JobStatus),
        JobKind: _by_value(JobKind),
        AssetStatus: _by_value(AssetStatus),
        DeliveryStatus: _by_value(DeliveryStatus),
    }


class Asset:
    """What data sets and models have in common: an upload that is checked, then content."""

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    status: Mapped[AssetStatus]
    created_at: Mapped[float] = mapped_column(default=now())
    reasons: Mapped[list[str] | None]  # why it was rejected
    # what came; dropped once it was converted
    upload_sha256: Mapped[str | None] = mapped_column(index=True)
    content_sha256: Mapped[str | None] = mapped_column(index=True)  # the stored form, once ready
    stored_bytes: Mapped[int | None]  # of whichever of the two there is
    job_id: Mapped[str | None]  # the job that checks or makes it
    note: Mapped[str | None]  # of whoever looks after it
    deleted_at: Mapped[float | None]  # the row stays, as reports of old jobs refer to it


class DatasetRow(Asset, Table):
    """A data set."""

    __tablename__ = "datasets"

    summary: Mapped[dict[str, Any] | None]  # counts, classes, size


class ModelRow(Asset, Table):
    """A model."""

    __tablename__ = "models"

    manifest: Mapped[dict[str, Any] | None]
    findings: Mapped[dict[str, Any] | None]  # of the probe at intake


class JobRow(Table):
    """A job: the row is the job, a broker message is only a doorbell."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    kind: Mapped[JobKind]
    queue: Mapped[str]
    status: Mapped[JobStatus] = mapped_column(default=JobStatus.QUEUED)
    request: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    result_bytes: Mapped[int | None]  # of the files that it made, until they are removed
    error: Mapped[dict[str, Any] | None]
    progress: Mapped[dict[str, Any] | None]
    created_at: Mapped[float] = mapped_column(default=now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]

    attempt: Mapped[int] = mapped_column(default=0)  # grows with every claim: the fencing token
    lost: Mapped[int] = mapped_column(default=0)  # attempts whose worker died
    not_before: Mapped[float] = mapped_column(default=0.0)  # back-off after a lost attempt
    worker: Mapped[str | None]
    lease_expires_at: Mapped[float | None]
    last_event: Mapped[int] = mapped_column(default=0)
    checkpoint_sha256: Mapped[str | None]
    checkpoint_epoch: Mapped[int | None]  # how many epochs were done then

    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    surrogate_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))  # of a shard
    shard: Mapped[int | None]
    retry_of: Mapped[str | None]
    traceparent: Mapped[str | None] = mapped_column(default=traceparent)  # of what made it

    __table_args__ = (
        UniqueConstraint("parent_id", "shard"),
        Index(None, "status", "queue", "tenant", "id", "parent_id"),
        Index(None, "dataset_id"),
        Index(None, "model_id"),
        *(
            Index(
                None,
                *columns,
                sqlite_where=text(f"{columns[-1]} IS NOT NULL"),
                postgresql_where=text(f"{columns[-1]} IS NOT NULL"),
            )
            for columns in (
                ("queue", "tenant", "started_at"),
                ("queue", "tenant", "worker"),
                ("tenant", "result_bytes"),
                ("retry_of",),
                ("checkpoint_sha256",),
            )
        ),
    )


Index("ix_jobs_tenant_newest", JobRow.tenant, JobRow.id.desc())


class JobEventRow(Table):
    """One thing that happened to a job; `seq` has no gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(default=now())
    type: Mapped[str]
    data: Mapped[dict[str, Any]]


class SweepRow(Table):
    """A sweep: trainings that differ in some fields. What became of it is what became of them."""

    __tablename__ = "sweeps"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str | None]
    created_at: Mapped[float] = mapped_column(default=now())
    cancelled_at: Mapped[float | None]
    request: Mapped[dict[str, Any]]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))  # as of its jobs
    planned: Mapped[int]  # trials in all
    made: Mapped[int] = mapped_column(default=0)  # trials so far, and the number of the next

    __table_args__ = (Index(None, "tenant", "id"), Index(None, "dataset_id"))

    @hybrid_property
    def unfinished(self) -> bool:
        """Whether there are trials still to be made."""
        return self.cancelled_at is None and self.made < self.planned

    @unfinished.inplace.expression
    @classmethod
    def _unfinished(cls) -> ColumnElement[bool]:
        return and_(cls.cancelled_at.is_(None), cls.made < cls.planned)


class TrialRow(Table):
    """One training of a sweep: an ordinary job."""

    __tablename__ = "trials"

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    parameters: Mapped[dict[str, Any]]  # values by the paths of fields


class ScoresRow(Table):
    """Scores that need not be computed again, by the hash of all that they depend on."""

    __tablename__ = "scores"

    key: Mapped[str] = mapped_column(primary_key=True)
    blob_sha256: Mapped[str] = mapped_column(index=True)
    used_at: Mapped[float] = mapped_column(default=now())


class UploadRow(Table):
    """A file that comes in parts, and then the blob that they make."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    file_name: Mapped[str]
    size: Mapped[int]
    part_bytes: Mapped[int]
    sha256: Mapped[str | None]  # of the whole, where it was said beforehand
    blob_sha256: Mapped[str | None] = mapped_column(index=True)  # the whole, once it is complete
    created_at: Mapped[float] = mapped_column(default=now())
    expires_at: Mapped[float] = mapped_column(index=True)
    used_at: Mapped[float | None]  # when a data set or a model was made of it

    __table_args__ = (Index(None, "tenant", "sha256"),)


class UploadPartRow(Table):
    """One part that has come whole."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    staged: Mapped[str] = mapped_column(index=True)  # its name in the blob store


class IdempotencyRow(Table):
    """What a POST with this Idempotency-Key was answered with."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]  # of the path and the content
    status: Mapped[int]
    location: Mapped[str | None]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(default=now(), index=True)


class WebhookRow(Table):
    """Where a tenant wants to be told of the end of jobs. Its secret is made from a key."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(index=True)
    url: Mapped[str]
    events: Mapped[list[str]]
    key: Mapped[str]  # the name of the key that its secret is made from
    created_at: Mapped[float] = mapped_column(default=now())


class DeliveryRow(Table):
    """An event for one webhook: written in the transaction that ends the job, sent afterwards."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    event: Mapped[str]
    payload: Mapped[str]  # the very text that is signed
    status: Mapped[DeliveryStatus] = mapped_column(default=DeliveryStatus.PENDING)
    attempt: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[float] = mapped_column(default=now())  # while one is being sent: its lease
    answered: Mapped[int | None]  # HTTP status of the last attempt
    error: Mapped[str | None]  # why the last attempt had none
    created_at: Mapped[float] = mapped_column(default=now())
    attempted_at: Mapped[float | None]

    __table_args__ = (
        Index(None, "webhook_id", "status", "next_at"),
        Index(None, "webhook_id", "id"),
    )


class JobFileRow(Table):
    """A file that the result of a job names: what tells that somebody still needs it."""

    __tablename__ = "job_files"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True, index=True)


class CondemnedRow(Table):
    """A file of the blob store that no row referred to at `since`, or that is `gone` since."""

    __tablename__ = "condemned"

    name: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[float] = mapped_column(default=now(), index=True)
    gone: Mapped[bool] = mapped_column(default=False)


class FreedRow(Table):
    """Bytes that a tenant let go of at a time; see `adap.store.freed`."""

    __tablename__ = "freed"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    size: Mapped[int]
    since: Mapped[float] = mapped_column(default=now())

    __table_args__ = (Index(None, "tenant", "since"),)


class ChoreRow(Table):
    """When a chore that one process does for all is due again."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    due_at: Mapped[float]


class QueueRow(Table):
    """A queue that a worker has taken from, or that an operator has paused."""

    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[float | None]  # while it is
    reason: Mapped[str | None]


class WorkerRow(Table):
    """A worker that was alive at `seen_at`."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str]
    sandbox: Mapped[str]
    seen_at: Mapped[float] = mapped_column(default=now())


class ApiKeyRow(Table):
    """An API key; only the hash of its 256 random bits is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    scopes: Mapped[list[str]]
    sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[float] = mapped_column(default=now())
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
