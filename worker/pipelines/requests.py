"""The requests of the pipelines, as frozen values that cross the pipe from a worker to its child.

A request says by its type which pipeline it is for. It is JSON only on the pipe itself, see
`adap.worker.work.Work`. This module imports no torch, so that opening an upload starts in no time.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from adap.core.audit.leakage import HeldOut
from adap.core.audit.plan import ChecksPiece, Piece, ScoresPiece
from adap.core.config.audits import AuditConfig
from adap.core.config.base import Config
from adap.core.config.data import AnyTask, DatasetOptions
from adap.core.config.rankings import RankingRequest
from adap.core.config.training import TrainingConfig
from adap.core.report import DatasetProvenance, ModelProvenance, ReportValue
from adap.core.statement import Statement
from adap.models.header import Declaration
from adap.models.limits import CostLimits
from adap.worker.intake.limits import IntakeLimits


class DatasetCheck(Config):
    """Open an uploaded data set; its input is `upload`."""

    pipeline: Literal["validate_dataset"] = "validate_dataset"
    options: DatasetOptions = DatasetOptions()
    limits: IntakeLimits = IntakeLimits()


class ModelCheck(Config):
    """Open an uploaded model; its input is `upload`."""

    pipeline: Literal["validate_model"] = "validate_model"
    declared: Declaration | None = Field(None, description="what the upload says about the file")
    limits: CostLimits = CostLimits()


class StartModel(ReportValue):
    """Which model that is."""

    id: str
    name: str
    sha256: str
    architecture: str


class Start(Config):
    """The model that a training starts from."""

    model: StartModel
    fresh_head: bool
    seen: list[str] = Field(description="SHA-256 of the data sets that it was trained on")


class TrainedOn(ReportValue):
    """The data set of a training."""

    id: str
    name: str
    sha256: str


class Training(Config):
    """Train on `dataset`, from the inputs `warm_start` and `checkpoint` where there are any."""

    pipeline: Literal["train"] = "train"
    config: TrainingConfig
    task: AnyTask
    sample: int | None
    devices: int = 1
    warm_start: Start | None
    dataset: TrainedOn
    job_id: str


class AuditScores(Config):
    """Measure a piece of an audit; its inputs are `dataset`, `model`, perhaps `surrogate`, and the
    columns that are known already."""

    pipeline: Literal["audit_shard"] = "audit_shard"
    piece: ScoresPiece
    known: dict[str, str] = Field(description="SHA-256 of the columns that are known, by name")


class AuditChecks(Config):
    """Check the audit of one task; its inputs are those of the scores."""

    pipeline: Literal["audit_checks"] = "audit_checks"
    piece: ChecksPiece


class AuditReport(Config):
    """Join the pieces of an audit, in their order; its inputs are `dataset` and their files."""

    pipeline: Literal["audit_report"] = "audit_report"
    config: AuditConfig
    pieces: list[Piece]
    model: ModelProvenance
    surrogate: ModelProvenance | None
    dataset: DatasetProvenance
    trained_on: list[HeldOut | None] | None = Field(
        None,
        description="data sets that the model was trained on among the inputs, if any is said, and "
        "how each held out what chose the epoch, where it is known",
    )
    missing: int = Field(0, description="of these not among the inputs, as they are not here")
    statement: Statement | None = None


class Ranking(Config):
    """Rank a split of `dataset` by `model`."""

    pipeline: Literal["rank"] = "rank"
    config: RankingRequest
    split: Literal["train", "validation", "test"] | None


class Export(Config):
    """Write `model` as ONNX."""

    pipeline: Literal["export"] = "export"


class DeviceTrial(Config):
    """Compute something on the device."""

    pipeline: Literal["try_device"] = "try_device"


AnyRequest = Annotated[
    DatasetCheck
    | ModelCheck
    | Training
    | AuditScores
    | AuditChecks
    | AuditReport
    | Ranking
    | Export
    | DeviceTrial,
    Field(discriminator="pipeline"),
]
REQUESTS: TypeAdapter[AnyRequest] = TypeAdapter(AnyRequest)
