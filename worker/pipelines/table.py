"""The work of every kind of job by name, as plain functions of its input files.

A pipeline reads the files it is given, writes files into its folder, and returns a result whose
`files` names those that the worker shall keep. It knows no database and no broker. Opening a data
set needs no torch and stands in `adap.worker.intake.pipeline`.
"""

from collections.abc import Callable

from adap.worker.pipelines.audits import audit_checks, audit_report, audit_shard
from adap.worker.pipelines.inputs import Result
from adap.worker.pipelines.models import export, try_device, validate_model
from adap.worker.pipelines.rankings import rank
from adap.worker.pipelines.training import train
from adap.worker.work import Reporter, Work

PIPELINES: dict[str, Callable[[Work, Reporter], Result]] = {
    "validate_model": validate_model,
    "train": train,
    "audit_shard": audit_shard,
    "audit_checks": audit_checks,
    "audit_report": audit_report,
    "rank": rank,
    "export": export,
    "try_device": try_device,
}
