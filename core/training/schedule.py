"""What changes from epoch to epoch: the learning rate, and the attack on positives."""

import math

from adap.core.config.training import Optimizer, TrainingAttack


def learning_rate(optimizer: Optimizer, *, done: int, epochs: int) -> float:
    """Learning rate after `done` of the epochs, a function of these alone: no scheduler has state.

    steps: lr, multiplied by `decay` at every milestone passed. cosine: lr (1 + cos(pi t)) / 2, with
    t the share done of the epochs after the warm-up (Loshchilov & Hutter 2017, eq. 5, without
    restarts). In the k-th of w epochs of warm-up (Goyal et al. 2017) k / (w + 1) of it.
    """
    warmup = optimizer.warmup_epochs
    rising = min(1.0, (done + 1) / (warmup + 1))
    if optimizer.schedule == "cosine":
        share = max(0, done - warmup) / max(1, epochs - warmup)
        return rising * optimizer.lr * (1 + math.cos(math.pi * share)) / 2
    passed = sum(done / epochs >= milestone for milestone in optimizer.milestones)
    return rising * optimizer.lr * optimizer.decay**passed


def attack_in(attack: TrainingAttack, *, epoch: int) -> TrainingAttack:
    """The attack of an epoch, counted from 1: in the k-th of w epochs of warm-up positives have
    1 + (positive_factor - 1) k / (w + 1) times the epsilon."""
    rising = min(1.0, epoch / (attack.positive_warmup_epochs + 1))
    factor = 1 + (attack.positive_factor - 1) * rising
    return attack.model_copy(update={"positive_factor": factor})
