"""What audits leave of networks whose gradient tells half the truth, before and after searching on.

    python -m benchmarks.recovery --images 60 > benchmarks/results/recovery.md
    python -m benchmarks.recovery --images 60 --only 32x32

Handwritten digits of scikit-learn, enlarged where a row says so, 3, 5 and 8 against the others;
small convolutional networks with a part that no gradient sees. Each row: AP under the preset's
attacks that follow gradients, under all attacks of `standard`, and after the search went on
(`apgd_averaged`, `square_long`); what 40 steps of PGD by the gradient of the same function leave if
nothing of it is hidden; the attack that was strongest on most images; the verdict of quick checks.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import adap
from adap import rounding
from adap.core.figures.ranking import average_precision

TRAIN = 1200


def digits(side: int) -> tuple[Tensor, Tensor]:
    """(1797, 1, side, side) in [0, 1] and (1797,) in {0, 1}."""
    data = load_digits()
    x = torch.tensor((data.images * 15).round() / 255).float()[:, None]
    if side > x.shape[-1]:
        x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    return x, torch.tensor(np.isin(data.target, (3, 5, 8)).astype(np.int64))


def linear(side: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 1), nn.Flatten(0))


def cnn(side: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    channels, left = 8, side
    while left > 4:
        layers += [nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU()]
        channels, left = 16, left // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * left * left, 1), nn.Flatten(0))


def trained(build: Callable[[int], nn.Sequential], side: int, *, seed: int = 0) -> nn.Sequential:
    """Eight epochs of cross-entropy."""
    torch.manual_seed(seed)
    network, generator = build(side), torch.Generator().manual_seed(seed)
    x, y = digits(side)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(8):
        for rows in torch.randperm(TRAIN, generator=generator).split(64):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(x[rows]), y[rows].float()).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


class Cut(nn.Module):
    """share * one network + the rest of another; the gradient of the first is cut unless `sees`."""

    def __init__(self, side: int, share: float, *, sees: bool) -> None:
        super().__init__()
        self.one, self.other = trained(cnn, side), trained(cnn, side, seed=1)
        self.share, self.sees = share, sees

    def forward(self, x: Tensor) -> Tensor:
        one: Tensor = self.one(x if self.sees else x.detach())
        return self.share * one + (1 - self.share) * self.other(x)


class Steps(nn.Module):
    """A share of the first activations in steps of 1/8; with `skip` a linear ranker is added.

    sees: with a gradient straight through.  ours: as in a graph whose rounding AdAP follows.
    """

    rounds = False

    def __init__(
        self, side: int, share: float, *, skip: bool = False, sees: bool = False, ours: bool = False
    ) -> None:
        super().__init__()
        self.network = trained(cnn, side)
        self.skip = trained(linear, side) if skip else None
        self.share, self.sees, self.rounds = share, sees or ours, ours

    def without_rounding(self):  # type: ignore[no-untyped-def]
        return rounding.left_out()

    def forward(self, x: Tensor) -> Tensor:
        h = self.network[1](self.network[0](x))
        count = int(self.share * h.shape[1])
        first = h[:, :count]
        stepped = rounding.floor(first * 8) / 8 if self.sees else torch.floor(first * 8) / 8
        z: Tensor = self.network[2:](torch.cat([stepped, h[:, count:]], 1))
        return z if self.skip is None else z + self.skip(x)


class Waves(nn.Module):
    """A network, and unless `sees` 0.005 sum sin(200 x), far too small to matter, beside it."""

    def __init__(self, side: int, *, sees: bool) -> None:
        super().__init__()
        self.network, self.sees = trained(cnn, side), sees
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("signs", torch.randn(side * side, generator=generator).sign())

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.network(x)
        waves = 0.005 * (200 * x.flatten(1) * self.signs).sin().sum(1)
        return z if self.sees else z + waves


@dataclass(frozen=True)
class Case:
    """A network whose gradient hides something, and the same function with one that does not."""

    side: int
    epsilon: float
    hides: Callable[[], nn.Module]
    sees: Callable[[], nn.Module]


CASES = {
    "branch in steps of 1/8 beside a skip, 8x8": Case(
        8, 0.1, lambda: Steps(8, 1, skip=True), lambda: Steps(8, 1, skip=True, sees=True)
    ),
    "the same, followed straight through, 8x8": Case(
        8, 0.1, lambda: Steps(8, 1, skip=True, ours=True), lambda: Steps(8, 1, skip=True, sees=True)
    ),
    "90 % of the network detached, 8x8": Case(
        8, 0.1, lambda: Cut(8, 0.9, sees=False), lambda: Cut(8, 0.9, sees=True)
    ),
    "+ 0.005 sum sin(200 x), 8x8": Case(
        8, 0.1, lambda: Waves(8, sees=False), lambda: Waves(8, sees=True)
    ),
    "75 % of channels in steps of 1/8, 16x16": Case(
        16, 0.05, lambda: Steps(16, 0.75), lambda: Steps(16, 0.75, sees=True)
    ),
    "two networks, 80 % detached, 16x16": Case(
        16, 0.05, lambda: Cut(16, 0.8, sees=False), lambda: Cut(16, 0.8, sees=True)
    ),
    "75 % of channels in steps of 1/8, 32x32": Case(
        32, 0.03, lambda: Steps(32, 0.75), lambda: Steps(32, 0.75, sees=True)
    ),
}


def pgd(sees: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """40 steps that shrink, by this network's gradient; written out, as it is the judge."""
    sign, adv = 1 - 2 * y.float(), x
    for step in range(40):
        adv = adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((sign * sees(adv)).sum(), adv)
        adv = adv.detach() + 2.5 * epsilon / 40 * 2 * (1 - step / 40) * gradient.sign()
        adv = torch.minimum(torch.maximum(adv, x - epsilon), x + epsilon).clamp(0, 1)
    return adv.detach()


