"""The attack inside a step of training: PGD on the objective's inner loss (Algorithms 1 to 5)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adap.core.attacks.base import choose
from adap.core.attacks.geometry import normal
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD, START_SIZE
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.training import TrainingAttack
from adap.core.errors import ConfigError
from adap.core.objectives.base import Objective
from adap.core.precision import Forward
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
    Positives are attacked `settings.positive_factor` times as far, by steps as much longer.
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

        threat_model = ThreatModel(settings.norm, settings.epsilon)
        if settings.positive_factor != 1:
            if targets.ndim != 1:
                raise ConfigError(
                    "expected positive_factor 1 for several classes, as an image may be positive "
                    f"for one and negative for another, got {settings.positive_factor:g}"
                )
            threat_model = _WiderForSome(
                settings.norm, settings.epsilon, ranks.own(targets) > 0, settings.positive_factor
            )
        return pgd.perturb(inner_loss, x, threat_model=threat_model, generator=generator)


@dataclass(frozen=True)
class _WiderForSome(ThreatModel):
    """A threat model whose epsilon, and every step within it, is `factor` times as large for the
    images where the (B,) mask `some` is true."""

    some: Tensor
    factor: float

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return choose(self.some, self._wide.project(x_adv, x), super().project(x_adv, x))

    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, *, size: float | Tensor) -> Tensor:
        further = self._wide.step(x_adv, gradient, x, size=self.factor * size)
        return choose(self.some, further, super().step(x_adv, gradient, x, size=size))

    @property
    def _wide(self) -> ThreatModel:
        return ThreatModel(self.norm, self.factor * self.epsilon)


def of_images(losses: Tensor) -> Tensor:
    """(B,) losses, from (B,) or from (B, K), one a class."""
    return losses if losses.ndim == 1 else losses.sum(dim=1)
