"""The differentiable pieces that objectives are made of. All are pure, and take logits.

Logits and targets may have a second axis of K classes, whose columns never meet: shapes below are
those for one class.

The attacks' losses at the end are not the paper's, only equivalent to them: they have the same
sign of gradient in each image's logit, hence the same steepest ascent, but never saturate. In
float32 the gradient of cross-entropy is exactly 0 for a positive from logit 17 on, and the
attack would leave such an image where it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_hinge(logits: Tensor, *, margin: float) -> Tensor:
    """(B, B) max(margin - (h_i - h_j), 0)^2 with h = sigmoid(logit), row i, column j.

    The surrogate of "j ranks at or above i" in eq. (1). The diagonal is margin^2 > 0, so that no
    row's mean is 0.
    """
    h = torch.sigmoid(logits)
    return (margin - (h[:, None] - h[None, :])).clamp_min(0).square()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def bernoulli_kl(clean: Tensor, adv: Tensor) -> Tensor:
    """(B,) KL(Bernoulli(sigmoid(clean)) || Bernoulli(sigmoid(adv))), the pointwise L of eq. (5).

    By logsigmoid on both sides: log(1 - sigmoid(z)) is -inf from z = 17 on in float32.
    """
    positive = torch.sigmoid(clean) * (F.logsigmoid(clean) - F.logsigmoid(adv))
    negative = torch.sigmoid(-clean) * (F.logsigmoid(-clean) - F.logsigmoid(-adv))
    return positive + negative


def wrongness(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) |y - sigmoid(logit)|, MART's weight, without the cancellation of 1 - sigmoid."""
    return torch.sigmoid(negative_margin(logits, targets))


def negative_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) -(2y - 1) * logit: ascending it ascends cross-entropy, whose gradient shrinks to 0."""
    return (1 - 2 * targets) * logits


def half_squared_shift(clean: Tensor, adv: Tensor) -> Tensor:
    """(B,) (adv - clean)^2 / 2: ascending it ascends `bernoulli_kl`.

    d KL / d adv = sigmoid(adv) - sigmoid(clean) has the sign of adv - clean, and vanishes where
    both sigmoids are saturated.
    """
    return (adv - clean).square() / 2