def whole_gradient(case: Case, x: Tensor, y: Tensor, *, clean: NDArray[np.float64]) -> float:
    """AP of the lower of the clean margin and the one by the gradient with nothing hidden."""
    found = pgd(case.sees().eval(), x, y, case.epsilon)
    network = case.hides().eval()
    with torch.no_grad():
        moved = network(found).double().numpy()
    signs = 2 * y.numpy() - 1
    return average_precision(signs * np.minimum(signs * clean, signs * moved), y.numpy())


def row(case: Case, images: int) -> str:
    x, y = digits(case.side)
    x, y = x[TRAIN:][:images], y[TRAIN:][:images]
    network = case.hides().eval()
    audit = adap.audit(
        network,
        x,
        y,
        epsilon=case.epsilon,
        epsilons=[],
        certify="off",
        checks="quick",
        progress=False,
    )
    signs, scores = 2 * y.numpy() - 1, audit.scores[0]

    def ap(*names: str) -> float:
        logits = [scores.clean, *(scores.attacked[name] for name in names)]
        return average_precision(signs * (signs * np.stack(logits)).min(axis=0), y.numpy())

    truth = whole_gradient(case, x, y, clean=scores.clean)
    won = audit.task.worst_case.won
    first = max(won, key=won.__getitem__)
    trust = audit.report.trust
    assert trust is not None
    named = [check.name for check in trust.checks if check.status == "fail"]
    return (
        f"{ap('pgd', 'apgd'):.3f} | {ap('pgd', 'apgd', 'square'):.3f} | "
        f"{audit.worst_case.ap:.3f} | {truth:.3f} | `{first}` on {won[first]} | "
        f"{trust.verdict}{': ' if named else ''}{', '.join(f'`{name}`' for name in named)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| network | gradient attacks | `standard` | searched on | by the whole gradient "
        "| won most | quick checks |\n|---|---|---|---|---|---|---|"
    )
    for name, case in CASES.items():
        if options.only in name:
            print(f"| {name} | {row(case, options.images)} |", flush=True)


if __name__ == "__main__":
    main()
