"""What each option that the paper does not have changes, against AdAP_LPN without it, on digits.

    OMP_NUM_THREADS=1 nice -n 10 python -m benchmarks.recipe

scikit-learn's 1,797 digits of 8x8 pixels, 8 against the rest, and a small network: real images on
which a defended ranker is well above chance after a few seconds; on CIFAR-10 it takes a CPU hours.
So what is seen is that an option works, what it costs and what it does here; nothing is said of
photographs. Each option is compared with none seed by seed: same split, start and test images. No
option was tuned, and the options were chosen before they were run.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from adap.core.attacks.base import LossFn
from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.training import TrainingConfig
from adap.core.figures.ranking import average_precision
from adap.core.objectives.registry import build_objective
from adap.core.objectives.surrogates import negative_margin
from adap.core.presets import TRAINING_PRESETS
from adap.core.training.loop import fit

TRAIN, VALIDATION = 900, 300  # and 597 to test on
METHOD = {"name": "adap_lpn", "lambda": 1.0, "gamma1": 0.9, "gamma2": 0.9}
ATTACK = {"epsilon": 0.1, "steps": 3, "step_size": 0.05}
ADAM = {"name": "adam", "lr": 0.01}
COSINE = {"schedule": "cosine", "warmup_epochs": 1}
ROBUST = {
    "ema": TRAINING_PRESETS["robust"]["ema"],
    "method": {**METHOD, **TRAINING_PRESETS["robust"]["method"]},
    "optimizer": {**ADAM, **TRAINING_PRESETS["robust"]["optimizer"]},
}
OPTIONS: dict[str, Mapping[str, Any]] = {
    "none": {},
    "cosine, 1 epoch of warm-up": {"optimizer": {**ADAM, **COSINE}},
    "SGD 0.05, Nesterov, weight decay 5e-4, cosine": {
        "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 5e-4, "nesterov": True, **COSINE}
    },
    "EMA 0.95": {"ema": 0.95},
    "weight perturbation 0.005": {"weight_perturbation": {"size": 0.005, "warmup_epochs": 1}},
    "weight perturbation 0.02": {"weight_perturbation": {"size": 0.02, "warmup_epochs": 1}},
    "crops by 1": {"augment": {"crop_padding": 1}},
    "crop-shift 1": {"augment": {"crop_shift": 1}},
    "jitter 0.2": {"augment": {"jitter": 0.2}},
    "erasing 0.25": {"augment": {"erase": 0.25}},
    "positives 1.5 epsilon, 2 epochs of warm-up": {
        "attack": {**ATTACK, "positive_factor": 1.5, "positive_warmup_epochs": 2}
    },
    "EMA 0.95 as anchor": {"ema": 0.95, "method": {**METHOD, "anchor": "ema"}},
}
# Chosen by what the options did: to be judged by other seeds.
PRESET = {"none": {}, "preset `robust`": ROBUST}

Found = tuple[float, float, float]
"""Robust AP (PGD-20), clean AP, both on test images, and CPU seconds of the training."""


def network_of(seed: int) -> nn.Module:
    """Two convolutions with BatchNorm; the weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 1),
            nn.Flatten(0),
        )


def measured(option: Mapping[str, Any], *, seed: int, epochs: int) -> Found:
    """A training with an option, judged on images that nothing was chosen by."""
    digits = load_digits()
    images = torch.from_numpy((digits.images / 16 * 255).astype(np.uint8))[:, None]
    targets = torch.from_numpy((digits.target == 8).astype(np.int64))
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    train, held_out, test = order.tensor_split([TRAIN, TRAIN + VALIDATION])
    config = TrainingConfig.model_validate(
        {
            "method": METHOD,
            "epochs": epochs,
            "batch_size": 64,
            "optimizer": ADAM,
            "attack": ATTACK,
            "seed": seed,
            **option,
        }
    )
    network = network_of(seed)
    started = time.process_time()
    fit(
        network,
        build_objective(config.method, examples=len(train)),
        images=images[train],
        targets=targets[train],
        validation=(images[held_out], targets[held_out]),
        config=config,
        device=torch.device("cpu"),
        on_epoch=lambda _: None,
    )
    seconds = time.process_time() - started
    network.requires_grad_(False)
    x, y = images[test] / 255, targets[test]

    def margin_loss(x_adv: torch.Tensor) -> torch.Tensor:
        return negative_margin(network(x_adv), y.float())

    loss_fn: LossFn = margin_loss
    x_adv = PGD(steps=20, step_size=0.0125).perturb(
        loss_fn,
        x,
        threat_model=ThreatModel("linf", ATTACK["epsilon"]),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        robust, clean = (
            average_precision(network(shown).double().numpy(), y.numpy()) for shown in (x_adv, x)
        )
    return robust, clean, seconds


def table(found: Mapping[str, list[Found]]) -> str:
    """Each option beside none: means over the seeds, and the changes seed by seed."""
    none = found["none"]
    lines = [
        "| option | robust AP | clean AP | change of robust AP | seeds up | change of clean AP "
        "| CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for option, values in found.items():
        robust, clean, seconds = (statistics.mean(column) for column in zip(*values, strict=True))
        robust_by, clean_by = (
            [a[part] - b[part] for a, b in zip(values, none, strict=True)] for part in (0, 1)
        )
        row = [option, f"{robust:.3f}", f"{clean:.3f}"]
        if option == "none":
            row += ["", "", ""]
        else:
            row += [
                _change(robust_by),
                f"{sum(by > 0 for by in robust_by)} of {len(values)}",
                _change(clean_by),
            ]
        lines.append(f"| {' | '.join([*row, f'{seconds:.1f}'])} |")
    return "\n".join(lines)


def _change(by: list[float]) -> str:
    """Mean over the seeds, and their standard deviation where there are several."""
    spread = f" ± {statistics.stdev(by):.3f}" if len(by) > 1 else ""
    return f"{statistics.mean(by):+.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--preset", action="store_true", help="`robust` alone, by other seeds")
    parser.add_argument("--write", type=Path, help="a file for the table, written as it grows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = PRESET if arguments.preset else OPTIONS
    found: dict[str, list[Found]] = {name: [] for name in options}
    first = arguments.seeds if arguments.preset else 0  # not those by which it was chosen
    for seed in range(first, first + arguments.seeds):  # all options of a seed: they compare
        for name, values in found.items():
            values.append(measured(options[name], seed=seed, epochs=arguments.epochs))
            print(f"seed {seed}, {name}: {values[-1]}", flush=True)
        print(table(found), flush=True)
        if arguments.write:
            arguments.write.write_text(table(found) + "\n")


if __name__ == "__main__":
    main()
