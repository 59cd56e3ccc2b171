"""What `gradient_predicts` finds of deep networks, whole and partly hidden.

    python -m benchmarks.gradients                                    # everything, over an hour
    python -m benchmarks.gradients --networks ViT-Ti --sizes 32 64 --weights random clean

Architectures of torchvision and timm at 32, 64 and 224 pixels (CIFAR-10, enlarged), their weights
random, or trained by AdAP's own loop for a few dozen steps: by `ce` on clean images, by `pgd` and
`adap_lpn` on attacked ones (8/255). Each is looked at as it is, which the check must pass, and with
part of it hidden, which it must name: half of two passes detached, and the mean of the pixels and
their rounded selves as input. A row holds, at each epsilon, correlation and slope of near steps,
the slope along paths and that with two errors above it, and the share of images on which a step
along the averaged gradient beats APGD-10; `?` is a caution, `!` a failure. Rows are in
`results/trust.md`.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from adap.core.attacks.holding import attacking
from adap.core.audit.checks.gradients import gradient_predicts
from adap.core.audit.checks.judging import Judged
from adap.core.audit.checks.planned import DEPTHS, plan_runs
from adap.core.audit.checks.runs import Bench
from adap.core.config.attacks import APGDAttack
from adap.core.config.threats import Threat
from adap.core.config.training import TrainingConfig
from adap.core.objectives.registry import build_objective
from adap.core.training.loop import fit
from adap.models.header import InputSpec
from adap.models.wrappers import Scorer
from benchmarks.certified import cifar10

EPSILONS = (2 / 255, 8 / 255, 16 / 255, 0.25)
EPSILONS_OF_LARGE = (8 / 255,)  # at 224 pixels, where a pass is dear
WEIGHTS = ("random", "ce", "pgd", "adap_lpn")
HELD_OUT = 20  # images that an epoch is judged by


def vit(size: int) -> nn.Module:
    patch = 16 if size == 224 else 4
    return timm.create_model("vit_tiny_patch16_224", img_size=size, patch_size=patch, num_classes=1)


BUILDS: dict[str, Callable[[int], nn.Module]] = {
    "ResNet-18": lambda _: torchvision.models.resnet18(num_classes=1),
    "ResNet-50": lambda _: torchvision.models.resnet50(num_classes=1),
    "ConvNeXt-T": lambda _: torchvision.models.convnext_tiny(num_classes=1),
    "ViT-Ti": vit,
    "EfficientNet-B0": lambda _: torchvision.models.efficientnet_b0(num_classes=1),
}


@dataclass(frozen=True)
class Effort:
    """How much is done at a size: images of each class to train on and to look at, and steps."""

    train: int
    shown: int
    batch_size: int
    steps: int


EFFORTS = {32: Effort(60, 8, 32, 48), 64: Effort(40, 8, 16, 36), 224: Effort(20, 4, 8, 16)}


class HalfHidden(nn.Module):
    """The mean of a network and of the same one on the mirrored image, which no gradient sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.network(x) + self.network(x.detach().flip(3))) / 2
        return logits


class Steps(nn.Module):
    """Pixels in `levels` steps beside themselves, half and half: the gradient sees one half."""

    def __init__(self, network: nn.Module, levels: int = 32) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x + (x * self.levels).round() / self.levels) / 2)
        return logits


GRADIENTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "whole": lambda network: network,
    "half hidden": HalfHidden,
    "half in steps": Steps,
}


