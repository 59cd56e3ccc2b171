"""One perturbation for all images of a task, within the threat: as found, and measured on all.

All images share it, so no part of a task finds it by itself: one piece of work asks for all.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adap.core.attacks.holding import attacking
from adap.core.attacks.universal import Batch, universal_perturbation
from adap.core.audit.drawing import drawing
from adap.core.audit.measuring import score_all
from adap.core.audit.network import Rows, as_input
from adap.core.config.threats import Threat
from adap.core.figures.ranking import average_precision
from adap.core.scores import UniversalFound


def _weighed(scorer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Losses of images: up where a positive's logit falls or a negative's rises."""
    weighed: Tensor = weight * scorer(x)
    return weighed


def universal_found(
    scorer: nn.Module,
    images: Rows,
    targets: NDArray[np.int64],
    searched: NDArray[np.int64],
    *,
    threat: Threat,
    rounds: int,
    seed: int,
    shard_size: int,
    batch_size: int,
    device: torch.device,
    on_passes: Callable[[int], None],
) -> tuple[NDArray[np.float64], UniversalFound]:
    """The clean logits (N,) of all images, and what the perturbation that was found makes of them.

    images, targets (N,): of the whole task.  searched: rows of it, of both sides, on which to
    search.  seed, shard_size, batch_size: of the audit, whose clean logits these are.
    on_passes: called after each batch with the number of images looked at, in the end
    (rounds + 1) * len(searched) + 2 * N; what it raises ends the work.

    What is ascended is the mean logit of the negatives minus that of the positives, as a shift of
    all logits alike changes no ranking; of what was tried the one is taken that leaves the least
    AP. Where none lowers the AP of all images, none is reported.

    Raises ConfigError as `universal_perturbation`, ModelError for logits that are not finite.
    """
    own = targets[searched]
    positives = int(own.sum())
    weights = np.where(own == 1, -1 / positives, 1 / (len(own) - positives))
    looked_at = 0

    def more(count: int) -> None:
        nonlocal looked_at
        looked_at += count
        on_passes(looked_at)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(searched), batch_size):
            rows = slice(start, start + batch_size)
            weight = torch.tensor(weights[rows], dtype=torch.float32, device=device)
            x = as_input(images[searched[rows]], device)
            yield x, partial(_weighed, scorer, weight)
            more(len(x))

    def judge(losses: Tensor) -> float:
        return -average_precision(np.nan_to_num(losses.double().cpu().numpy() / weights), own)

    score = partial(
        score_all,
        scorer,
        images,
        len(targets),
        seed=seed,
        shard_size=shard_size,
        batch_size=batch_size,
        device=device,
        on_images=more,
    )
    with attacking(scorer):
        with drawing(device, seed, "universal"):
            delta = universal_perturbation(
                batches, norm=threat.norm, epsilon=threat.epsilon, rounds=rounds, judge=judge
            )
        clean, moved = score(), score(shift=delta)
    if average_precision(moved, targets) > average_precision(clean, targets):
        delta, moved = torch.zeros_like(delta), clean
    return clean, UniversalFound(delta.float().cpu().numpy(), moved, len(searched))
