"""What an audit will cost is what it then costs: the judge is a network that counts its passes."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adap
from adap.core.audit.foreseen import Extent, of_task
from adap.core.config.audits import AuditConfig

COUNT, SIDE = 12, 32  # as small as corruptions allow
ASIDE = 0.06  # what is tried beforehand: a few images, a sample for the gradient


class Count:
    """Passes of images, one count for all copies of a network."""

    passes = 0

    def __deepcopy__(self, _: object) -> "Count":
        return self


class Counting(nn.Module):
    """A linear ranker that counts the images that pass it, there and back."""

    def __init__(self, *, stepped: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3 * SIDE * SIDE))
        self.stepped = stepped
        self.count = Count()

    def forward(self, x: Tensor) -> Tensor:
        self.count.passes += len(x) * (1 + x.requires_grad)
        z = x.flatten(1) @ self.weight
        if self.stepped:  # half of the score has no gradient
            z = z + (8 * x.flatten(1)).floor() @ self.weight / 8
        return z


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "stepped"), [("quick", False), ("standard", True)])
def test_the_cost_of_an_audit_is_known_beforehand(
    preset: Literal["quick", "standard"], stepped: bool
) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, 3, SIDE, SIDE), np.uint8)
    labels = np.arange(COUNT) % 3 == 0
    network = Counting(stepped=stepped)
    report = adap.audit(
        network,
        images,
        labels.astype(int),
        preset=preset,
        corruptions=["fog", "contrast"],
        universal={"rounds": 40},
        progress=False,
    )
    task = report.report.tasks[0]
    assert (task.searched_on is not None) == stepped
    config = AuditConfig.model_validate(report.report.provenance.config)
    extent = Extent(images=COUNT, positives=int(labels.sum()), height=SIDE, width=SIDE)
    foreseen = of_task(config, extent)
    expected = foreseen.most if stepped else foreseen.sure
    assert network.count.passes == pytest.approx(expected, rel=ASIDE)
    assert (foreseen.most > 2 * foreseen.sure) == stepped


def test_a_pipeline_that_draws_costs_as_many_times_its_draws() -> None:
    extent = Extent(images=COUNT, positives=COUNT // 3, height=SIDE, width=SIDE)
    once = of_task(AuditConfig.model_validate({"pipeline": [{"name": "jpeg"}]}), extent)
    varying = [{"name": "jpeg", "least_quality": 50}]
    often = of_task(AuditConfig.model_validate({"pipeline": varying}), extent)
    assert (often.sure, often.most) == (16 * once.sure, 16 * once.most)
