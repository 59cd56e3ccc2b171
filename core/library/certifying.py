"""Bounds that no attack breaks: `adap.certify`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.certify.bounds import Method, certified_bounds, certified_floor_ap
from adap.core.config.threats import EPSILON_PAPER, Norm
from adap.core.library.examples import Layout
from adap.core.library.gradients import Options, prepared
from adap.core.library.rankers import Outputs
from adap.core.library.refusals import threat_of


@dataclass(frozen=True)
class Certified:
    """Lowest and highest logit that any perturbation of each image can reach, and what follows.

    lo, hi: (N,) float64.  ap: an AP that no attack within the threat model gets below, in [0, 1].
    warnings: what was decided about the model and the images.

    >>> adap.Certified(torch.tensor([1.0]), torch.tensor([2.0]), ap=1.0).ap
    1.0
    """

    lo: Tensor
    hi: Tensor
    ap: float
    warnings: Sequence[str] = ()


def certify(
    model: nn.Module,
    images: Any,
    labels: Any = None,
    *,
    epsilon: float | str = EPSILON_PAPER,
    norm: Norm = "linf",
    method: Method = "crown_ibp",
    positive: Any = None,
    outputs: Outputs = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: Layout | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> Certified:
    """Bounds on every logit that hold against every attack, and the certified floor of AP.

    model, images, labels and the options that `adap.audit` has: as there.  method: 'ibp',
    'crown_ibp' or 'crown', from cheap and loose to dear and tight.

    Raises ModelError for a network with an operation that cannot be bounded, naming it, and for a
    function; ConfigError and DataError as `adap.audit`. Source: `adap.core.audit.certify.bounds`.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
    >>> images, labels = torch.rand(8, 3, 4, 4), torch.tensor([0, 1] * 4)
    >>> found = adap.certify(model, images, labels, epsilon=1/255)
    >>> bool((found.lo <= found.hi).all()), 0 <= found.ap <= 1
    (True, True)
    """
    threat = threat_of(epsilon, norm)
    options = Options(positive, outputs, mean, std, layout, batch_size, device)
    with prepared(model, images, labels, options, because="whose operations are bounded") as made:
        parts = []
        for rows in made.batches():
            lo, hi = certified_bounds(
                made.ranker.scorer,
                made.input(rows),
                threat=ThreatModel(threat.norm, threat.epsilon),
                method=method,
            )
            parts.append((lo.cpu(), hi.cpu()))
        lo, hi = (torch.cat(side) for side in zip(*parts, strict=True))
        targets = torch.from_numpy(made.examples.targets)
    return Certified(lo, hi, certified_floor_ap(lo, hi, targets), made.warnings)
