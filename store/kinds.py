"""The kinds of job, and all that the service must know of each beside the work itself.

How a kind is prepared and published stands in `adap.worker.kinds`, which knows pipelines; a test
keeps both tables equal to the list of kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args

Queue = Literal["compute", "intake"]
QUEUES = get_args(Queue)


class JobKind(StrEnum):
    """What a job does."""

    VALIDATE_DATASET = "validate_dataset"
    VALIDATE_MODEL = "validate_model"
    TRAIN = "train"
    AUDIT = "audit"
    AUDIT_SHARD = "audit_shard"
    RANK = "rank"
    EXPORT = "export"

    @property
    def about(self) -> "Kind":
        """What the service knows of this kind."""
        return KINDS[self]

    @property
    def queue(self) -> Queue:
        """Which workers do it."""
        return self.about.queue


@dataclass(frozen=True)
class Kind:
    """What the service knows of a kind of job."""

    title: str
    """What pages call a job of it."""
    noun: str
    """What sentences call its result."""
    queue: Queue = "compute"
    """What opens files from outside has a queue of its own, so that no training delays it."""
    own_files: bool = False
    """Whether the bytes of its files are its own: not a data set's, a model's or kept scores."""
    retried: bool = False
    """Whether its page offers to do it again."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Where the files are that it made: name to path, with the job's id for {id}."""


KINDS: Mapping[JobKind, Kind] = {
    JobKind.VALIDATE_DATASET: Kind("Check of a data set", "check", queue="intake"),
    JobKind.VALIDATE_MODEL: Kind("Check of a model", "check", queue="intake"),
    JobKind.TRAIN: Kind("Training", "training", retried=True),
    JobKind.AUDIT: Kind(
        "Audit",
        "audit",
        own_files=True,
        retried=True,
        links={
            "report": "/v1/audits/{id}/report",
            "scores": "/v1/audits/{id}/scores",
            "images": "/v1/audits/{id}/images",
        },
    ),
    JobKind.AUDIT_SHARD: Kind("Part of an audit", "part of an audit"),
    JobKind.RANK: Kind(
        "Ranking",
        "ranking",
        own_files=True,
        retried=True,
        links={"ranking": "/v1/rankings/{id}", "images": "/v1/rankings/{id}/images"},
    ),
    # takes seconds, and somebody waits for it
    JobKind.EXPORT: Kind("Export to ONNX", "export", queue="intake", own_files=True),
}
