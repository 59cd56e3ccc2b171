"""Whether an audit has to search on: what a gradient hides on a few images of a task.

An audit whose checks find that the gradient tells half the truth has only warned by then. So the
same two checks, `gradients` and `gradient_predicts`, are asked of a few images before the search,
beside three steps of one, and where either is no pass the audit goes on by attacks that see past
it (`recovery_attacks`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.attacks.holding import attacking
from adap.core.audit.checks.gradients import gradient_predicts, gradients
from adap.core.audit.checks.judging import Judged
from adap.core.audit.checks.planned import Run
from adap.core.audit.checks.runs import Bench
from adap.core.audit.network import Pixels
from adap.core.config.attacks import APGDAttack, PGDAttack
from adap.core.config.threats import Threat
from adap.core.scores import Scores

SAMPLE = 48  # images of each class, as many as quick checks look at
# An output that is rounded shares scores and blurs small steps, whatever its gradient is worth.
ROUNDED = ("equal_scores", "rounding")
# Enough that one step along averaged gradients beats them where terms too fast to follow drown the
# gradient, and hardly elsewhere.
SEARCH = PGDAttack(steps=3)


def gradient_sample(
    scorer: nn.Module,
    images: Pixels,
    targets: NDArray[np.int64],
    example_ids: Sequence[str],
    *,
    threat: Threat,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Scores:
    """Some images of a task with the reason to search on, or with none.

    images: (n, C, H, W), see `Pixels`.  targets: (n,) in {0, 1}.
    """
    bench = Bench(
        images=images,
        targets=targets.astype(np.int64),
        seed=seed,
        batch_size=batch_size,
        device=device,
        on_progress=lambda _: None,
    )
    with attacking(scorer):
        clean = bench.score(scorer)
        slopes = bench.gradients(scorer, APGDAttack(), threat)
        searched, _ = bench.attack(scorer, Run(SEARCH, threat, start="white_box"), network=scorer)
    judged = Judged(bench.targets, clean, {"white_box": searched})
    smells = [
        check.message
        for check in (gradients(clean, bench, slopes), gradient_predicts(clean, slopes, judged))
        if any(
            limit.status(check.figures[of]) != "pass"
            for of, limit in check.limits.items()
            if of not in ROUNDED
        )
    ]
    return Scores(
        example_ids=list(example_ids),
        targets=bench.targets,
        clean=clean,
        attacked={},
        hidden=smells[0] if smells else None,
    )
