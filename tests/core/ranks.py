"""Trainings of a tiny float64 network, alone or in several processes that gloo connects.

Run as the target of a process: what a rank found is written to a file, so that the test compares.
"""

import multiprocessing
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adap.core.config.training import Augment, Optimizer, TrainingAttack, TrainingConfig
from adap.core.errors import AdapError
from adap.core.objectives.registry import build_objective
from adap.core.training.loop import fit
from adap.core.training.ranks import ALONE, Ranks, group

CPU = torch.device("cpu")


class Float64(nn.Module):
    """A convolution, a BatchNorm and a linear layer, in float64: rounding stays below 1e-12."""

    def __init__(self, *, classes: int | None = None, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 4, 3, bias=False)
            self.norm = norm(4)
            self.last = nn.Linear(16, classes or 1)
        self.classes = classes
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.conv(x.double())).relu().flatten(1))
        return logits.squeeze(1) if self.classes is None else logits


def pictures(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Noise in which the positives, a quarter, are brighter in one corner."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 200, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    targets = (torch.arange(count) % 4 == 0).long()
    images[targets == 1, :, :2, :2] += 40
    return images, targets


@dataclass(frozen=True)
class Case:
    """A training: its method, further fields of the configuration, where it begins and ends."""

    method: str | Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    classes: int | None = None
    batch_size: int = 12
    checkpoint: Path | None = None
    norm: type[nn.Module] = nn.BatchNorm2d
    fewer: int = 0  # examples, on every rank but the first

    def config(self) -> TrainingConfig:
        defaults = {
            "epochs": 2,
            "batch_size": self.batch_size,
            "optimizer": Optimizer(lr=0.01),
            "attack": TrainingAttack(steps=2, step_size=0.02, epsilon=0.05),
            "augment": Augment(crop_padding=1, flip=True),
            "seed": 3,
        }
        return TrainingConfig.model_validate({"method": self.method, **defaults, **self.fields})

    def run(self, ranks: Ranks = ALONE) -> dict[str, Any]:
        """Weights, estimators and figures at the end; the checkpoint of every epoch."""
        torch.set_num_threads(1)
        config, count = self.config(), 36 - (0 if ranks.leads else self.fewer)
        images, targets = pictures(count, seed=1)
        held_out, marks = pictures(20, seed=2)
        if self.classes is not None:
            targets = torch.stack([targets.roll(k) for k in range(self.classes)], dim=1)
            marks = torch.stack([marks.roll(k) for k in range(self.classes)], dim=1)
        network = Float64(classes=self.classes, norm=self.norm)
        objective = build_objective(config.method, examples=count, classes=self.classes)
        checkpoints: list[dict[str, Any]] = []
        begun = self.checkpoint if ranks.leads else None
        try:
            result = fit(
                network,
                objective,
                images=images,
                targets=targets,
                validation=(held_out, marks),
                config=config,
                device=CPU,
                on_epoch=lambda record: None,
                checkpoint=None if begun is None else torch.load(begun, weights_only=True),
                save=lambda state: checkpoints.append(_copied(state)),
                ranks=ranks,
            )
        except AdapError as error:
            return {"error": str(error)}
        return {
            "network": network.state_dict(),
            "objective": objective.state_dict(),
            "losses": [record.loss for record in result.history],
            "aps": [[record.clean_ap, record.robust_ap] for record in result.history],
            "checkpoints": checkpoints,
        }


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def several(cases: Mapping[str, Case], count: int, folder: Path) -> list[dict[str, Any]]:
    """What each of `count` processes found of every case, by its name."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_rank, args=(dict(cases), Ranks(rank, count), folder))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    errors = [path.read_text() for path in folder.glob("error-*")]
    assert not errors, errors[0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _rank(cases: dict[str, Case], ranks: Ranks, folder: Path) -> None:
    warnings.simplefilter("error")
    try:
        with group(ranks, meeting=folder / "meeting", device=CPU):
            found = {name: case.run(ranks) for name, case in cases.items()}
        torch.save(found, folder / f"{ranks.rank}.pt")
    except Exception:
        (folder / f"error-{ranks.rank}").write_text(traceback.format_exc())
        raise
