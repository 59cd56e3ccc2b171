"""Requests and their configurations, each a frozen class with bounds.

One class is the body of the HTTP call, the JSON column of the job and the argument of the pipeline.

Every field has a bound and a description, unknown fields are refused, and nothing is coerced: a
string is never read as a number, but for fractions of pixels. This package imports no torch, so the
web process can use it.

Pixels are in [0, 1] everywhere, and so are `epsilon` and `step_size`: 0.0314, or "8/255".
"""

from adap.core.config.attacks import PRESETS, Attack
from adap.core.config.audits import AuditConfig, AuditRequest
from adap.core.config.base import SPLITS
from adap.core.config.data import DatasetOptions, EachClass, Task
from adap.core.config.methods import Method
from adap.core.config.rankings import RankingRequest
from adap.core.config.threats import Norm, Threat
from adap.core.config.training import TrainingConfig, TrainingRequest

__all__ = [
    "PRESETS",
    "SPLITS",
    "Attack",
    "AuditConfig",
    "AuditRequest",
    "DatasetOptions",
    "EachClass",
    "Method",
    "Norm",
    "RankingRequest",
    "Task",
    "Threat",
    "TrainingConfig",
    "TrainingRequest",
]
