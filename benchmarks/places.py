"""AP under few pixels, a patch, L1 and one perturbation for all: ours and the field's.

    python -m benchmarks.places                        # two minutes; benchmarks/results/places.md
    python -m benchmarks.places --sparse-rs FOLDER     # the authors' Sparse-RS among the peers

Networks of scikit-learn's digits as in `benchmarks.strength`, with its peers; gradients and queries
of an image are counted inside the network. github.com/fra31/sparse-rs is no package: its folder is
named. It and AutoAttack's Square stop an image once a label flips, so they are shown logits so far
from zero that none does; OnePixel stops as it is.
"""

import argparse
import datetime
import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

import adap
from adap.core.attacks.apgd import APGD
from adap.core.attacks.pgd import PGD
from adap.core.attacks.sparse import SparseSearch
from adap.core.attacks.threat_model import ThreatModel
from benchmarks.strength import (
    Run,
    TwoLogits,
    digits,
    ours,
    outcome,
    quiet,
    table,
    trained,
    unattacked,
)

RESULTS = Path(__file__).parent / "results" / "places.md"
METHODS = ("ce", "pgd")
PIXELS, SIDE = 3, 2
GRADIENTS, QUERIES = 20, 200
UNIVERSAL = 0.15  # L-inf
LENGTH = 2.0  # L1
FAR = 64.0  # logits beyond any that the networks give


class Counted(nn.Module):
    """The network, with the images that it was shown counted, whoever copied it."""

    shown: ClassVar[int] = 0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        Counted.shown += len(x)
        logits: Tensor = self.network(x)
        return logits


class Shifted(nn.Module):
    """(0, z + by) for z, the logit of two."""

    def __init__(self, network: nn.Module, by: float) -> None:
        super().__init__()
        self.network, self.by = network, by

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits + logits.new_tensor([0, self.by])


