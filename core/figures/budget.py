"""The budget curve: AP left when the attacker may change only so many images.

One image can ruin AP (Figure 1 of the paper), so the worst case over all images does not say what
few can do. Here at most k images go from their clean score to their worst-case score, in three
roles: only positives (hide), only negatives (push), or both.

The images are chosen greedily: the one that lowers AP most, then the next. For k = 1 that is the
optimum, and with every image changed it is the worst case; in between other images may leave less
AP than these, so a point is an upper bound on what is left. Against all sets of 2 and of 3 images,
on 2,000 random rankings of 5 to 10 (python -m benchmarks.budget), greedy choice found the optimum
in each of 1,881 curves that push negatives, in all but one of 1,711 that hide positives (0.03 above
it) and in 97.6 % of 3,581 that do both (at most 0.14 above it).

Pushing negatives is submodular, as each one takes less than the one before from the precision of
the positives that it passes: there greedy takes at least 1 - 1/e of the AP that can be taken
(Nemhauser, Wolsey & Fisher 1978). This module imports no torch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adap.core.errors import ConfigError, DataError
from adap.core.figures.ranking import checked
from adap.core.report import BudgetPoint

ROUNDING = 1e-12  # losses that differ by less are equal: each is a difference of sums of quotients


def budget_curve(
    clean: ArrayLike, worst: ArrayLike, targets: ArrayLike, *, budgets: Sequence[int]
) -> list[BudgetPoint]:
    """AP that is left when the attacker may change k images, for each k of `budgets`.

    clean, worst: (N,) scores.  targets: (N,) in {0, 1}.

    Who may change both may change either alone, so `both` is the lowest of the three searches. A
    budget above the number of images that a role can change (whose two scores differ) saturates: it
    leaves the AP with all of them changed. Ties rank negatives first.

    Raises ConfigError for a budget below 1, DataError as `greedy_changes`.

    >>> [point] = budget_curve([3, 2, 1, 0], [0.5, 2, 1, 2.5], [1, 1, 0, 0], budgets=[1])
    >>> point.hide_positives, point.push_negatives, point.both
    (0.8333333333333333, 0.8333333333333333, 0.8333333333333333)
    """
    if min(budgets, default=1) < 1:
        raise ConfigError(f"expected budgets of at least 1 image, got {min(budgets)}")
    clean, targets = checked(clean, targets)
    worst, _ = checked(worst, targets)
    images = np.array(budgets, dtype=np.int64)

    def left(reached: NDArray[np.float64]) -> NDArray[np.float64]:
        _, ap = greedy_changes(clean, reached, targets, images=int(images.max(initial=0)))
        return ap[np.minimum(images, len(ap) - 1)]

    both = left(worst)
    hide, push = left(np.where(targets, worst, clean)), left(np.where(targets, clean, worst))
    both = np.minimum(both, np.minimum(hide, push))
    return [
        BudgetPoint(images=k, hide_positives=h, push_negatives=p, both=b)
        for k, h, p, b in zip(budgets, hide.tolist(), push.tolist(), both.tolist(), strict=True)
    ]


def greedy_changes(
    clean: ArrayLike, worst: ArrayLike, targets: ArrayLike, *, images: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(K,) images in the order in which they are changed, and (K + 1,) AP before and after each.

    K is `images`, or the number of images whose two scores differ where that is less. Of several
    that lower AP equally, as where none alone does, the one comes first that would pass most
    images of the other class if all were changed.

    A step costs O(N). A positive stands at one of two places, its clean or its worst-case score,
    and all places are sorted once. The r-th positive, behind a negatives, has precision
    r / (r + a). A negative that is pushed past it takes r / (r + a) - r / (r + a + 1); a positive
    that falls from before it to behind it takes r / (r + a) - (r - 1) / (r - 1 + a), and goes
    itself from the precision at its first place to that at its second. So what each image would
    take is a difference of two running sums over the places.

    Raises DataError for what cannot be ranked, and where a worst-case score is a better one.
    """
    clean, targets = checked(clean, targets)
    worst, _ = checked(worst, targets)
    positive = targets == 1
    better = int(np.where(positive, worst > clean, worst < clean).sum())
    if better:
        raise DataError(
            "expected worst-case scores that are lower than clean for positives, higher for "
            f"negatives, or equal, got {better} on the other side"
        )
    moves = clean != worst
    hidden, pushed = np.flatnonzero(moves & positive), np.flatnonzero(moves & ~positive)
    changeable = np.concatenate([hidden, pushed])
    reach = np.concatenate(
        [
            _at_or_above(worst[~positive], worst[hidden])
            - _at_or_above(clean[~positive], clean[hidden]),
            _at_or_above(-worst[positive], -worst[pushed])
            - _at_or_above(-clean[positive], -clean[pushed]),
        ]
    )

    # Places, best first: where each positive stands, then where those that can be hidden may fall.
    scores = np.concatenate([clean[positive], worst[hidden]])
    order = np.argsort(-scores, kind="stable")
    places = scores[order]
    place = np.argsort(order)
    taken = order < positive.sum()  # by a positive that stands there now
    above = _at_or_above(clean[~positive], places)  # negatives
    before, after = place[: positive.sum()][moves[positive]], place[positive.sum() :]
    # A negative passes the places between: those at or below its worst-case score, not its clean.
    start = np.searchsorted(-places, -worst[pushed])
    stop = np.searchsorted(-places, -clean[pushed])

    unchanged = np.ones(len(changeable), dtype=bool)
    steps = min(images, len(changeable))
    chosen: list[int] = []
    ap: list[float] = []
    while True:
        found = np.cumsum(taken)
        rank = found + above
        precision = found / np.maximum(rank, 1)  # a free place may have nobody at or above it
        ap.append(float(precision[taken].mean()))
        if len(chosen) >= steps:
            return changeable[chosen], np.array(ap)
        to_fallen = np.cumsum(taken * above / np.maximum(rank * (rank - 1), 1))
        to_pushed = np.cumsum(taken * found / np.maximum(rank * (rank + 1), 1))
        to_pushed = np.concatenate([[0], to_pushed])
        loss = np.concatenate(
            [
                precision[before] - precision[after] + to_fallen[after] - to_fallen[before],
                to_pushed[stop] - to_pushed[start],
            ]
        )
        most = loss[unchanged].max()
        i = int(np.where(unchanged & (loss >= most - ROUNDING), reach, -1).argmax())
        chosen.append(i)
        unchanged[i] = False
        if i < len(hidden):
            taken[before[i]], taken[after[i]] = False, True
        else:
            above[start[i - len(hidden)] : stop[i - len(hidden)]] += 1


def _at_or_above(others: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of the others are at or above each score."""
    return np.searchsorted(np.sort(-others), -scores, side="right")
