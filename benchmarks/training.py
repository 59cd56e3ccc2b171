"""Cost of an optimisation step, for each method, beside the bare passes that it needs.

    python -m benchmarks.training                        # the table, on standard output
    python -m benchmarks.training --write benchmarks/results/training.md

The bare cost of a method, in the training's precision: for each step of its training attack one
forward and one backward pass to the images, in eval mode with frozen parameters; one forward pass
more where the attack compares with clean scores; then one forward pass in train mode for each kind
of images that the objective reads, one full backward pass and the optimiser's step. It runs in
eager mode on the same network and images, with the same memory layout as the training. Everything
is measured in turn, round after round, and a figure is the median of the ratios within a round.

`fit` itself is measured, by the images a second that it reports for an epoch of two steps.
Memory is the peak of a process of its own, above what it held before the first step.
"""

import argparse
import dataclasses
import datetime
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.holding import attacking
from adap.core.config.training import Augment, Precision, TrainingConfig
from adap.core.objectives.registry import OBJECTIVES, build_objective
from adap.core.objectives.surrogates import negative_margin
from adap.core.precision import float32_products, forward_in
from adap.core.training.augment import augment
from adap.core.training.loop import EpochRecord, fit
from adap.models import architectures
from benchmarks.attacks import peak_mib

