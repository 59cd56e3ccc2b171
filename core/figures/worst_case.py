"""The strongest attack on a ranking, put together image by image from several attacks.

Every image has its own budget, and AP never falls when a positive's logit rises or a negative's
falls. So the worst ranking within reach has each positive at its lowest logit and each negative at
its highest: per image the lowest margin over the attacks, whatever each did to the AP as a whole.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adap.core.scores import Scores


def worst_case(scores: Scores) -> tuple[NDArray[np.float64], dict[str, int]]:
    """(N,) logits of lowest margin (2y - 1) * logit over the clean image and all attacks, and how
    many images each was strongest on.

    Among equals the clean image comes first, then the attacks in their order: an attack wins only
    where it did something that no one before it did. The counts add up to N.
    """
    return _lowest(scores, scores.attacked)


def worst_corruption(scores: Scores) -> tuple[NDArray[np.float64], dict[str, int]]:
    """The same over the clean image and all its corruptions, which are counted by their kind."""
    logits, counts = _lowest(scores, {of.key: each for of, each in scores.corrupted.items()})
    by_kind = {"clean": counts["clean"]} | dict.fromkeys((of.kind for of in scores.corrupted), 0)
    for of in scores.corrupted:
        by_kind[of.kind] += counts[of.key]
    return logits, by_kind


def _lowest(
    scores: Scores, others: Mapping[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], dict[str, int]]:
    names = ["clean", *others]
    logits = np.stack([scores.clean, *others.values()])  # (1 + others, N)
    winner = ((2 * scores.targets - 1) * logits).argmin(axis=0)
    counts = np.bincount(winner, minlength=len(names))
    return (
        np.take_along_axis(logits, winner[None], axis=0)[0],
        {name: int(count) for name, count in zip(names, counts, strict=True)},
    )
