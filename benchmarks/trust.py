"""Trust checks of honest deep networks on photographs, and how near the limits they are.

    python -m benchmarks.trust --data ../shared/data
    python -m benchmarks.trust --data ../shared/data --gradients > benchmarks/results/trust.md

Trains ResNet-18 (ImageNet stem, 32x32) on some hundred images of CIFAR-10, trucks against the
rest, on clean and on attacked images, and runs the checks of an audit with APGD at each epsilon. An
honest network must pass them with room to spare: `docs/trust.md` says how much there was.

With --gradients: the figures of `gradient_predicts` alone, of five architectures at 32, 64 and 224
pixels with random and with trained weights, and of the same networks with half of them, or a
branch, hidden from the gradient; some ten minutes of one processor. The first rows of its output
are in `results/trust.md`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from adap.core.attacks.acceleration import PROBES, accelerate
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.checks.check import check_audit, planned_passes
from adap.core.audit.checks.runs import Bench
from adap.core.audit.checks.verdicts import gradient_predicts, merge
from adap.core.config import APGDAttack, Threat, TrainingConfig
from adap.core.figures.ranking import average_precision
from adap.core.objectives.registry import build_objective
from adap.core.training.loop import fit
from adap.models import architectures
from adap.models.header import InputSpec
from adap.models.wrappers import Scorer
from benchmarks.certified import cifar10

EPSILONS = (2 / 255, 8 / 255)
SPEC = InputSpec(
    channels=3, height=32, width=32, mean=[0.491, 0.482, 0.447], std=[0.247, 0.243, 0.262]
)


def trained(method: str, images: NDArray[np.uint8], targets: NDArray[np.int64]) -> Scorer:
    """After three epochs, or two on attacked images."""
    scorer = Scorer(architectures.build("resnet18", channels=3, seed=0), SPEC)
    config = TrainingConfig.model_validate(
        {
            "method": method,
            "architecture": "resnet18",
            "epochs": 3 if method == "ce" else 2,
            "batch_size": 64,
            "attack": {"steps": 3, "step_size": 0.015},
        }
    )
    x, y = torch.tensor(images), torch.tensor(targets)
    held_out = np.arange(len(x)) % 6 == 0
    fit(
        scorer,
        build_objective(config.method, examples=int((~held_out).sum())),
        images=x[~held_out],
        targets=y[~held_out],
        validation=(x[held_out], y[held_out]),
        config=config,
        device=torch.device("cpu"),
        on_epoch=lambda _: None,
    )
    return scorer.eval()


# --- gradient_predicts on deep networks -----------------------------------------------------------

SIZES = (32, 64, 224)
EPSILONS_OF_STEPS = (2 / 255, 8 / 255, 0.1, 0.25)


def resnet18(_size: int) -> nn.Module:
    return torchvision.models.resnet18(num_classes=1)


def resnet50(_size: int) -> nn.Module:
    return torchvision.models.resnet50(num_classes=1)


def convnext(_size: int) -> nn.Module:
    return torchvision.models.convnext_tiny(num_classes=1)


def vit(size: int) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=size, patch_size=max(size // 14, 4), num_classes=1
    )


def efficientnet(_size: int) -> nn.Module:
    return torchvision.models.efficientnet_b0(num_classes=1)


BUILDS = {
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "ConvNeXt-T": convnext,
    "ViT-Ti": vit,
    "EfficientNet-B0": efficientnet,
}


class OneLogit(nn.Module):
    """(B, 3, H, W) in [0, 1] to (B,) logits, the usual normalisation inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x - 0.45) / 0.25)
        return logits.flatten()


class HalfHidden(nn.Module):
    """The mean of a network and of the same one on the mirrored image, which no gradient sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.network(x) + self.network(x.detach().flip(3))) / 2
        return logits


class Rounded(nn.Module):
    """The output in another type, as under autocast; its gradient goes straight through."""

    def __init__(self, network: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits.to(self.kind).float()


class Steps(nn.Module):
    """Pixels in `levels` steps beside themselves, half and half: the gradient sees one half."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x + (x * self.levels).round() / self.levels) / 2)
        return logits


def sized(images: NDArray[np.uint8], size: int) -> Tensor:
    """(N, 3, size, size) in [0, 1]."""
    x = torch.tensor(images).float() / 255
    if size == x.shape[-1]:
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False).clamp(0, 1)


def quickly_trained(
    build: Callable[[int], nn.Module], x: Tensor, y: Tensor, *, epochs: int, robust: bool = False
) -> OneLogit:
    """A few epochs of Adam; robust: on images after two steps of PGD at 8/255. Without an epoch
    the weights stay random, and BatchNorm learns the statistics of its inputs."""
    torch.manual_seed(0)
    network = OneLogit(build(x.shape[-1])).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            images = x[rows]
            if robust:
                with attacking(network):
                    images = PGD(2, 6 / 255, iterate="last", start="uniform").perturb(
                        lambda x, rows=rows: (1 - 2 * y[rows]) * network(x),
                        images,
                        threat_model=ThreatModel("linf", 8 / 255),
                        generator=torch.Generator().manual_seed(0),
                    )
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(images), y[rows]).backward()
            optimizer.step()
    if not epochs:
        with torch.no_grad():
            for _ in range(20):
                network(x[:16])
    return network.eval()