BATCH, STEPS = 128, 2
PAPER_OVER_CE = {  # its Table 7
    "ce": 1.0,
    "ap": 1.04,
    "pgd": 4.97,
    "trades": 7.40,
    "mart": 5.65,
    "adap_ln": 5.69,
    "adap_lpn": 5.70,
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all methods are measured on."""

    network: str
    device: str
    precision: Precision = "float32"

    def build(self) -> nn.Module:
        """A new scorer: (B, 3, 32, 32) in [0, 1] to (B,) logits."""
        network = architectures.build(self.network, channels=3, seed=0)
        return nn.Sequential(network, nn.Flatten(0)).to(self.device)

    def examples(self) -> tuple[Tensor, Tensor]:
        """(N, 3, 32, 32) uint8 and (N,) targets, for `STEPS` batches."""
        generator = torch.Generator().manual_seed(0)
        shape = (STEPS * BATCH, 3, 32, 32)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return images.to(self.device), (torch.arange(STEPS * BATCH) % 10 == 0).long()


Measure = Callable[[], float]
"""Seconds of one optimisation step."""


def ours(setting: Setting, method: str) -> Measure:
    """A step of `fit`, attack, augmentation and sampling included."""
    images, targets = setting.examples()
    config = TrainingConfig.model_validate(
        {
            "method": method,
            "epochs": 1,
            "augment": {"crop_padding": 4, "flip": True},
            "precision": setting.precision,
        }
    )
    few = images[:16], targets[:16]

    def measure() -> float:
        seen: list[EpochRecord] = []
        fit(
            setting.build(),
            build_objective(config.method, examples=len(targets)),
            images=images,
            targets=targets,
            validation=few,
            config=config,
            device=torch.device(setting.device),
            on_epoch=seen.append,
        )
        return BATCH / seen[0].images_per_s

    return measure


def bare(setting: Setting, method: str) -> Measure:
    """The passes that the method needs, and nothing else."""
    kind = OBJECTIVES[method]
    attack_steps = TrainingConfig().attack.steps if kind.needs_adversarial else 0
    images, targets = setting.examples()
    x = (images[:BATCH].float() / 255).contiguous(memory_format=torch.channels_last)
    y = targets[:BATCH].float().to(setting.device)

    def measure() -> float:
        network = setting.build().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters())
        forward = forward_in(setting.precision, network, device=torch.device(setting.device))
        start = _now(setting)
        with float32_products(setting.precision):
            for _ in range(STEPS):
                with attacking(network):
                    if kind.inner_needs_clean:
                        with torch.no_grad():
                            forward(x)
                    for _ in range(attack_steps):
                        loss_and_gradient(lambda images: negative_margin(forward(images), y), x)
                network.train()
                passes = kind.needs_clean + kind.needs_adversarial
                loss = sum(forward(x).sum() for _ in range(passes))
                optimizer.zero_grad()
                assert isinstance(loss, Tensor)
                loss.backward()
                optimizer.step()
        return (_now(setting) - start) / STEPS

    return measure


def _now(setting: Setting) -> float:
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(measures: dict[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, measured one after the other in every round; a first one is not counted."""
    for measure in measures.values():
        measure()
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def data_share(setting: Setting, step_seconds: float) -> float:
    """Share of a step that goes into picking, augmenting and converting its images."""
    images, _ = setting.examples()
    generator = torch.Generator(setting.device).manual_seed(0)
    wanted = Augment(crop_padding=4, flip=True)
    order = torch.randperm(len(images)).to(setting.device)[:BATCH]
    seconds = []
    for _ in range(20):
        start = _now(setting)
        x = augment(images[order], wanted, generator=generator)
        (x.float() / 255).contiguous(memory_format=torch.channels_last)
        seconds.append(_now(setting) - start)
    return statistics.median(seconds) / step_seconds


def peak_bytes(setting: Setting, method: str, which: str) -> int:
    """Peak memory of a few steps, above that of a process which has imported everything."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (setting, method, which))


def _peak(setting: Setting, method: str, which: str) -> int:
    torch.set_num_threads(1)
    measure = {"ours": ours, "bare": bare}[which](setting, method)
    if setting.device == "cuda":
        measure()
        torch.cuda.reset_peak_memory_stats()
        measure()
        return torch.cuda.max_memory_allocated()
    return round(peak_mib(measure) * 2**20)


def table(setting: Setting, methods: Sequence[str], rounds: int, *, memory: bool) -> list[str]:
    """Markdown: each method beside its bare passes, beside PGD and beside CE."""
    measures: dict[str, Measure] = {}
    for method in methods:
        measures[method] = ours(setting, method)
        measures[f"{method} bare"] = bare(setting, method)
    found = in_turn(measures, rounds)
    head = ["method", "over its bare passes", "over PGD", "bare over bare PGD", "over CE", "paper"]
    head += ["peak memory over bare"] if memory else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in methods:
        row = [
            f"`{method}`",
            f"{ratio(found[method], found[f'{method} bare']):.2f}",
            f"{ratio(found[method], found['pgd']):.2f}",
            f"{ratio(found[f'{method} bare'], found['pgd bare']):.2f}",
            f"{ratio(found[method], found['ce']):.2f}",
            f"{PAPER_OVER_CE[method]:.2f}" if method in PAPER_OVER_CE else "",
        ]
        if memory:
            peaks = [peak_bytes(setting, method, which) for which in ("ours", "bare")]
            row.append(f"{peaks[0] / peaks[1]:.2f}")
        lines.append("| " + " | ".join(row) + " |")
    share = data_share(setting, statistics.median(found["pgd"]))
    ce = data_share(setting, statistics.median(found["ce"]))
    lines += [
        "",
        f"Picking, augmenting and converting the images of a batch: {share:.1%} of a step of "
        f"`pgd`, {ce:.1%} of one of `ce`.",
    ]
    return lines


def options(network: str, device: str, rounds: int) -> list[str]:
    """Markdown: what the layout and bf16 bring, on the bare passes of AdAP_LPN."""
    plain, layout = Setting(network, device), bare(Setting(network, device), "adap_lpn")

    def contiguous() -> float:
        # The same passes on the default layout: nothing is converted.
        with _default_layout():
            return bare(plain, "adap_lpn")()

    measures = {
        "default layout": contiguous,
        "channels_last (what `fit` uses)": layout,
        "channels_last and bf16": bare(Setting(network, device, precision="bfloat16"), "adap_lpn"),
    }
    found = in_turn(measures, rounds)
    lines = ["| bare passes of `adap_lpn` | over the default layout |", "|---|---|"]
    for name, seconds in found.items():
        lines.append(f"| {name} | {ratio(seconds, found['default layout']):.2f} |")
    return lines


class _default_layout:  # noqa: N801
    """While entered, `torch.channels_last` means the default layout."""

    def __enter__(self) -> None:
        self._kept = torch.channels_last
        torch.channels_last = torch.contiguous_format

    def __exit__(self, *error: object) -> None:
        torch.channels_last = self._kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("--networks", nargs="+", default=["small_cnn", "resnet18"])
    parser.add_argument("--methods", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = (
        torch.cuda.get_device_name()
        if arguments.device == "cuda"
        else f"{platform.processor() or platform.machine()}, {arguments.threads} threads"
    )
    lines = [
        "# What training costs",
        "",
        f"`python -m benchmarks.training`, {datetime.date.today()}, torch {torch.__version__}, "
        f"{device}; batch {BATCH} of 32x32 RGB, attack of 6 steps, {arguments.rounds} rounds, "
        "medians. What the columns mean is said in benchmarks/training.py.",
    ]
    for network in arguments.networks:
        setting = Setting(network, arguments.device)
        lines += ["", f"## {network}", ""]
        lines += table(setting, arguments.methods, arguments.rounds, memory=not arguments.no_memory)
        lines += ["", *options(network, arguments.device, arguments.rounds)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
