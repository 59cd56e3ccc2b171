"""A network of one's own, with three classes and normalised inputs, audited as it is."""

import torch
from torch import Tensor, nn

import adap


class Glance(nn.Module):
    """Two layers that look at normalised pixels; a logit for each of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 8, 3, stride=2)
        self.decide = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decide(torch.relu(self.look(x)).mean(dim=(2, 3)))


def main() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (60, 12, 12, 3), dtype=torch.uint8)  # as files hold them
    labels = ["cat", "dog", "other"] * 20
    report = adap.audit(
        Glance().eval(),
        images,
        labels,
        positive="dog",
        classes=["cat", "dog", "other"],
        mean=[0.5, 0.5, 0.5],
        std=[0.25, 0.25, 0.25],
        epsilon=4 / 255,
        attacks=[adap.PGD(steps=5), adap.APGD(steps=5)],
        groups=["day", "night"] * 30,
        require="clean_ap >= 0.1",
    )
    print(report)
    print("passed" if report.passed else "failed")


if __name__ == "__main__":
    main()