def authors(pixels: int) -> Run:
    """Sparse-RS as its authors wrote it, each side by itself."""

    def run(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        # a script in the folder that was named, and no package
        from rs_attacks import RSAttack  # type: ignore[import-not-found]

        found = x.clone()
        for target in (0, 1):
            rows = targets == target
            seen = Shifted(network, FAR if target else -FAR).eval()
            attack = RSAttack(
                seen, norm="L0", n_queries=QUERIES, eps=pixels, p_init=0.3, device="cpu"
            )
            attack.init_hyperparam(x[rows])
            found[rows] = attack.attack_single_run(x[rows], targets[rows])[1]
        return [found]

    return run


def autoattack_square(epsilon: float) -> Run:
    """Square in L1 as AutoAttack has it, each side by itself, as above."""

    def run(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        from pyautoattack.square import SquareAttack

        found = x.clone()
        for target in (0, 1):
            rows = targets == target
            seen = Shifted(network, FAR if target else -FAR).eval()
            attack = SquareAttack(seen, norm="L1", eps=epsilon, n_queries=QUERIES, device="cpu")
            attack.init_hyperparam(x[rows])
            found[rows] = attack.attack_single_run(x[rows], targets[rows])[1]
        return [found]

    return run


def one_pixel(pixels: int) -> Run:
    """Differential evolution, two candidates for each number that is searched for."""

    def run(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        import torchattacks

        numbers = pixels * (2 + x.shape[1])
        steps = QUERIES // (2 * numbers) - 1
        attack = torchattacks.OnePixel(network, pixels=pixels, steps=steps, popsize=2 * numbers)
        return [attack(x, targets)]

    return run


def classifier(network: TwoLogits, x: Tensor) -> Any:
    """The network as ART's attacks take it."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=2,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def art_patch(side: int) -> Run:
    """AdversarialPatch on one image at a time, in the middle: it searches for no place."""

    def run(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        from art.attacks.evasion import AdversarialPatchPyTorch

        estimator = classifier(network, x)
        corner = (x.shape[-1] - side) // 2
        found = []
        for image, target in zip(x, targets, strict=True):
            attack = AdversarialPatchPyTorch(
                estimator,
                rotation_max=0.0,
                scale_min=1.0,
                scale_max=1.0 + 1e-6,
                learning_rate=2.5 / GRADIENTS,
                max_iter=GRADIENTS,
                patch_shape=(len(image), side, side),
                patch_location=(corner, corner),
                patch_type="square",
                optimizer="pgd",
                targeted=False,
                verbose=False,
            )
            label = np.eye(2, dtype=np.float32)[[int(target)]]
            attack.generate(image[None].numpy(), label)
            patched = image.clone()
            inside = slice(corner, corner + side)
            patched[:, inside, inside] = attack._patch.detach().float()
            found.append(patched)
        return [torch.stack(found)]

    return run


def universal(network: TwoLogits, x: Tensor, targets: Tensor) -> Tensor:
    found = adap.universal(
        nn.Sequential(network, _Second()),
        x.numpy(),
        targets.numpy(),
        epsilon=UNIVERSAL,
        rounds=GRADIENTS - 1,
    )
    return found.delta


class _Second(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, 1]


def art_universal(network: TwoLogits, x: Tensor, targets: Tensor) -> Tensor:
    from art.attacks.evasion import UniversalPerturbation

    inner = {"eps": UNIVERSAL, "eps_step": UNIVERSAL / 4, "max_iter": GRADIENTS, "verbose": False}
    attack = UniversalPerturbation(
        classifier(network, x),
        attacker="pgd",
        attacker_params=inner,
        max_iter=1,
        eps=UNIVERSAL,
        norm=np.inf,
        verbose=False,
    )
    attack.generate(x.numpy(), np.eye(2, dtype=np.float32)[targets])
    return torch.from_numpy(attack.noise[0])


def under_one(
    find: Callable[[TwoLogits, Tensor, Tensor], Tensor],
    network: nn.Module,
    x: Tensor,
    targets: Tensor,
) -> tuple[float, float]:
    """AP with one perturbation added to every image, and the gradients of an image behind it."""
    counting = TwoLogits(network).eval()
    torch.manual_seed(0)
    delta = find(counting, x, targets)
    with torch.no_grad():
        logits = network((x + delta.clamp(-UNIVERSAL, UNIVERSAL)).clamp(0, 1))
    return average_precision_score(targets, logits), counting.gradients / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparse-rs", type=Path, help="folder of github.com/fra31/sparse-rs")
    options = parser.parse_args()
    quiet()
    started = time.perf_counter()
    problem = digits(quick=False)
    networks = [Counted(trained(problem, method)).eval() for method in METHODS]
    x, targets = problem.test[0][:150].float() / 255, problem.test[1][:150]
    few, patch = ThreatModel("l0", PIXELS), ThreatModel("patch", SIDE)
    length = ThreatModel("l1", LENGTH)

    def gradient_attacks(threat: ThreatModel) -> dict[str, Run]:
        return {
            "clean": unattacked,
            "ours PGD": ours(threat, PGD(GRADIENTS, 2.5 / GRADIENTS)),
            "ours APGD": ours(threat, APGD(GRADIENTS)),
        }

    searched = {"ours square": ours(few, SparseSearch(QUERIES))}
    if options.sparse_rs:
        sys.path.append(str(options.sparse_rs))
        searched["Sparse-RS, the authors' code"] = authors(PIXELS)
    searched["torchattacks OnePixel"] = one_pixel(PIXELS)
    tables = {
        f"{PIXELS} pixels (l0)": gradient_attacks(few) | searched,
        f"A patch of {SIDE} x {SIDE} pixels": gradient_attacks(patch)
        | {
            "ART AdversarialPatch, in the middle": art_patch(SIDE),
            "ours square": ours(patch, SparseSearch(QUERIES)),
        },
        f"L1, epsilon {LENGTH:g}": {
            "clean": unattacked,
            "ours square": ours(length, SparseSearch(QUERIES)),
            "AutoAttack Square": autoattack_square(LENGTH),
        },
    }
    parts = [
        "# Few pixels, patches, L1 and one perturbation for all, beside the field\n",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, "
        + ", ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("adversarial-robustness-toolbox", "torchattacks", "pyautoattack")
        )
        + f"; `python -m benchmarks.places`. Networks of scikit-learn's digits, {len(x)} test "
        "images; AP, and in brackets the mean margin.",
    ]
    columns = [*METHODS, "gradients an image", "images shown an image"]
    for title, runs in tables.items():
        rows: dict[str, list[str]] = {}
        for name, run in runs.items():
            Counted.shown = 0
            found = outcome(run, networks[0], x, targets)
            shown = Counted.shown / len(x) - 2  # scored clean and in the end
            second = outcome(run, networks[1], x, targets)
            rows[name] = [
                *(f"{it.ap:.3f} ({it.margin:.2f})" for it in (found, second)),
                f"{found.gradients:.0f}",
                f"{max(shown, 0):.0f}",
            ]
            print(name, rows[name], flush=True)
        parts += [f"\n## {title}\n", table("AP under", columns, rows)]
    rows = {"clean": [f"{outcome(unattacked, it, x, targets).ap:.3f}" for it in networks] + ["0"]}
    for name, find in {"ours": universal, "ART UniversalPerturbation": art_universal}.items():
        each = [under_one(find, network, x, targets) for network in networks]
        rows[name] = [*(f"{ap:.3f}" for ap, _ in each), f"{each[0][1]:.0f}"]
    parts += [
        f"\n## One perturbation for all images, L-inf {UNIVERSAL}\n",
        table("AP under", columns[:3], rows),
    ]
    report = "\n".join(parts)
    print(report, f"\n{time.perf_counter() - started:.0f} s")
    RESULTS.write_text(report + "\n")


if __name__ == "__main__":
    main()
