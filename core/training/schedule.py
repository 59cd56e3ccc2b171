"""The learning rate of each epoch."""

from adap.core.config import Optimizer


def learning_rate(optimizer: Optimizer, *, done: int, epochs: int) -> float:
    """Learning rate after `done` epochs: multiplied by `decay` at every milestone passed.

    A function of the epoch alone, so that there is no scheduler whose state could be lost.
    """
    passed = sum(done / epochs >= milestone for milestone in optimizer.milestones)
    return optimizer.lr * optimizer.decay**passed
