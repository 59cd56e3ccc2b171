"""Dropping an image from the batch once its loss has stopped rising."""

import torch
from torch import Tensor

from adap.core.attacks.base import LossFn, PerImage
from adap.core.errors import ConfigError


def with_patience(loss_fn: LossFn, patience: int | None) -> LossFn:
    """The loss for one run of an attack that gives up on images; itself if patience is None.

    Raises ConfigError for a patience below 1, and for a loss that cannot be asked about some
    images of its batch.
    """
    if patience is None:
        return loss_fn
    if patience < 1:
        raise ConfigError(f"expected a patience of at least 1, got {patience}")
    if not isinstance(loss_fn, PerImage):
        raise ConfigError(
            "expected a loss of each image by itself (PerImage) for an attack with patience, "
            f"got {type(loss_fn).__name__}"
        )
    return _Patient(loss_fn, patience)


class _Patient:
    """A loss that is no longer computed for images whose best has not risen for `patience` calls.

    What is dropped has a loss of -inf from then on and no gradient: no attack takes such an iterate
    for its best, and none moves along such a gradient, so an attack needs to know nothing of it.
    Each image is judged by its own losses alone, so none fares differently for what became of the
    others. Who is left is looked up every quarter of the patience: a GPU then waits for the host.
    """

    def __init__(self, loss_fn: PerImage, patience: int) -> None:
        self._of_all = self._of_rows = loss_fn
        self._patience = patience
        self._every = max(patience // 4, 1)
        self._calls = 0
        self._rows = torch.arange(len(loss_fn.of_each), device=loss_fn.of_each.device)
        self._best: Tensor | None = None  # of the rows that are left, as are the calls since then
        self._waited = torch.zeros_like(self._rows)

    def __call__(self, x: Tensor) -> Tensor:
        """(B,) losses."""
        if len(self._rows) == len(x):
            losses = loss = self._of_rows(x)
        else:
            losses = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
            if len(self._rows) == 0:
                return losses
            loss = self._of_rows(x[self._rows])
            losses = losses.to(loss.dtype).index_put((self._rows,), loss)
        self._judge(loss.detach())
        return losses

    def _judge(self, loss: Tensor) -> None:
        best = torch.full_like(loss, -torch.inf) if self._best is None else self._best
        self._best = best.fmax(loss)
        self._waited = torch.where(loss > best, 0, self._waited + 1)
        self._calls += 1
        if self._calls % self._every == 0:
            left = self._waited < self._patience
            if not left.all():
                self._rows, self._waited = self._rows[left], self._waited[left]
                self._best = self._best[left]
                self._of_rows = self._of_all.only(self._rows)
