"""Scores that no network gave, and the report that the service makes of them.

Nothing of the report is composed here: its figures are judged by who reads it, by
`adap report verify`, scikit-learn, and parsers of its forms.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adap
from adap.core.config.audits import AuditConfig
from adap.core.config.corruptions import Corruption
from adap.core.figures import task as task_figures
from adap.core.figures.report import build_report
from adap.core.report import (
    Check,
    DatasetProvenance,
    ModelProvenance,
    Provenance,
    Report,
    TaskReport,
    Trust,
)
from adap.core.scores import Scores, SmallestFound, UniversalFound, save_scores
from adap.reading import Reading

Floats = np.ndarray[Any, np.dtype[np.float64]]

CONFIG: dict[str, Any] = {
    "threat": {"epsilon": 0.1},
    "attacks": ["pgd", {"name": "apgd", "label": "strong"}],
    "epsilons": [0.05, 0.1],
    "corruptions": {"kinds": ["fog", "jpeg_compression"], "severities": [1, 5]},
    "smallest_changes": {"k": 10, "positives": 5},
    "universal": {"rounds": 3, "images": 20},
    "budgets": [1, 3],
    "seed": 7,
}
CHECKS = [
    Check(name="converged", status="pass", message="Twice the steps change little.", figures={}),
    Check(name="monotone", status="caution", message="It rises once.", figures={"rise": 0.06}),
    Check(name="transfer", status="skipped", message="There is no surrogate.", figures={}),
    Check(
        name="repeatable",
        status="fail",
        message="The scores differ.",
        figures={"largest_change": 0.9, "share_of_spread": 0.5},
    ),
]


DOUBTED = Trust(verdict="not trustworthy", checks=CHECKS)


def scores_of(examples: int = 60, *, seed: int = 0) -> Scores:
    """Rounded logits, so that some tie; of three groups one has no positives."""
    random = np.random.default_rng(seed)
    targets = (np.arange(examples) % 3 == 0).astype(np.int64)
    signs = 2 * targets - 1
    clean = (random.normal(size=examples) + 2 * targets).round(2)

    def pushed(most: float) -> Floats:
        return (clean - signs * random.uniform(-0.2, most, examples)).round(2)

    order = np.lexsort((targets, -clean))
    among = [int(row) for row in order[:10] if targets[row]]
    searched = sorted(among[i] for i in np.linspace(0, len(among) - 1, 5).round().astype(int))
    smallest = SmallestFound(
        k=10,
        threshold=float(clean[order[10]]),
        among=len(among),
        example_ids=[f"{row}.png" for row in searched],
        sizes=np.array([0.02, 0.05, 0.05, 0.2, np.inf]),
    )

    attacked = {"pgd": pushed(1.0), "strong": pushed(2.0)}
    return Scores(
        example_ids=[f"{i}.png" for i in range(examples)],
        targets=targets,
        clean=clean,
        attacked=attacked,
        curve={0.05: pushed(0.5), 0.1: pushed(1.5)},
        corrupted={
            Corruption(kind=kind, severity=severity): pushed(severity / 2)
            for kind in ("fog", "jpeg_compression")
            for severity in (1, 5)
        },
        corruption_table="32x32",
        smallest=smallest,
        universal=UniversalFound(
            delta=random.uniform(-0.1, 0.1, (1, 4, 4)).astype(np.float32),
            logits=pushed(0.4),
            searched=20,
        ),
        bounds=np.stack([clean - 2.5, clean + 2.5]),
        groups=[("day", "night", "<dusk>|")[i % 6 // 2] for i in range(examples)],
    )


def config_of(*required: str) -> AuditConfig:
    return AuditConfig.model_validate({**CONFIG, "thresholds": list(required)})


def task_of(scores: Scores, *, positive: Sequence[str] = ("truck",)) -> TaskReport:
    """The figures that an audit with these scores gives."""
    resampled = task_figures.resample(scores, resamples=1000)
    return task_figures.figures(scores, positive=positive, config=config_of(), resampled=resampled)


def report_of(
    tasks: Sequence[TaskReport],
    *,
    required: Sequence[str] = ("worst_case_ap >= 0.1", "worst_case_ap >= 0.9"),
    name: str = "a model",
    scores_sha256: str = "c" * 64,
    trust: Trust | None = DOUBTED,
    doubts: Sequence[str] = (),
) -> Report:
    """The report that an audit with these tasks gives, its thresholds evaluated."""
    config = config_of(*required)
    return build_report(
        tasks,
        config=config,
        trust=trust,
        doubts=doubts,
        provenance=Provenance(
            model=ModelProvenance(id="mdl_1", name=name, sha256="a" * 64, architecture="cnn"),
            dataset=DatasetProvenance(
                id="ds_1",
                name=name,
                sha256="b" * 64,
                split="test",
                reading=Reading(summary="zip: classes from folders", steps=["Left .DS_Store out."]),
            ),
            surrogate=None,
            config=config.as_json(),
            config_sha256=config.sha256(),
            scores_sha256=scores_sha256,
            seed=config.seed,
            versions={"adap": "0.1.0", "torch": "2.14.1"},
            device="cpu",
            created_at="2026-09-03T14:12:08+02:00",
        ),
    )


def stored(
    folder: Path, *, tasks: int = 1, required: Sequence[str] = ("worst_case_ap >= 0.1",)
) -> tuple[Path, Path]:
    """An audit's report.json and scores.safetensors, which belong together."""
    scores = [scores_of(seed=seed) for seed in range(tasks)]
    path = folder / "scores.safetensors"
    save_scores(scores, path)
    report = report_of(
        [task_of(own, positive=[f"class {i}"]) for i, own in enumerate(scores)],
        required=required,
        scores_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    (folder / "report.json").write_text(report.model_dump_json())
    return folder / "report.json", path


def audited(folder: Path, *, required: Sequence[str] = ()) -> tuple[Path, Path]:
    """A small audit of a random network with all its parts: its report and its scores."""
    random = torch.Generator().manual_seed(5)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(48, 12), torch.nn.ReLU(), torch.nn.Linear(12, 1)
    )
    images = torch.rand(60, 3, 4, 4, generator=random)
    with torch.no_grad():
        for weights in network.parameters():
            weights.copy_(torch.randn(weights.shape, generator=random))
        noisy = network(images)[:, 0] + 6 * torch.randn(60, generator=random)
    labels = (noisy > noisy.quantile(2 / 3)).long()
    audit = adap.audit(
        network,
        images,
        labels,
        epsilon=0.04,
        attacks=[adap.PGD(steps=1, step_size=0.02), adap.APGD(steps=4, label="strong")],
        epsilons=[0.02, 0.04],
        certify="crown_ibp",
        checks="quick",
        groups=[("day", "night", "<dusk>|")[i % 6 // 2] for i in range(60)],
        require=required,
        progress=False,
    )
    audit.save(folder / "report.json")
    audit.save(folder / "report.html")
    audit.save(folder / "scores.safetensors")
    return folder / "report.json", folder / "scores.safetensors"
