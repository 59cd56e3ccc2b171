"""Cost of attacks, ours and those of the field's libraries, on the same network and images.

    python -m benchmarks.attacks --write benchmarks/results/attacks.md

PGD-10 with the best iterate needs 10 forward and backward passes to the input and 1 forward pass.
That bare cost, in eager mode with frozen parameters and in one batch, is 1.00, and everything is
given as a multiple of it: all of them in turn, again and again, and the median of the ratios within
a turn. The processor's time is given beside the clock's, as it suffers less from what else runs.

The peers are measured where they are installed, on two logits (0, z), since they cannot attack one:

    pip install --no-deps torchattacks pyautoattack foolbox adversarial-robustness-toolbox \
        eagerpy GitPython gitdb smmap requests tqdm pandas pytz

torchattacks, foolbox and ART look at no loss after the last step: one forward pass less to pay for.
"""

import argparse
import ctypes
import dataclasses
import datetime
import gc
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from adap.core.attacks.acceleration import accelerate
from adap.core.attacks.apgd import APGD
from adap.core.attacks.base import PerImage, loss_and_gradient
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD
from adap.core.attacks.square import Square
from adap.core.attacks.threat_model import ThreatModel
from adap.core.figures.ranking import average_precision
from adap.models import architectures

STEPS, EPSILON = 10, 8 / 255
STEP_SIZE = 2.5 * EPSILON / STEPS
LINF = ThreatModel("linf", EPSILON)
MUCH = 10**6  # passes to come: an audit
Run = Callable[[], object]


class Scorer(nn.Module):
    """A network that starts from pixels, as an audited one does: normalisation, then (B,) logits"""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x - 0.45) / 0.25)
        return logits.flatten()


class TwoLogits(nn.Module):
    """(0, z): the two-class model whose cross-entropy is that of the logit z."""

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, x: Tensor) -> Tensor:
        z = self.scorer(x)
        return torch.stack([torch.zeros_like(z), z], dim=1)


def margin_loss(scorer: nn.Module, targets: Tensor) -> PerImage:
    return PerImage(lambda x, signs: signs * scorer(x), 1.0 - 2 * targets)


# --- time and memory ------------------------------------------------------------------------------


def bare(scorer: nn.Module, x: Tensor, targets: Tensor) -> Run:
    loss_fn = margin_loss(scorer, targets)

    def run() -> None:
        for _ in range(STEPS):
            loss_and_gradient(loss_fn, x)
        with torch.no_grad():
            loss_fn(x)

    return run


def ours(scorer: nn.Module, x: Tensor, targets: Tensor) -> dict[str, Run]:
    fast = accelerate(scorer, x, passes=MUCH)

    def run(attack: PGD | APGD, scorer: nn.Module) -> Run:
        loss_fn, generator = margin_loss(scorer, targets), torch.Generator().manual_seed(0)
        return lambda: attack.perturb(loss_fn, x, threat_model=LINF, generator=generator)

    pgd, apgd = PGD(STEPS, STEP_SIZE), APGD(STEPS)
    return {
        "bare passes, accelerated": bare(fast, x, targets),
        "PGD-10": run(pgd, scorer),
        "PGD-10, accelerated": run(pgd, fast),
        "APGD-10": run(apgd, scorer),
        "APGD-10, accelerated": run(apgd, fast),
    }


def compiled(scorer: nn.Module, x: Tensor, targets: Tensor) -> dict[str, Run]:
    start = time.perf_counter()
    run = bare(torch.compile(scorer, dynamic=False), x, targets)
    run()
    name = f"bare passes, torch.compile ({time.perf_counter() - start:.0f} s before the first)"
    return {name: run}


def torchattacks_pgd(network: nn.Module, x: Tensor, targets: Tensor) -> dict[str, Run]:
    import torchattacks

    attack = torchattacks.PGD(network, EPSILON, STEP_SIZE, STEPS)
    return {"torchattacks PGD-10": lambda: attack(x, targets)}


def foolbox_pgd(network: nn.Module, x: Tensor, targets: Tensor) -> dict[str, Run]:
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS)
    return {"foolbox LinfPGD-10": lambda: attack(model, x, targets, epsilons=EPSILON)}


def art_pgd(network: nn.Module, x: Tensor, targets: Tensor) -> dict[str, Run]:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=2,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=EPSILON,
        eps_step=STEP_SIZE,
        max_iter=STEPS,
        batch_size=len(x),
        num_random_init=1,
        verbose=False,
    )
    images, labels = x.numpy(), np.eye(2, dtype=np.float32)[targets.numpy()]
    return {"ART ProjectedGradientDescent-10": lambda: attack.generate(images, labels)}


def autoattack_apgd(network: nn.Module, x: Tensor, targets: Tensor) -> dict[str, Run]:
    from pyautoattack.autopgd_base import APGDAttack

    # Its steps do not count the gradient at the start.
    attack = APGDAttack(network, n_iter=STEPS - 1, norm="Linf", eps=EPSILON, device="cpu")
    return {"AutoAttack APGD-CE-10": lambda: attack.perturb(x, targets, best_loss=True)}


PEERS = (torchattacks_pgd, foolbox_pgd, art_pgd, autoattack_apgd)


def peers(scorer: nn.Module, x: Tensor, targets: Tensor) -> Iterator[tuple[str, Run]]:
    network = TwoLogits(scorer).eval()
    for peer in PEERS:
        try:
            yield from peer(network, x, targets).items()
        except ImportError as error:
            print(f"{peer.__name__} left out: {error}", file=sys.stderr)


