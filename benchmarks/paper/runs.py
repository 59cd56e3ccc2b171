"""Trainings and evaluations of the paper's experiments, each a value with a hash.

A piece is described by everything that its result depends on, so equal hashes are equal results:
tables share what they have in common, and a second start goes on where the first one stopped.
"""

import hashlib
import json
from typing import Literal

from pydantic import Field, model_validator

from adap.core.config.base import Config
from adap.core.config.threats import EPSILON_PAPER
from adap.core.config.training import TrainingConfig


class DataSpec(Config):
    """Which examples: as many of each class as there are, from the front of a seeded shuffle."""

    source: str = Field(description="see `benchmarks.paper.data.load`")
    positive: list[str]
    seed: int = Field(description="moves the split into training and validation")
    train: int | None = Field(None, description="training examples, None for all there are")
    validation: int | None = None
    test: int | None = None


class Training(Config):
    """One network: trained from scratch, or from another one with a fresh last layer."""

    data: DataSpec
    network: str = Field(description="a key of `benchmarks.paper.networks.NETWORKS`")
    config: TrainingConfig
    start: "Training | None" = None
    device: Literal["cpu", "cuda"] = "cpu"


class Evaluation(Config):
    """AP on the test images, clean and attacked as in Tables 2 to 4."""

    training: Training
    epoch: Literal["best", "last"] = "best"
    surrogate: Training | None = Field(None, description="the black-box attacker's own network")
    epsilon: float = EPSILON_PAPER
    attacks: tuple[Literal["pgd", "apgd", "black_box"], ...] = ("pgd", "apgd")

    @model_validator(mode="after")
    def _black_box_has_an_attacker(self) -> "Evaluation":
        if ("black_box" in self.attacks) != (self.surrogate is not None):
            raise ValueError("expected a surrogate with the black-box attack, and only with it")
        return self


Piece = Training | Evaluation


def digest(piece: Piece) -> str:
    """A name for the piece: equal exactly where everything its result depends on is equal."""
    text = json.dumps([type(piece).__name__, piece.as_json()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
