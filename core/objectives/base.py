"""The seam between an objective and the training loop, which knows no method by name."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Objective(nn.Module):
    """What a network is trained towards: one loss to descend, and one for its attacker to ascend.

    Logits come in, (B,) each, and every squashing happens inside. `targets` is (B,) float in
    {0, 1}; `index` is (B,) int64, the examples' places in the training set. An objective that was
    built for K classes takes (B, K) logits and targets: a column is a class against the rest, with
    estimators of its own, and what is descended is the mean over the classes. A pass that an
    objective does not declare is not run, since it would cost time and move BatchNorm's
    statistics; its logits are None. State lives in buffers, so `state_dict` is all that resuming
    needs.
    """

    needs_clean: ClassVar[bool] = False
    """`forward` reads the logits of the clean images."""
    needs_adversarial: ClassVar[bool] = False
    """`forward` reads the logits of images attacked by ascending `inner_loss`."""
    inner_needs_clean: ClassVar[bool] = False
    """`inner_loss` reads the logits of the clean images, taken once, as constants."""
    needs_positives: ClassVar[bool] = False
    """Every batch must hold positives: the objective is a mean over them."""
    needs_anchor: bool = False
    """`forward` reads the clean images' logits by the moving average of the weights, as constants.
    A choice of the method's options, not of its class."""

    def inner_loss(self, clean: Any, adv: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """(B,) or (B, K), whose sum the training attack ascends in `adv`.

        Estimators are read, not written.
        """
        raise NotImplementedError(f"{type(self).__name__} trains on clean images only")

    def forward(
        self,
        clean: Any,
        adv: Any,
        targets: Tensor,
        index: Tensor,
        anchor: Tensor | None = None,
    ) -> Tensor:
        """() what the optimiser descends; estimators are updated, so call it once a step.

        anchor: given where `needs_anchor`.
        In eval mode, and without gradients, nothing is written: then it is read for validation.
        """
        raise NotImplementedError

    @property
    def commits(self) -> bool:
        """Whether a call is a step of training, which moves the estimators for good."""
        return self.training and torch.is_grad_enabled()

    def metrics(self) -> dict[str, float]:
        """Figures worth logging beside the loss."""
        return {}
