"""One perturbation for all images: `adap.universal`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adap.core.audit.universal import universal_found
from adap.core.config.threats import EPSILON_PAPER, BallNorm
from adap.core.figures.ranking import average_precision
from adap.core.library.examples import Layout
from adap.core.library.gradients import Options, prepared
from adap.core.library.rankers import Outputs
from adap.core.library.refusals import refuse_unless_whole, threat_of


@dataclass(frozen=True)
class Universal:
    """One perturbation, and the AP of the images it was found on, without and with it.

    delta: (C, H, W), to be added to an image and clipped to [0, 1].  clean_ap, ap: in [0, 1].
    Found, not proven: all images share it, so it is no search image by image, and a better one may
    exist.  warnings: what was decided about the model and the images.

    >>> adap.Universal(torch.zeros(1, 8, 8), clean_ap=0.9, ap=0.7).ap
    0.7
    """

    delta: Tensor
    clean_ap: float
    ap: float
    warnings: Sequence[str] = ()


def universal(
    model: nn.Module,
    images: Any,
    labels: Any = None,
    *,
    epsilon: float | str = EPSILON_PAPER,
    norm: BallNorm = "linf",
    rounds: int = 20,
    positive: Any = None,
    outputs: Outputs = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: Layout | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> Universal:
    """One perturbation within epsilon that, added to every image, ranks them as badly as was found.

    model, images, labels and the options that `adap.audit` has: as there.  rounds: steps, each of
    which looks at every image. What is ascended is the mean logit of the negatives minus that of
    the positives, as a shift of all logits alike changes no ranking.

    Raises ConfigError for another norm and other options that cannot be, ModelError for a function,
    which has no gradients; DataError as `adap.audit`. Source: `docs/attacks.md` names the papers.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
    >>> images, labels = torch.rand(8, 3, 4, 4), torch.tensor([0, 1] * 4)
    >>> found = adap.universal(model, images, labels, epsilon=8/255, rounds=5)
    >>> bool(found.delta.abs().max() <= 8/255 + 1e-6), tuple(found.delta.shape)
    (True, (3, 4, 4))
    """
    threat = threat_of(epsilon, norm)
    refuse_unless_whole("rounds", rounds, least=1)
    options = Options(positive, outputs, mean, std, layout, batch_size, device)
    because = "whose gradients lead to the perturbation"
    with prepared(model, images, labels, options, because=because) as made:
        images, targets = made.examples.images, made.examples.targets
        clean, found = universal_found(
            made.ranker.scorer,
            images,
            targets,
            np.arange(len(targets)),
            threat=threat,
            rounds=rounds,
            seed=0,
            shard_size=len(targets),
            batch_size=batch_size,
            device=made.ranker.device,
            on_passes=lambda _: None,
        )
    return Universal(
        delta=torch.from_numpy(found.delta),
        clean_ap=average_precision(clean, targets),
        ap=average_precision(found.logits, targets),
        warnings=made.warnings,
    )