def peak_mib(run: Run) -> float:
    """The most memory that a run held at once, beyond what was held before; Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest of before
    before = _status_mib("VmRSS")
    run()
    return _status_mib("VmHWM") - before


def _status_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def cost_table(name: str, *, batch: int, repeats: int, with_compile: bool) -> list[str]:
    scorer = Scorer(architectures.build(name, channels=3, seed=0))
    x = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = (torch.arange(batch) % 10 == 0).long()
    with attacking(scorer):
        runs = {"bare passes": bare(scorer, x, targets), **ours(scorer, x, targets)}
        if with_compile:
            runs |= compiled(scorer, x, targets)
        runs |= dict(peers(scorer, x, targets))
        for run in runs.values():
            run()
        memory = {name: peak_mib(run) for name, run in runs.items()}
        clock: dict[str, list[float]] = {name: [] for name in runs}
        processor: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(repeats):
            for name_of_run, run in runs.items():
                before = time.perf_counter(), time.process_time()
                run()
                clock[name_of_run].append(time.perf_counter() - before[0])
                processor[name_of_run].append(time.process_time() - before[1])
            print(f"{name}: {repeat + 1} of {repeats}", file=sys.stderr, flush=True)

    def ratio(times: dict[str, list[float]], run: str) -> float:
        pairs = zip(times[run], times["bare passes"], strict=True)
        return statistics.median(t / unit for t, unit in pairs)

    return [
        f"## {name}, {batch} images of 3 x 32 x 32, {repeats} turns",
        "",
        "| | x bare | x bare, processor time | images/s | peak MiB |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {run} | {ratio(clock, run):.2f} | {ratio(processor, run):.2f} | "
            f"{batch / statistics.median(clock[run]):.0f} | {memory[run]:.0f} |"
            for run in runs
        ),
        "",
    ]


# --- patience -------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A scorer that counts the images it is shown."""

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        logits: Tensor = self.scorer(x)
        return logits


def patience_table(*, epochs: int) -> list[str]:
    """On digits (scikit-learn): is it an 8? Half to train on, a quarter to attack."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    targets = torch.tensor(digits.target == 8).long()
    scorer = Scorer(architectures.build("small_cnn", channels=1, seed=0))
    threat_model = ThreatModel("linf", 0.15)
    train(scorer, images[::2], targets[::2], threat_model=threat_model, epochs=epochs)
    x, y = images[1::4], targets[1::4]

    lines = [
        f"## Patience: small_cnn trained with PGD, {len(x)} digits, L-inf 0.15",
        "",
        "Images shown to the network and processor time as a share of those without patience; AP "
        "where each image has its lowest margin, clean or attacked.",
        "",
        "| | patience | images shown | time | worst-case AP | cost in AP |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    with attacking(scorer):
        for attack in (PGD(50, 2.5 * 0.15 / 50), APGD(50), Square(300)):
            patiences = (None, 25, 50, 100) if isinstance(attack, Square) else (None, 3, 5, 10, 20)
            unit: tuple[float, float, float] | None = None
            for patience in patiences:
                impatient = dataclasses.replace(attack, patience=patience)
                ap, shown, seconds = attacked(impatient, scorer, x, y, threat_model=threat_model)
                unit = unit or (ap, shown, seconds)
                lines.append(
                    f"| {type(attack).__name__} | {patience or 'none'} | {shown / unit[1]:.2f} | "
                    f"{seconds / unit[2]:.2f} | {ap:.4f} | {ap - unit[0]:.4f} |"
                )
    return [*lines, ""]


def attacked(
    attack: PGD | APGD | Square,
    scorer: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    threat_model: ThreatModel,
) -> tuple[float, int, float]:
    """Worst-case AP, images shown, seconds of the processor."""
    counted, generator = Counted(scorer), torch.Generator().manual_seed(0)
    loss_fn = margin_loss(counted, targets)
    start = time.process_time()
    x_adv = attack.perturb(loss_fn, x, threat_model=threat_model, generator=generator)
    seconds = time.process_time() - start
    with torch.no_grad():
        logits, clean = scorer(x_adv).double(), scorer(x).double()
    worst = torch.where(targets == 1, torch.minimum(logits, clean), torch.maximum(logits, clean))
    return average_precision(worst.numpy(), targets.numpy()), counted.images, seconds


def train(
    scorer: nn.Module, x: Tensor, targets: Tensor, *, threat_model: ThreatModel, epochs: int
) -> None:
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(scorer.parameters())
    attack = PGD(5, threat_model.epsilon / 2, iterate="last", start="uniform")
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            with attacking(scorer):
                x_adv = attack.perturb(
                    margin_loss(scorer, targets[rows]),
                    x[rows],
                    threat_model=threat_model,
                    generator=generator,
                )
            loss = F.binary_cross_entropy_with_logits(scorer(x_adv), targets[rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    scorer.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="*", default=["resnet18", "small_cnn"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=20, help="of the model behind patience")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside it (minutes)")
    parser.add_argument("--write", type=Path, help="a Markdown file for the tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    before = os.getloadavg()[0]
    tables = [
        line
        for name in options.architectures
        for line in cost_table(
            name, batch=options.batch, repeats=options.repeats, with_compile=options.compile
        )
    ]
    tables += patience_table(epochs=options.epochs)
    text = "\n".join(
        [
            "# What attacks cost",
            "",
            f"{datetime.date.today()}, torch {torch.__version__}, {platform.machine()}, "
            f"{os.cpu_count()} cores of which {options.threads} used, "
            f"load {before:.1f} before and {os.getloadavg()[0]:.1f} after. Written by",
            "",
            f"    python -m benchmarks.attacks {shlex.join(sys.argv[1:])}",
            "",
            "1.00 is 10 forward and backward passes to the input and 1 forward pass, in eager mode "
            "with frozen parameters and in one batch. Ratios are medians over interleaved turns.",
            "",
            *tables,
        ]
    )
    print(text)
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text)


if __name__ == "__main__":
    main()
