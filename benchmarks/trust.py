"""Trust checks of honest deep networks, how near the limits they are, and of networks that hide.

    python -m benchmarks.trust --data ../shared/data
    python -m benchmarks.trust --hiding --images 60 --only 8x8

Trains ResNet-18 (ImageNet stem, 32x32) on some hundred images of CIFAR-10, trucks against the
rest, on clean and on attacked images, and runs the checks of an audit with APGD at each epsilon. An
honest network must pass them with room to spare: `docs/trust.md` says how much there was.

`--hiding` audits the networks of `benchmarks.recovery`, whose gradients tell half the truth: the
worst-case AP that each preset finds and the verdict of its checks, beside the AP by the gradient of
the same function with nothing hidden.
"""

import argparse
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

import adap
from adap.core.attacks.acceleration import PROBES, accelerate
from adap.core.audit.checks.check import check_audit, planned_passes
from adap.core.audit.checks.verdicts import merge
from adap.core.config.attacks import APGDAttack
from adap.core.config.threats import Threat
from adap.core.config.training import TrainingConfig
from adap.core.figures.ranking import average_precision
from adap.core.objectives.registry import build_objective
from adap.core.training.loop import fit
from adap.models import architectures
from adap.models.header import InputSpec
from adap.models.wrappers import Scorer
from benchmarks.certified import cifar10
from benchmarks.recovery import CASES, TRAIN, Case, digits, whole_gradient

# By preset and level of the checks.
AUDITS: dict[str, tuple[str, Literal["quick", "full"]]] = {
    "quick": ("quick", "quick"),
    "standard": ("standard", "quick"),
    "full": ("standard", "full"),
}
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


def hiding(case: Case, images: int) -> str:
    """Worst-case AP and verdict of each audit, and the AP by the whole gradient."""
    x, y = digits(case.side)
    x, y = x[TRAIN:][:images], y[TRAIN:][:images]
    cells = []
    for preset, level in AUDITS.values():
        audit = adap.audit(
            case.hides().eval(),
            x,
            y,
            epsilon=case.epsilon,
            epsilons=[],
            certify="off",
            preset=preset,
            checks=level,
            progress=False,
        )
        trust = audit.report.trust
        assert trust is not None
        named = [check.name for check in trust.checks if check.status in ("caution", "fail")]
        cells.append(
            f"{audit.worst_case.ap:.3f}, {trust.verdict}"
            f"{': ' if named else ''}{', '.join(f'`{name}`' for name in named)}"
        )
    truth = whole_gradient(case, x, y, clean=audit.scores[0].clean)
    return " | ".join([*cells, f"{truth:.3f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--train", type=int, default=60, help="images of each class")
    parser.add_argument("--hiding", action="store_true", help="networks that hide, instead")
    parser.add_argument("--images", type=int, default=60, help="that are audited there")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.hiding:
        print(f"| network | {' | '.join(AUDITS)} | by the whole gradient |\n|---|---|---|---|---|")
        for name, case in CASES.items():
            if options.only in name:
                print(f"| {name} | {hiding(case, options.images)} |", flush=True)
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
