"""Inputs that several pipelines share: the device, and the scorer of a stored model."""

from functools import lru_cache
from pathlib import Path

import torch

from adap.models import loading
from adap.models.wrappers import Scorer
from adap.worker.pipelines.requests import AnyRequest
from adap.worker.work import Work


def device(work: Work[AnyRequest]) -> str:
    if work.device != "auto":
        return work.device
    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=4)
def load_scorer(path: Path, device: str, positive: tuple[str, ...] | None = None) -> Scorer:
    """A stored model for a task; kept between the shards of an audit, as blobs never change."""
    scorer, _ = loading.load(path, None, device=device, positive=positive)
    return scorer