def gradient_table(folder: Path) -> None:
    """Prints what `gradient_predicts` finds, a network a row."""
    pictures = cifar10(folder, train=40, test=4)
    targets = (pictures.labels == "truck").astype(np.int64)
    train = slice(None, -pictures.held_out)
    print(
        "# What the gradient foretells\n\nCorrelation / slope of `gradient_predicts` at each "
        "epsilon, then the correlation of far steps; 24 photographs of CIFAR-10, 8 at 224.\n"
    )
    print("| network | size | weights | gradient | 2/255 | 8/255 | 0.1 | 0.25 |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name, build in BUILDS.items():
        for size in SIZES:
            x, y = sized(pictures.images[train], size), torch.tensor(targets[train]).float()
            kinds = {"random": (0, False)}
            if size == 32:
                kinds |= {"trained": (6, False), "trained on attacked": (3, True)}
            elif size == 64 and name in ("ResNet-18", "EfficientNet-B0"):
                kinds |= {"trained": (3, False)}
            for weights, (epochs, robust) in kinds.items():
                shown = 4 if size == 224 else 12  # of each class
                rows = np.concatenate(
                    [np.flatnonzero(targets[train] == of)[:shown] for of in (0, 1)]
                )
                network = quickly_trained(build, x, y, epochs=epochs, robust=robust)
                seen: dict[str, nn.Module] = {"whole": network}
                if weights != "random" or size == 224:
                    seen |= {
                        "half hidden": HalfHidden(network),
                        "half in steps": Steps(network, 32),
                    }
                if weights == "trained":
                    seen |= {"bfloat16 output": Rounded(network, torch.bfloat16)}
                for gradient, scorer in seen.items():
                    bench = Bench(
                        images=(255 * x[rows]).round().byte().numpy(),
                        targets=targets[rows],
                        seed=0,
                        batch_size=16,
                        device=torch.device("cpu"),
                        on_progress=lambda _: None,
                    )
                    cells = []
                    for epsilon in EPSILONS_OF_STEPS:
                        with attacking(scorer):
                            found = gradient_predicts(
                                bench.score(scorer),
                                bench.gradients(scorer, APGDAttack(), Threat(epsilon=epsilon)),
                            )
                        figures = found.figures
                        mark = {"caution": " ?", "fail": " !"}.get(found.status, "")
                        cells.append(
                            f"{figures['correlation']:.3f} / {figures['slope']:.2f}, "
                            f"{figures.get('correlation_far', figures['correlation']):.3f}{mark}"
                            if figures
                            else "-"
                        )
                    print(
                        f"| {name} | {size} | {weights} | {gradient} | {' | '.join(cells)} |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--train", type=int, default=60, help="images of each class")
    parser.add_argument("--gradients", action="store_true", help="gradient_predicts alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.gradients:
        gradient_table(options.data)
        return
    pictures = cifar10(options.data, train=options.train, test=50)
    images, targets = pictures.images, (pictures.labels == "truck").astype(np.int64)
    train, test = slice(None, -pictures.held_out), slice(-pictures.held_out, None)
    for method in ("ce", "pgd"):
        start = time.perf_counter()
        scorer = trained(method, images[train], targets[train])
        seconds = time.perf_counter() - start
        x = torch.tensor(images[test]).float() / 255
        with torch.no_grad():
            ap = average_precision(scorer(x), targets[test])
        print(f"\n{method}: trained in {seconds:.0f} s, clean AP {ap:.3f} of {len(x)}", flush=True)
        for epsilon in EPSILONS:
            threat, attacks = Threat(epsilon=epsilon), [APGDAttack(steps=10)]
            passes = planned_passes(
                targets[test], threat=threat, attacks=attacks, level="quick", surrogate=False
            )
            start = time.perf_counter()
            checks = check_audit(
                accelerate(scorer, x[:PROBES], passes=passes),
                images[test],
                targets[test],
                threat=threat,
                attacks=attacks,
                level="quick",
                surrogate=None,
                seed=0,
                batch_size=64,
                device=torch.device("cpu"),
                on_progress=lambda _: None,
            )
            verdict = merge({"truck": checks}).verdict
            print(f"epsilon {epsilon:.4f}: {verdict}, {time.perf_counter() - start:.0f} s")
            for check in checks:
                figures = {name: float(f"{value:.3g}") for name, value in check.figures.items()}
                print(f"  {check.status:8} {check.name:18} {figures}", flush=True)


if __name__ == "__main__":
    main()
