"""What the images of an audit show of themselves: their values, and which of them a model may have
been trained on, found by their pixels. No torch.

Equal pixels are found wherever they came from and whatever their names are; an image that was
scaled, cropped or compressed anew is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adap.core.config.base import SPLITS, Config, Split
from adap.core.datasets import ImageSet
from adap.core.report import AuditedImages
from adap.core.training.splitting import training_parts

ROWS = 1024  # read at once


class HeldOut(Config):
    """How a training drew what it was trained on and what chose its epoch."""

    fraction: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0, lt=2**31)
    sample: int | None = Field(None, ge=1)


@dataclass(frozen=True)
class Learned:
    """A data set that a model was trained on; held_out is None where nobody knows."""

    image_set: ImageSet
    held_out: HeldOut | None = None

    def parts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that were trained on, and those that chose the epoch; a test split is neither.

        Where nobody knows which were held out, all count as trained on.
        """
        images = self.image_set
        trains = images.splits is None or images.has_split("train")
        if self.held_out is not None and trains:
            return training_parts(images, **self.held_out.model_dump())
        rows = images.in_split(None)
        if images.splits is not None:
            rows = np.flatnonzero(images.splits != SPLITS.index("test"))
            chosen = np.flatnonzero(images.splits == SPLITS.index("validation"))
            if len(chosen):
                return np.setdiff1d(rows, chosen), chosen
        return rows, rows[:0]


@dataclass(frozen=True)
class Leakage:
    """How many of the audited images are among those that a model may have learned from."""

    examples: int
    across_splits: int | None
    """Of them equal to an image of another split; None where no split is audited."""
    seen: int | None
    """Of them equal to one that the model was trained on; None where nothing says on what."""
    chosen: int | None = None
    """Of the others equal to one by which its epoch was chosen; None as above."""
    missing: int = 0
    """Data sets that the model was trained on and that are not here."""
    equal: int = 0
    """Of the audited images equal to an earlier one of them."""


def find_leakage(
    audited: ImageSet,
    split: Split | None,
    *,
    trained_on: Sequence[Learned] | None,
    missing: int = 0,
) -> Leakage:
    """Compare the audited images with the other splits, and with what the model was trained on.

    trained_on: None where nothing says on what the model was trained.
    missing: how many more data sets there were.
    """
    index = audited.in_split(split)
    own = digests(audited.images, index)
    across = seen = chosen = None
    if split is not None and audited.splits is not None:
        others = np.flatnonzero(audited.splits != SPLITS.index(split))
        across = _among(own, set(digests(audited.images, others)))
    if trained_on:
        known: set[bytes] = set()
        choosing: set[bytes] = set()
        for learned in trained_on:
            of_training, of_choice = learned.parts()
            known |= set(digests(learned.image_set.images, of_training))
            choosing |= set(digests(learned.image_set.images, of_choice))
        seen, chosen = _among(own, known), _among(own, choosing - known)
    return Leakage(len(index), across, seen, chosen, missing, equal=len(own) - len(set(own)))


def audited_images(
    images: NDArray[Any], rows: NDArray[np.int64], leakage: Leakage
) -> AuditedImages:
    """What a report says of the images at these rows.

    images: (N, C, H, W), bytes or floats in [0, 1]; may be a memory map: it is read once.
    """
    ends = [
        (float(part.min()), float(part.max()))
        for start in range(0, len(rows), ROWS)
        for part in (images[rows[start : start + ROWS]],)
    ]
    white = 255 if images.dtype == np.uint8 else 1
    return AuditedImages(
        examples=leakage.examples,
        lowest=min(low for low, _ in ends) / white,
        highest=max(high for _, high in ends) / white,
        equal=leakage.equal,
        in_other_splits=leakage.across_splits,
        seen_in_training=leakage.seen,
        chose_the_epoch=leakage.chosen,
    )


def digests(images: NDArray[Any], rows: NDArray[np.int64]) -> list[bytes]:
    """A hash of the shape and the pixels of each image at these rows.

    images: (N, C, H, W), may be a memory map: it is read once.
    """
    shape = repr(images.shape[1:]).encode()
    return [blake2b(images[i].tobytes(), digest_size=16, key=shape).digest() for i in rows]


def _among(own: Sequence[bytes], others: set[bytes]) -> int:
    return sum(digest in others for digest in own)