def sized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, 3, size, size)."""
    if size == images.shape[-1]:
        return images
    x = torch.tensor(images).float()
    enlarged = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    return enlarged.round().clamp(0, 255).byte().numpy()


def ranker(
    build: Callable[[int], nn.Module],
    images: NDArray[np.uint8],
    targets: NDArray[np.int64],
    *,
    weights: str,
    effort: Effort,
) -> Scorer:
    """With random weights, BatchNorm knows the statistics of its inputs and nothing was learned."""
    size = images.shape[-1]
    torch.manual_seed(0)
    spec = InputSpec(
        channels=3, height=size, width=size, mean=[0.491, 0.482, 0.447], std=[0.247, 0.243, 0.262]
    )
    scorer = Scorer(build(size), spec)
    x, y = torch.tensor(images), torch.tensor(targets)
    if weights == "random":
        with torch.no_grad():
            for _ in range(20):
                scorer.train()(x[: effort.batch_size].float() / 255)
        return scorer.eval()
    per_epoch = -(-(len(x) - HELD_OUT) // effort.batch_size)
    config = TrainingConfig.model_validate(
        {
            "method": weights,
            "epochs": -(-effort.steps // per_epoch),
            "batch_size": effort.batch_size,
            "optimizer": {"lr": 5e-4},
            "attack": {"epsilon": 8 / 255, "steps": 2, "step_size": 6 / 255},
            "validation": {"select_by": "clean_ap"},
        }
    )
    fit(
        scorer,
        build_objective(config.method, examples=len(x) - HELD_OUT),
        images=x[HELD_OUT:],
        targets=y[HELD_OUT:],
        validation=(x[:HELD_OUT], y[:HELD_OUT]),
        config=config,
        device=torch.device("cpu"),
        on_epoch=lambda _: None,
    )
    return scorer.eval()


def cell(
    scorer: nn.Module, images: NDArray[np.uint8], targets: NDArray[np.int64], epsilon: float
) -> str:
    """Correlation / slope, slope along paths, wins, and what the check says of them."""
    bench = Bench(
        images=images,
        targets=targets,
        seed=0,
        batch_size=16,
        device=torch.device("cpu"),
        on_progress=lambda _: None,
    )
    threat, attacks = Threat(epsilon=epsilon), [APGDAttack()]
    run = plan_runs(threat, attacks, DEPTHS["quick"], surrogate=False, box=1)["white_box"]
    with attacking(scorer):
        clean = bench.score(scorer)
        slopes = bench.gradients(scorer, attacks[0], threat)
        searched, _ = bench.attack(scorer, run, network=scorer)
    found = gradient_predicts(clean, slopes, Judged(targets, clean, {"white_box": searched}))
    figures = found.figures
    if not figures:
        return "-"
    if set(found.limits) == {"rounding", "averaged_wins"}:
        return "rounding ?"  # of float32: nothing else tells these scores apart
    text = f"{figures['correlation']:.3f} / {figures['slope']:.2f}"
    if "slope_path" in figures:
        text += f", {figures['slope_path']:.2f} to {figures['slope_path_high']:.2f}"
    text += f", {figures['averaged_wins']:.2f}"
    return text + {"caution": " ?", "fail": " !"}.get(found.status, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--networks", nargs="+", choices=BUILDS, default=list(BUILDS))
    parser.add_argument("--sizes", nargs="+", type=int, choices=EFFORTS, default=list(EFFORTS))
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--gradients", nargs="+", choices=GRADIENTS, default=list(GRADIENTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    shown = " | ".join(f"{epsilon:.3f}" for epsilon in EPSILONS)
    print(f"| network | size | weights | gradient | {shown} |")
    print("|" + "---|" * (4 + len(EPSILONS)), flush=True)
    for size in options.sizes:
        effort = EFFORTS[size]
        pictures = cifar10(options.data, train=effort.train, test=4)
        images = sized(pictures.images[: -pictures.held_out], size)
        labels = pictures.labels[: -pictures.held_out]
        order = np.random.default_rng(0).permutation(len(images))
        images, targets = images[order], (labels == "truck").astype(np.int64)[order]
        rows = np.concatenate([np.flatnonzero(targets == of)[: effort.shown] for of in (0, 1)])
        for name in options.networks:
            for weights in options.weights:
                scorer = ranker(BUILDS[name], images, targets, weights=weights, effort=effort)
                for gradient in options.gradients:
                    seen = GRADIENTS[gradient](scorer)
                    cells = [
                        cell(seen, images[rows], targets[rows], epsilon)
                        if size < 224 or epsilon in EPSILONS_OF_LARGE
                        else "-"
                        for epsilon in EPSILONS
                    ]
                    print(
                        f"| {name} | {size} | {weights} | {gradient} | {' | '.join(cells)} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
