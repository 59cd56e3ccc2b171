"""How many draws are behind each score of a model, where it draws random numbers as it scores."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adap.core.audit.checks.limits import LOGIT_CHANGE
from adap.core.audit.drawing import unsteadiness
from adap.core.errors import ConfigError
from adap.core.library.rankers import Ready

MOST_DRAWS = 10_000


def refuse_other_draws(draws: Any) -> None:
    """Raise ConfigError for what is no number of draws."""
    if isinstance(draws, bool) or not isinstance(draws, int) or not 1 <= draws <= MOST_DRAWS:
        raise ConfigError(f"expected draws as a whole number from 1 to {MOST_DRAWS}, got {draws!r}")


def wandering(made: Ready, pixels: NDArray[np.float32]) -> str | None:
    """What a reader must know of a model whose scores of one image differ; None of all others."""
    share = unsteadiness(made.scorer, torch.from_numpy(pixels).to(made.device))
    if LOGIT_CHANGE.status(share) == "pass":
        return None
    return (
        "The model draws random numbers as it scores, or remembers: its scores of the same image "
        f"differ by up to {share:.0%} of the spread of the scores."
    )
