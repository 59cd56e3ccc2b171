"""Moving averages that stand in for sums over the whole training set (Sections 3.1 and 4.2).

Both objectives are functions F(g) of such sums g. A batch gives g and its gradient without bias,
but not F(g); so an average u follows g over the batches, and the gradient is taken as
grad F(u) * grad g(batch). Hence each surrogate here is <grad F(u), g(batch)> with grad F(u) held
constant: its gradient is the one wanted, while its value carries no meaning (it is 0 at a first
visit).

Logits and targets are (B,), or (B, K) for K classes at once: then every formula holds for each
column by itself, and each class has estimators of its own.

The published estimators start at 0, which makes the first gradient of each example 1/gamma times
too large; `first_visit="batch"` starts them at the first batch's value instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adap.core.config.methods import FirstVisit
from adap.core.objectives.surrogates import squared_hinge


@dataclass(frozen=True)
class MovingAverage:
    """How the average u of a quantity moves when a batch gives it the value g."""

    gamma: float
    first_visit: FirstVisit

    def moved(self, u: Tensor, g: Tensor, *, visited: Tensor) -> Tensor:
        """(1 - gamma) * u + gamma * g; g itself at a first visit, if so wanted.

        g must be constant: no gradient flows through an estimator.
        """
        average = (1 - self.gamma) * u + self.gamma * g
        return average if self.first_visit == "published" else torch.where(visited, average, g)


class APEstimator(nn.Module):
    """u_pos and u_all of every example, eq. (2), and the surrogate whose gradient is eq. (3).

    u_pos, u_all: (N,) or (N, K) buffers, the averages over j of [y_j = 1] * loss_ij and of loss_ij.
    Only positives' entries are ever written. u_all = 0 marks an example not visited yet.
    """

    u_pos: Tensor
    u_all: Tensor

    def __init__(
        self,
        examples: int,
        *,
        margin: float,
        gamma: float,
        first_visit: FirstVisit,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.average = MovingAverage(gamma, first_visit)
        shape = (examples,) if classes is None else (examples, classes)
        self.register_buffer("u_pos", torch.zeros(shape))
        self.register_buffer("u_all", torch.zeros(shape))

    def shares(self, logits: Tensor, targets: Tensor, index: Tensor, *, commit: bool) -> Tensor:
        """Each positive's share of the surrogate, 0 for negatives; their sum is the surrogate.

        (B,) or (B, K), as logits and targets are. The estimators are used as they are after this
        batch; `commit` says whether they stay so. Works on all B rows under a mask: picking out the
        positives would make a GPU wait for the host to learn how many there are.
        """
        losses = squared_hinge(logits, margin=self.margin)  # (B, B) or (B, B, K)
        constant = losses.detach()
        u_pos, u_all = self.u_pos[index], self.u_all[index]  # (B,) or (B, K)
        visited = u_all > 0
        u_pos = self.average.moved(u_pos, (constant * targets[None]).mean(dim=1), visited=visited)
        u_all = self.average.moved(u_all, constant.mean(dim=1), visited=visited)
        if commit:
            self._commit(self.u_pos, u_pos, targets, index)
            self._commit(self.u_all, u_all, targets, index)
        # F(u) = -u_pos / u_all; its gradient is written without u_all^2, which could underflow.
        precision = u_pos / u_all
        weights = (precision[:, None] - targets[None]) / u_all[:, None]  # as losses
        return targets / targets.sum(dim=0).clamp_min(1) * (weights * losses).mean(dim=1)

    def surrogate_ap(self) -> float:
        """Mean of u_pos / u_all over the positives visited so far; NaN before the first.

        Of K classes the mean over those with any visited.
        """
        visited = self.u_all > 0
        precision = torch.where(visited, self.u_pos / self.u_all, 0)
        return float((precision.sum(dim=0) / visited.sum(dim=0)).nanmean())

    @staticmethod
    def _commit(u: Tensor, values: Tensor, targets: Tensor, index: Tensor) -> None:
        values = torch.where(targets > 0, values, u[index]).to(u.dtype)  # of float64 logits too
        # An example may occur several times in a batch, under different augmentations, when
        # positives are few: it gets the mean, whatever order the device writes in.
        where = index if values.ndim == 1 else index[:, None].expand_as(values)
        u.scatter_reduce_(0, where, values, "mean", include_self=False)


class ListwiseEstimator(nn.Module):
    """u of eq. (11) and the surrogate of the listwise regulariser R, eq. (8), by eq. (12).

    R = F(g) with F(g) = g1 / g2 - log g2 + log g3 and h = tanh(logit): KL between the top-one
    probabilities of the clean and of the attacked images.
    u: (3,) or (3, K) buffer. u[1] averages exp(tanh) >= 1/e, so 0 there means no batch yet.
    """

    u: Tensor

    def __init__(
        self, *, gamma: float, first_visit: FirstVisit, classes: int | None = None
    ) -> None:
        super().__init__()
        self.average = MovingAverage(gamma, first_visit)
        self.register_buffer("u", torch.zeros(3 if classes is None else (3, classes)))

    def shares(self, clean: Tensor, adv: Tensor, *, commit: bool) -> Tensor:
        """Each image's share of the surrogate, (B,) or (B, K); their sum is the surrogate.

        The estimator is used as it is after this batch; `commit` says whether it stays so.
        """
        h, h_adv = torch.tanh(clean), torch.tanh(adv)
        g = torch.stack([h.exp() * (h - h_adv), h.exp(), h_adv.exp()])  # (3, B) or (3, B, K)
        u = self.average.moved(self.u, g.detach().mean(dim=1), visited=self.u[1] > 0)
        if commit:
            self.u.copy_(u)
        slope = torch.stack([1 / u[1], -(u[0] + u[1]) / u[1].square(), 1 / u[2]])  # grad F(u)
        return (slope[:, None] * g).sum(dim=0) / len(clean)
