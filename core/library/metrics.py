"""Average precision and the worst case of one's own logits: tensors, arrays or lists."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from adap.core.errors import ConfigError, DataError
from adap.core.figures import ranking
from adap.core.figures import worst_case as figures
from adap.core.figures.ranking import Ties
from adap.core.scores import Scores

Numbers = ArrayLike | Tensor


def average_precision(scores: Numbers, targets: Numbers, *, ties: Ties = "pessimistic") -> float:
    """Mean over the positives of the precision at their rank, in [0, 1].

    scores: (N,) or (N, 1) logits, higher ranks first; a tensor may be on any device and may have
    gradients, which do not flow through: a ranking has none.  targets: (N,) or (N, 1) in {0, 1}.
    ties: 'pessimistic' ranks the negatives of a tie first, the lowest AP of all its orders;
    'sklearn' gives what scikit-learn gives.

    Raises DataError for NaN, shapes that do not match, targets outside {0, 1} or a single class;
    ConfigError for other `ties`.
    Source: Section 3.1 of the paper; `adap.core.figures.ranking` says more.

    >>> adap.average_precision([3.0, 2.0, 1.0], [1, 0, 1])  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    if ties not in get_args(Ties):
        raise ConfigError(f"expected ties among {', '.join(get_args(Ties))}, got {ties!r}")
    return ranking.average_precision(_column(scores), _column(targets), ties=ties)


def worst_case(
    clean: Numbers, attacked: Mapping[str, Numbers] | Sequence[Numbers], targets: Numbers
) -> NDArray[np.float64]:
    """(N,) for each image its logit of lowest margin over the clean image and all attacks.

    clean: (N,) or (N, 1) logits.  attacked: the logits of the same images under each attack.
    targets: (N,) in {0, 1}.  A positive keeps its lowest logit, a negative its highest. AP never
    falls when a positive's logit rises or a negative's falls, so no attack on single images does
    more by combining these: `average_precision` of the result is the worst case.

    Raises DataError as `average_precision` does, or where no attack is given.
    Source: `adap.core.figures.worst_case`.

    >>> low = adap.worst_case([3.0, 1.0], {"pgd": [0.5, 0.0], "apgd": [2.0, 2.5]}, [1, 0])
    >>> low.tolist(), adap.average_precision(low, [1, 0])
    ([0.5, 2.5], 0.5)
    """
    named: dict[str, Any] = (
        dict(attacked)
        if isinstance(attacked, Mapping)
        else {f"attack {i}": logits for i, logits in enumerate(attacked)}
    )
    if not named:
        raise DataError("expected the logits under at least one attack, got none")
    found, marks = ranking.checked(_column(clean), _column(targets))
    logits = {key: ranking.checked(_column(value), marks)[0] for key, value in named.items()}
    ids = [str(i) for i in range(len(found))]
    worst, _ = figures.worst_case(Scores(ids, targets=marks, clean=found, attacked=logits))
    return worst


def _column(values: Numbers) -> NDArray[Any]:
    """(N,) numbers; bfloat16 and whatever else NumPy lacks come as float64."""
    array: NDArray[Any]
    if isinstance(values, Tensor):
        array = values.detach().double().cpu().numpy()
    else:
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise DataError(
                f"expected (N,) numbers, got rows of several lengths ({error})"
            ) from error
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
