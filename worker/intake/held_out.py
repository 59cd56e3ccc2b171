"""A test split for a data set that has none, where its sender asks for one.

Who trains on everything has nothing left to audit on. The split is made when the data set comes, so
that no training ever sees it.
"""

from dataclasses import replace
from hashlib import blake2b

import numpy as np

from adap.core.config.base import SPLITS
from adap.core.datasets import ImageSet
from adap.core.errors import ConfigError
from adap.core.training.splitting import hold_out
from adap.worker.intake.equal import alike
from adap.worker.intake.limits import Rejected
from adap.worker.intake.notes import Notes


def with_test_split(image_set: ImageSet, fraction: float, notes: Notes) -> ImageSet:
    """The data set with a share of what is for training as its test split.

    Clusters stay whole; without clusters, images that are equal stay together.
    Raises Rejected where it has a test split, or splits and none to train on.
    """
    units = image_set.clusters
    if units is None:
        units = [str(i) for i in range(len(image_set))]
        for i, image in alike(image_set.images):
            units[i] = blake2b(image.tobytes(), digest_size=16).hexdigest()
    try:
        made = hold_out(replace(image_set, clusters=units), fraction=fraction, split="test")
    except ConfigError as error:
        raise Rejected(f"hold_out (--hold-out): {error}; leave it out") from error
    assert made.splits is not None
    held = int((np.asarray(made.splits) == SPLITS.index("test")).sum())
    whole = "" if image_set.clusters is None else ", in whole clusters"
    notes.step(
        f"{held:,} of {len(image_set):,} images held out as the test split, at random{whole}"
    )
    return replace(image_set, splits=made.splits)
