"""One step of training: from the pixels of a batch to moved weights.

It is a function of tensors, so that it may be captured (`capture`): nothing in it waits for the
host, its random numbers come from generators that last as long as the training, and whatever else
changes from epoch to epoch is set by `begin`.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from adap.core.attacks.holding import attacking
from adap.core.config.training import TrainingAttack, TrainingConfig, WeightPerturbation
from adap.core.objectives.base import Objective
from adap.core.precision import forward_in
from adap.core.training.attacking import attack_batch
from adap.core.training.augment import augment
from adap.core.training.averaging import WeightAverage
from adap.core.training.examples import as_input
from adap.core.training.folding import Folded
from adap.core.training.optimizers import set_rate
from adap.core.training.perturbation import perturbed
from adap.core.training.ranks import Ranks
from adap.core.training.schedule import attack_in
from adap.core.training.seeds import Use, seed


@dataclass
class Step:
    """What a step needs, and what it is in an epoch."""

    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    config: TrainingConfig
    device: torch.device
    ranks: Ranks
    attack: TrainingAttack = field(init=False)
    perturbation: WeightPerturbation | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.attack = self.config.attack
        self._forward = forward_in(self.config.precision, self.network, device=self.device)
        self._averaged = (
            None
            if self.average is None
            else forward_in(self.config.precision, self.average.network, device=self.device)
        )
        self._folded: Folded | None = None  # made by the first attack, as it takes images
        self._augmenting = torch.Generator(self.device)
        self._noise = torch.Generator(self.device)

    @property
    def generators(self) -> list[torch.Generator]:
        """What it draws from, beside torch's own."""
        return [self._augmenting, self._noise]

    def begin(self, epoch: int, *, lr: float) -> bool:
        """Be a step of this epoch, from 1; whether it differs from one of the epoch before in more
        than its tensors and its random numbers."""
        seed(self._augmenting, self.config.seed, Use.AUGMENTING, epoch)
        seed(self._noise, self.config.seed, Use.ATTACKING, epoch)
        before = self.attack, self.perturbation
        self.attack = attack_in(self.config.attack, epoch=epoch)
        moving = self.config.weight_perturbation
        self.perturbation = moving if moving and epoch > moving.warmup_epochs else None
        return set_rate(self.optimizer, lr) or before != (self.attack, self.perturbation)

    def __call__(self, pixels: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """() the loss, of (B, C, H, W) images as they are stored, targets and their places."""
        # Augmented whole and then shared, so that each image changes as on one device.
        x = augment(pixels, self.config.augment, generator=self._augmenting)
        x = as_input(self.ranks.own(x))
        x_adv = self._attacked(x, targets, index) if self.objective.needs_adversarial else None
        anchor = self._anchor(x) if self.objective.needs_anchor else None
        loss_fn = partial(self._loss, x, x_adv, targets, index, anchor)
        with (
            nullcontext()
            if self.perturbation is None
            else perturbed(
                self.network,
                self.objective,
                loss_fn,
                size=self.perturbation.size,
                ranks=self.ranks,
            )
        ):
            loss = loss_fn()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            weights = self.network.parameters()
            self.ranks.add_up([w.grad for w in weights if w.grad is not None])
        self.optimizer.step()
        return loss.detach()

    def _attacked(self, x: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        forward = self._forward
        if self.config.folded_attack:
            self._folded = self._folded or Folded(
                self.network, x, precision=self.config.precision, device=self.device
            )
            forward = self._folded.settle()
        return attack_batch(
            self.network,
            self.objective,
            x,
            targets,
            index,
            settings=self.attack,
            generator=self._noise,
            forward=forward,
            ranks=self.ranks,
        )

    def _anchor(self, x: Tensor) -> Tensor:
        """(B,) or (B, K) logits by the averaged weights, in eval mode and without gradients."""
        assert self.average is not None  # the configuration of such a method has one
        assert self._averaged is not None
        with attacking(self.average.settle()), torch.no_grad():
            return self.ranks.gathered(self._averaged(x))

    def _loss(
        self,
        x: Tensor,
        x_adv: Tensor | None,
        targets: Tensor,
        index: Tensor,
        anchor: Tensor | None,
    ) -> Tensor:
        """() what is descended, after the passes that the objective reads."""
        objective, ranks = self.objective, self.ranks
        clean = ranks.gathered(self._forward(x)) if objective.needs_clean else None
        adv = None if x_adv is None else ranks.gathered(self._forward(x_adv))
        loss: Tensor = objective(clean, adv, targets, index, anchor)
        return loss
