"""The attack inside a step of training: PGD on the objective's inner loss (Algorithms 1 to 5)."""

import torch
from torch import Tensor, nn

from adap.core.attacks.geometry import normal
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD, START_SIZE
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config import TrainingAttack
from adap.core.objectives.base import Objective
from adap.core.training.precision import Forward
from adap.core.training.ranks import ALONE, Ranks


def attack_batch(
    network: nn.Module,
    objective: Objective,
    x: Tensor,
    targets: Tensor,
    index: Tensor,
    *,
    settings: TrainingAttack,
    generator: torch.Generator,
    forward: Forward | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """(B, C, H, W) images on which the objective's inner loss is high, as in Algorithms 1 to 5.

    Of several classes the sum of their inner losses: one image is to be bad for all of them.
    forward: the network's passes in another precision; by default its own.
    ranks: `x` and what is returned are a rank's share of the images, `targets` and `index` those
    of the whole batch, for which the start is drawn as well.
    """
    forward = network if forward is None else forward
    noise = normal((len(targets), *x.shape[1:]), like=x, generator=generator)
    start = x + START_SIZE * ranks.own(noise)
    pgd = PGD(steps=settings.steps, step_size=settings.step_size, iterate="last", start=start)
    with attacking(network):
        clean = None
        if objective.inner_needs_clean:
            with torch.no_grad():
                clean = ranks.gathered(forward(x))

        def inner_loss(x_adv: Tensor) -> Tensor:
            # of the whole batch, whose losses may each depend on every image
            adv = ranks.gathered(forward(x_adv))
            return of_images(objective.inner_loss(clean, adv, targets, index))

        return pgd.perturb(
            inner_loss,
            x,
            threat_model=ThreatModel(settings.norm, settings.epsilon),
            generator=generator,
        )


def of_images(losses: Tensor) -> Tensor:
    """(B,) losses, from (B,) or from (B, K), one a class."""
    return losses if losses.ndim == 1 else losses.sum(dim=1)
