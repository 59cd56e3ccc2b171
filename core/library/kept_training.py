"""The folder of a training: its checkpoint, and what the training was made from.

A call goes on from what a folder holds where both start from the same; else it is refused, with
what differs, so that nothing old comes back for something new. What hashes cannot see (an edited
forward, an attribute, a global) is seen by scoring a few images by the weights that are kept.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.attacks.holding import in_eval_mode
from adap.core.audit.drawing import drawing
from adap.core.audit.network import logits_of
from adap.core.config.training import TrainingConfig
from adap.core.datasets import Picked
from adap.core.errors import ConfigError
from adap.core.library.examples import ROWS, Part
from adap.core.library.rankers import Ranker
from adap.core.training.resuming import load_tensors, refuse_other_config, refuse_other_tensors

CHECKPOINT = "checkpoint.pt"
ROUNDING = 1e-3  # of the largest score: by so much another machine may score otherwise
WAY_OUT = "name another folder=, or remove the file to start anew"


@dataclass(frozen=True)
class Start:
    """What a training starts from, beside its configuration: hashes, by what they are of."""

    network: str
    mean_and_std: str
    reading_of_the_outputs: str
    training_images: str
    training_labels: str
    validation_images: str
    validation_labels: str
    layers_to_train: str
    initial_weights: str
    initial_estimators: str


def start_of(scorer: Ranker, objective: nn.Module, train: Part, held_out: Part) -> Start:
    """What a training of this model by this objective on these examples starts from."""
    trained = [name for name, weight in scorer.named_parameters() if weight.requires_grad]
    pixels = [None if value is None else value.tolist() for value in (scorer.mean, scorer.std)]
    return Start(
        network=_hash_of([str(scorer.network).encode()]),
        mean_and_std=_hash_of([repr(pixels).encode()]),
        reading_of_the_outputs=_hash_of([repr(scorer.answers).encode()]),
        training_images=_hash_of_images(train.images),
        training_labels=_hash_of([train.targets.tobytes()]),
        validation_images=_hash_of_images(held_out.images),
        validation_labels=_hash_of([held_out.targets.tobytes()]),
        layers_to_train=_hash_of([repr(trained).encode()]),
        initial_weights=_hash_of_tensors(scorer.state_dict()),
        initial_estimators=_hash_of_tensors(objective.state_dict()),
    )


class KeptTraining:
    """A training whose every epoch is kept in a folder."""

    def __init__(
        self,
        folder: Path,
        scorer: Ranker,
        objective: nn.Module,
        start: Start,
        *,
        images: NDArray[np.float32],
    ) -> None:
        """images: (n, C, H, W) in [0, 1], a few on which networks are compared."""
        self.path = folder / CHECKPOINT
        self._images = torch.from_numpy(images)
        self._scorer, self._objective = scorer, objective
        self._start = start
        self._before = {
            of: {name: value.clone() for name, value in module.state_dict().items()}
            for of, module in (("network", scorer), ("objective", objective))
        }

    def checkpoint(self, config: TrainingConfig) -> dict[str, Any] | None:
        """What to go on from, or None in a folder that holds no training.

        The weights may be those that the training began with, or those that it left in the model.
        Raises ConfigError for a training of anything else, and for a file that is none.
        """
        if not self.path.exists():
            return None
        found = self._load()
        try:
            refuse_other_config(found, config)
        except ConfigError as error:
            raise ConfigError(f"{error}: {WAY_OUT}") from error
        first = Start(**found["start"])
        left = {
            "initial_weights": [found["network"], found["best_weights"]],
            "initial_estimators": [found["objective"]],
        }
        start = self._start
        for name, states in left.items():
            if getattr(start, name) in map(_hash_of_tensors, states):
                start = replace(start, **{name: getattr(first, name)})
        other = [
            field.name.replace("_", " ")
            for field in fields(Start)
            if getattr(start, field.name) != getattr(first, field.name)
        ]
        if other:
            raise ConfigError(
                f"expected to go on with the training that is kept in {self.path.parent}, got "
                f"other {', '.join(other)}: {WAY_OUT}"
            )
        self._refuse_other_scores(found)
        self._start = first
        return found

    def save(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint of the loop, whole or not at all."""
        part = self.path.with_name(f"{CHECKPOINT}.part")
        scored = torch.from_numpy(self._scores())
        torch.save({**state, "start": asdict(self._start), "scored": scored}, part)
        part.replace(self.path)

    def _refuse_other_scores(self, found: Mapping[str, Any]) -> None:
        """Raise ConfigError where the weights that are kept do not score here as they did there."""
        refuse_other_tensors("network", found["network"], self._scorer)
        load_tensors(self._scorer, found["network"])
        try:
            now, then = self._scores(), found["scored"].numpy()
        finally:
            load_tensors(self._scorer, self._before["network"])
        change = np.abs(now - then).max()
        if not change <= ROUNDING * np.abs(then).max():
            raise ConfigError(
                f"expected the network whose training is kept in {self.path.parent}, got one that "
                f"scores images otherwise with the weights of that one, by up to {change:.3g}: its "
                f"code, or something beside its weights, is another; {WAY_OUT}"
            )

    def _scores(self) -> NDArray[np.float64]:
        where = next(self._scorer.parameters()).device
        with in_eval_mode(self._scorer), drawing(where, CHECKPOINT):
            return logits_of(self._scorer, self._images.to(where))

    @contextmanager
    def whole_epochs(self) -> Iterator[None]:
        """Whatever ends the block: weights and estimators are of a kept epoch, or the first."""
        try:
            yield
        except BaseException:
            kept = self._load() if self.path.exists() else self._before
            load_tensors(self._scorer, kept["network"])
            load_tensors(self._objective, kept["objective"])
            raise

    def _load(self) -> dict[str, Any]:
        try:
            found: Any = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever reading a stranger's file ends in
            raise ConfigError(
                f"expected a checkpoint of adap.fit in {self.path}, got a file that is none: "
                f"{WAY_OUT}"
            ) from error
        if not isinstance(found, dict) or set(found.get("start", ())) != {
            field.name for field in fields(Start)
        }:
            raise ConfigError(
                f"expected a checkpoint of this version of adap.fit in {self.path}, got another "
                f"file: {WAY_OUT}"
            )
        return found


def _hash_of(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _hash_of_images(images: Picked) -> str:
    starts = range(0, len(images), ROWS)
    parts = (np.ascontiguousarray(images[start : start + ROWS]).data for start in starts)
    return _hash_of([f"{images.shape} {images.dtype}".encode(), _hash_of(parts).encode()])


def _hash_of_tensors(state: Mapping[str, Any]) -> str:
    """Of the names and values of a state; what is no tensor is left out."""
    return _hash_of(
        part
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
        for part in (
            name.encode(),
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data,
        )
    )
