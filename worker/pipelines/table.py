"""The work of every kind of job by the type of its request, as plain functions of its input files.

A pipeline reads the files it is given, writes files into its folder, and returns a frozen result
whose `files` names those that the worker shall keep. It knows no database and no broker. Opening a
data set needs no torch and stands in `adap.worker.intake.pipeline`.
"""

from collections.abc import Callable
from typing import Any

from adap.worker.pipelines import requests
from adap.worker.pipelines.audits import check_piece, join_pieces, measure_piece
from adap.worker.pipelines.models import export, try_device, validate_model
from adap.worker.pipelines.rankings import rank
from adap.worker.pipelines.requests import AnyRequest
from adap.worker.pipelines.results import AnyResult
from adap.worker.pipelines.training import train
from adap.worker.work import Reporter, Work

PIPELINES: dict[type[AnyRequest], Callable[[Work[Any], Reporter], AnyResult]] = {
    requests.ModelCheck: validate_model,
    requests.Training: train,
    requests.AuditScores: measure_piece,
    requests.AuditChecks: check_piece,
    requests.AuditReport: join_pieces,
    requests.Ranking: rank,
    requests.Export: export,
    requests.DeviceTrial: try_device,
}
