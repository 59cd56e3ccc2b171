"""Which examples are no independent draws: those of one patient, one drive, one scene.

This module imports no torch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def numbered(clusters: Sequence[str] | None, count: int) -> NDArray[np.int64]:
    """(count,) the cluster of each example, numbered from 0 in the order in which they come first.

    Without clusters each example is one of its own.
    """
    if clusters is None:
        return np.arange(count)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters], np.int64)
