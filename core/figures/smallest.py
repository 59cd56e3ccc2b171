"""The figures of smallest changes, from their sizes alone."""

import numpy as np

from adap.core.config.threats import Threat
from adap.core.report import KeptPoint, SmallestFigures
from adap.core.scores import SmallestFound

POINTS = 20  # of the curve


def smallest_figures(found: SmallestFound, threat: Threat) -> SmallestFigures:
    """What was found, and the share of positives that stay among the first k as epsilon grows.

    A positive for which no change was found stays at every epsilon.
    """
    sizes = np.sort(found.sizes)
    moved = sizes[np.isfinite(sizes)]

    def kept(epsilon: float) -> float:
        return float((sizes > epsilon).mean())

    last = [-(-i * len(moved) // POINTS) - 1 for i in range(1, POINTS + 1)]  # of each twentieth
    at = np.unique(moved[last]) if len(moved) else moved
    median = float(np.median(sizes)) if len(sizes) else np.inf
    return SmallestFigures(
        norm=threat.norm,
        k=found.k,
        threshold=found.threshold,
        among=found.among,
        searched=len(sizes),
        found=len(moved),
        least=float(moved[0]) if len(moved) else None,
        median=median if np.isfinite(median) else None,
        kept_at_epsilon=kept(threat.epsilon) if len(sizes) else None,
        curve=[KeptPoint(epsilon=float(each), kept=kept(each)) for each in at],
    )
