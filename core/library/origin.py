"""Where a report in one's own process comes from: hashes of model, images and configuration."""

import hashlib
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.attacks.holding import attacking
from adap.core.audit.drawing import drawing
from adap.core.audit.network import logits_of
from adap.core.config.audits import AuditConfig
from adap.core.library.examples import Examples
from adap.core.library.rankers import Model, Ready, hash_of_network
from adap.core.report import DatasetProvenance, ModelProvenance, Provenance


def provenance_of(
    model: Model,
    made: Ready,
    pixels: NDArray[np.float32],
    examples: Examples,
    surrogate: nn.Module | None,
    other: Ready | None,
    config: AuditConfig,
) -> Provenance:
    """What was audited, with what, and by which versions."""
    with torch.no_grad():
        if isinstance(model, nn.Module):
            sha256 = hash_of_network(model)
        else:
            answered = made.scorer.raw(torch.from_numpy(pixels).to(made.device))
            sha256 = hash_of(made.name.encode(), answered.cpu().numpy().tobytes())
    data = examples.sha256()
    return Provenance(
        model=_model(made, sha256),
        dataset=DatasetProvenance(id=f"ds_{data[:26]}", name="images", sha256=data, split=None),
        surrogate=(
            None
            if other is None or surrogate is None
            else _model(other, hash_of_network(surrogate))
        ),
        config=config.as_json(),
        config_sha256=config.sha256(),
        scores_sha256="",  # not measured yet
        seed=config.seed,
        versions={
            "adap": version("adap-audit"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        device=str(made.device),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _model(made: Ready, sha256: str) -> ModelProvenance:
    answers = made.scorer.answers
    return ModelProvenance(
        id=f"mdl_{sha256[:26]}",
        name=made.name,
        sha256=sha256,
        architecture=made.name,
        origin="in process",
        outputs=None if answers is None else answers.count,
    )


def reading_of(made: Ready) -> bytes:
    """How pixels become the model's input and its outputs a score: what else a score hangs on."""
    pixels = [None if v is None else v.tolist() for v in (made.scorer.mean, made.scorer.std)]
    return repr((made.scorer.answers, pixels)).encode()


def hash_of_surrogate(
    surrogate: nn.Module | None, other: Ready | None, pixels: NDArray[np.float32]
) -> str | None:
    """Of its weights and of what it answers, as none of its scores is kept to compare with."""
    if surrogate is None or other is None:
        return None
    with attacking(other.scorer), drawing(other.device, "surrogate"):
        answered = logits_of(other.scorer, torch.from_numpy(pixels).to(other.device))
    return hash_of(hash_of_network(surrogate).encode(), reading_of(other), answered.tobytes())


def hash_of(*parts: bytes) -> str:
    """SHA-256 of the parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
