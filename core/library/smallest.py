"""The smallest change that moves an image out of the first k: `adap.smallest_changes`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adap.core.attacks.smallest import smallest_change
from adap.core.audit.network import logits_of
from adap.core.audit.smallest import ranked
from adap.core.errors import ConfigError
from adap.core.library.examples import Layout
from adap.core.library.gradients import Options, prepared
from adap.core.library.rankers import Outputs
from adap.core.library.refusals import refuse_unless_whole


@dataclass(frozen=True, repr=False)
class SmallestChanges:
    """How little moves each positive of the first k out of them, all other images as they are.

    k: how many come first.  rows: (n,) which images the positives among them are.
    sizes: (n,) of the changes that were found; infinite where none was. Found, not proven: a
    smaller one may exist.  images: (n, C, H, W) floats in [0, 1], changed so.
    threshold: the logit that an image must stay at or above.  warnings: what was decided.

    >>> found = adap.SmallestChanges(
    ...     k=2, rows=[4, 7], sizes=torch.tensor([0.01, 0.03]), images=torch.zeros(2, 1, 8, 8),
    ...     threshold=0.5)
    >>> found.kept(0.02), [kept for _, kept in found.curve()]
    (0.5, [0.5, 0.0])
    >>> print(found)
    2 positives among the first 2; changes that move them out: 0.01 to 0.03, median 0.02
    .kept(8 / 255) is the share that stays, .curve() at every size
    """

    k: int
    rows: Sequence[int]
    sizes: Tensor
    images: Tensor
    threshold: float
    warnings: Sequence[str] = ()

    def __repr__(self) -> str:
        moved = self.sizes[self.sizes.isfinite()]
        said = f"{len(self.rows)} positives among the first {self.k}"
        if len(moved):
            least, middle, most = (float(moved.quantile(at)) for at in (0.0, 0.5, 1.0))
            said += f"; changes that move them out: {least:.4g} to {most:.4g}, median {middle:.4g}"
        if never := len(self.sizes) - len(moved):
            said += f"; {never} for which none was found"
        return f"{said}\n.kept(8 / 255) is the share that stays, .curve() at every size"

    def kept(self, epsilon: float) -> float:
        """Share of these positives that no change found of at most epsilon moves out."""
        return float((self.sizes > epsilon).double().mean())

    def curve(self) -> list[tuple[float, float]]:
        """(epsilon, share kept) at every epsilon where it falls, rising."""
        falls = torch.unique(self.sizes[self.sizes.isfinite()]).tolist()
        return [(size, self.kept(size)) for size in falls]


def smallest_changes(
    model: nn.Module,
    images: Any,
    labels: Any = None,
    *,
    k: int | None = None,
    norm: Literal["linf", "l2", "l1"] = "linf",
    steps: int = 100,
    positive: Any = None,
    outputs: Outputs = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: Layout | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> SmallestChanges:
    """How little has to change for a positive to leave the first k of the clean ranking.

    model, images, labels and the options that `adap.audit` has: as there.  k: by default the number
    of positives.  steps: gradients for each image. An image is out once its logit is below that of
    the best clean image outside the first k.

    Raises ConfigError for a k that leaves nobody out or has no positive, and for other options that
    cannot be; ModelError for a function, which has no gradients; DataError as `adap.audit`.
    Source: FMN (Pintor et al. 2021), see `docs/attacks.md`.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
    >>> images, labels = torch.rand(8, 3, 4, 4), torch.tensor([0, 1] * 4)
    >>> found = adap.smallest_changes(model, images, labels, k=6, steps=20)
    >>> found.kept(0), len(found.rows) == len(found.sizes)
    (1.0, True)
    """
    refuse_unless_whole("steps", steps, least=1)
    options = Options(positive, outputs, mean, std, layout, batch_size, device)
    because = "whose gradients lead to the smallest change"
    with prepared(model, images, labels, options, because=because) as made:
        scorer, targets = made.ranker.scorer, made.examples.targets
        first = int(targets.sum()) if k is None else k
        refuse_unless_whole("k", first, least=1)
        if first >= len(targets):
            raise ConfigError(
                f"expected k below the number of images, {len(targets)}, as nobody is outside of "
                f"all of them, got {first}"
            )
        logits = np.concatenate([logits_of(scorer, made.input(rows)) for rows in made.batches()])
        order = ranked(logits, targets)
        threshold = float(logits[order[first]])
        inside = np.sort([row for row in order[:first] if targets[row] == 1])
        if not len(inside):
            raise ConfigError(
                f"expected a positive among the first k, got none among {first}: none can leave"
            )
        changed, sizes = [], []
        for rows in made.batches(len(inside)):
            x_adv, size = smallest_change(
                lambda x: scorer(x) - threshold, made.input(inside[rows]), norm=norm, steps=steps
            )
            changed.append(x_adv.cpu())
            sizes.append(size.cpu())
        warnings = made.warnings
    if never := int(torch.cat(sizes).isinf().sum()):
        warnings.append(
            f"for {never} of {len(inside)} positives no change was found, and they count as kept: "
            "where the gradient is 0, as behind a saturated sigmoid, that says nothing of them; "
            "rank by logits, take more steps, or audit, whose checks look at the gradient"
        )
    return SmallestChanges(
        k=first,
        rows=inside.tolist(),
        sizes=torch.cat(sizes),
        images=torch.cat(changed),
        threshold=threshold,
        warnings=warnings,
    )
