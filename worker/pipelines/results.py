"""The results of the pipelines, as frozen values that cross the pipe from a child to its worker.

A result names the files that the worker shall keep, each by the name under which it is published.
It is JSON only on the pipe itself, see `adap.worker.child`: what a child that opened a stranger's
file answers is read as one of these, or not at all. This module imports no torch.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator

from adap.core.report import APFigure, ReportValue, ThresholdResult, WorstCase
from adap.core.resolve import DatasetSummary
from adap.models.header import Manifest, ProbeResult


class Made(ReportValue):
    """What a pipeline made: files in its folder, by the names under which they are published."""

    files: dict[str, str] = Field(default_factory=dict)


class Rejected(Made):
    """An upload that is refused, with everything that is wrong with it."""

    result: Literal["rejected"] = "rejected"
    reasons: list[str]

    @field_validator("reasons", mode="before")
    @classmethod
    def _printable(cls, reasons: list[str]) -> list[str]:
        # they may quote names of files, which need not be text
        return [reason.encode("utf-8", "backslashreplace").decode() for reason in reasons]


class DatasetOpened(Made):
    """An uploaded data set in the stored form."""

    result: Literal["dataset"] = "dataset"
    summary: DatasetSummary


class ModelOpened(Made):
    """An uploaded model in the stored form."""

    result: Literal["model"] = "model"
    manifest: Manifest
    findings: ProbeResult


class Trained(Made):
    """A model that the service trained; `manifest.training` says how it went."""

    result: Literal["training"] = "training"
    manifest: Manifest

    @property
    def summary(self) -> dict[str, Any]:
        """How it went: plain JSON, as it travels in the model's file."""
        return self.manifest.training or {}


class PieceMeasured(Made):
    """A piece of an audit: its columns, or its checks."""

    result: Literal["piece"] = "piece"
    known: dict[str, str] = Field({}, description="SHA-256 of the columns that were known before")


class TaskSummary(ReportValue):
    """Two figures of a task."""

    positive: list[str]
    clean: APFigure
    worst_case: WorstCase


class AuditSummary(ReportValue):
    """The figures of an audit that are shown beside it; the report has them all."""

    clean_ap: float
    worst_case_ap: float
    attacks: dict[str, float] = Field(description="AP under each, by its name or label")
    certified_floor: float | None
    chance: float
    floor: float
    trust: str | None
    thresholds: list[ThresholdResult]
    warnings: list[str]
    tasks: list[TaskSummary]


class AuditJoined(Made):
    """The report of an audit."""

    result: Literal["audit"] = "audit"
    summary: AuditSummary


class RankingSummary(ReportValue):
    """How many images were ranked."""

    examples: int


class Ranked(Made):
    """A ranking, in every form that it is written in."""

    result: Literal["ranking"] = "ranking"
    summary: RankingSummary


class ExportSummary(ReportValue):
    """How far the exported model is from the stored one."""

    onnx_difference: float


class Exported(Made):
    """A stored model as ONNX."""

    result: Literal["export"] = "export"
    summary: ExportSummary


class DeviceTried(Made):
    """Whether the device computes."""

    result: Literal["device"] = "device"
    works: bool


AnyResult = Annotated[
    Rejected
    | DatasetOpened
    | ModelOpened
    | Trained
    | PieceMeasured
    | AuditJoined
    | Ranked
    | Exported
    | DeviceTried,
    Field(discriminator="result"),
]
RESULTS: TypeAdapter[AnyResult] = TypeAdapter(AnyResult)
