"""AP left by attacks through a deployment pipeline, by ours and by ART at equal gradients.

    python -m benchmarks.pipeline        # some minutes; writes benchmarks/results/pipeline.md

CIFAR-10, automobile above the rest, by a small network; every change is in front of a JPEG file
(Pillow's) and every score behind it. The peer is ART's PGD with its JpegCompression in front of the
network, which passes gradients as they are (pip install --no-deps adversarial-robustness-toolbox,
and tqdm).
"""

import argparse
import importlib.metadata
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adap.core.attacks.apgd import APGD
from adap.core.attacks.base import Attack, PerImage
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.deployed import deployed
from adap.core.config.deployment import JPEGStep
from adap.core.figures.ranking import average_precision
from benchmarks.strength import TwoLogits, read_zip, table

RESULTS = Path(__file__).parent / "results" / "pipeline.md"
SIDE = 32
EPSILON = 4 / 255
STEPS = 20
QUALITIES = (90, 75, 50, 30)


def network_of(images: Tensor, targets: Tensor) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 1),
        nn.Flatten(0),
    )
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(6):
        for rows in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            logits = network(images[rows])
            F.binary_cross_entropy_with_logits(logits, targets[rows].float()).backward()
            optimiser.step()
    return network.eval().requires_grad_(False)


def art_pgd(network: nn.Module, x: Tensor, targets: Tensor, *, quality: int) -> Tensor:
    """The peer's: through the same file, with the gradient of doing nothing."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.preprocessor import JpegCompression
    from art.estimators.classification import PyTorchClassifier

    jpeg = JpegCompression(clip_values=(0, 1), quality=quality, channels_first=True)
    classifier = PyTorchClassifier(
        TwoLogits(network),
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, SIDE, SIDE),
        nb_classes=2,
        clip_values=(0, 1),
        preprocessing_defences=[jpeg],
        device_type="cpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=EPSILON,
        eps_step=2.5 * EPSILON / STEPS,
        max_iter=STEPS,
        batch_size=len(x),
        verbose=False,
    )
    return torch.from_numpy(attack.generate(x.numpy(), y=targets.numpy()))


def ours(network: nn.Module, x: Tensor, targets: Tensor, attack: Attack) -> Tensor:
    with attacking(network):
        return attack.perturb(
            PerImage(lambda x, signs: signs * network(x), (1 - 2 * targets).float()),
            x,
            threat_model=ThreatModel("linf", EPSILON),
            generator=torch.Generator().manual_seed(0),
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--print", action="store_true", help="do not write the table")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="CIFAR-10 as zips"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images, targets = read_zip(
        arguments.data / "cifar10-train.zip", positives=750, negatives=2250, reduced=1
    )
    network = network_of(images.float() / 255, targets)
    images, marks = read_zip(
        arguments.data / "cifar10-test.zip", positives=60, negatives=180, reduced=1
    )
    x = images.float() / 255
    pgd, apgd = PGD(STEPS, 2.5 * EPSILON / STEPS), APGD(STEPS)
    rows: dict[str, list[str]] = {}
    for quality in QUALITIES:
        behind = deployed(network, [JPEGStep(quality=quality)])

        def left(x_adv: Tensor, behind: nn.Module = behind) -> str:
            with torch.no_grad():
                return f"{average_precision(behind(x_adv).double().numpy(), marks.numpy()):.3f}"

        started = time.process_time()
        found = {
            "no attack": x,
            "our PGD, JPEG ignored": ours(network, x, marks, pgd),
            "ART's PGD through JPEG": art_pgd(network, x, marks, quality=quality),
            "our PGD through JPEG": ours(behind, x, marks, pgd),
            "our APGD through JPEG": ours(behind, x, marks, apgd),
        }
        for name, x_adv in found.items():
            assert float((x_adv - x).abs().max()) <= EPSILON + 1e-6, name
            rows.setdefault(name, []).append(left(x_adv))
        print(quality, f"{time.process_time() - started:.0f} s", flush=True)
    text = "\n".join(
        [
            "# Attacks through JPEG",
            "",
            f"AP left on {len(x)} images of CIFAR-10 ({int(marks.sum())} automobiles; themselves "
            f"from JPEGs of quality 75), L-inf 4/255, {STEPS} gradients an",
            "image; behind a JPEG file of the quality at the head of each column. "
            "`python -m benchmarks.pipeline`, "
            f"{time.strftime('%Y-%m-%d')},",
            f"torch {torch.__version__}, Pillow {importlib.metadata.version('pillow')}, ART "
            f"{importlib.metadata.version('adversarial-robustness-toolbox')}, "
            f"{platform.machine()}. Seeds are fixed; one",
            "network says little of others.",
            "",
            table("attack", [str(quality) for quality in QUALITIES], rows),
            "",
        ]
    )
    print(text)
    if not arguments.print:
        RESULTS.write_text(text)


if __name__ == "__main__":
    np.random.seed(0)  # ART
    main()
