"""Stored scores: one logit per image and attack, and a few images to look at.

Attacks are expensive and figures are cheap, so the scores are stored and every figure is computed
from them. A shard's scores and the whole audit's have the same form.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from adap.core.config.corruptions import Corruption


@dataclass(frozen=True)
class Evidence:
    """One positive before and after the attack that hurt it most.

    clean, attacked: (C, H, W) float32 in [0, 1].
    """

    example_id: str
    attack: str
    clean_logit: float
    attacked_logit: float
    clean: NDArray[np.float32]
    attacked: NDArray[np.float32]


@dataclass(frozen=True)
class SmallestFound:
    """How little was found to move positives out of the first k of a task's clean ranking.

    threshold: the logit below which they are out.  among: positives that are among the first k.
    example_ids: those searched for.  sizes: (n,) of their changes; infinite where none was found.
    """

    k: int
    threshold: float
    among: int
    example_ids: Sequence[str]
    sizes: NDArray[np.float64]


@dataclass(frozen=True)
class UniversalFound:
    """One perturbation that all images of a task share, as it was found.

    delta: (C, H, W) float32.  logits: (N,) of all images under it.  searched: images that it was
    searched on.
    """

    delta: NDArray[np.float32]
    logits: NDArray[np.float64]
    searched: int


@dataclass(frozen=True)
class Scores:
    """Logits of the positive class for some examples of one task.

    targets: (N,) int64 in {0, 1}.  clean, each of attacked and each of curve: (N,) float64.
    evidence: the most damaged positives, worst first.
    curve: by epsilon, rising; the scores behind the epsilon curve.
    corrupted: by corruption, (N,) float64 each.
    corruption_table: which published parameters were behind them, by the size of the images.
    bounds: (2, N) float64, lowest and highest logit that any perturbation can reach, if certified.
    no_bounds: why there are none.
    hidden: what the gradient hides, where the search went on by attacks that see past it.
    smallest, universal: the smallest changes and the one perturbation for all that were found,
    where they were asked for.
    groups, clusters: N names each, where the data set has them.
    """

    example_ids: Sequence[str]
    targets: NDArray[np.int64]
    clean: NDArray[np.float64]
    attacked: dict[str, NDArray[np.float64]]
    evidence: Sequence[Evidence] = field(default_factory=list)
    curve: dict[float, NDArray[np.float64]] = field(default_factory=dict)
    corrupted: dict[Corruption, NDArray[np.float64]] = field(default_factory=dict)
    corruption_table: str | None = None
    bounds: NDArray[np.float64] | None = None
    no_bounds: str | None = None
    hidden: str | None = None
    smallest: SmallestFound | None = None
    universal: UniversalFound | None = None
    groups: Sequence[str] | None = None
    clusters: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.targets)


def save_scores(tasks: Sequence[Scores], path: Path) -> None:
    """Write the scores of an audit's tasks as one safetensors file, whose arrays are
    `<task>.<name>`; what is no number travels in the text header as JSON."""
    arrays: dict[str, NDArray[Any]] = {}
    header = []
    for i, scores in enumerate(tasks):
        named: dict[str, NDArray[Any]] = {
            "targets": scores.targets,
            "clean": scores.clean,
            **{f"attacked.{key}": logits for key, logits in scores.attacked.items()},
            **{f"curve.{j}": logits for j, logits in enumerate(scores.curve.values())},
            **{f"corrupted.{of.key}": logits for of, logits in scores.corrupted.items()},
            **{f"evidence.{j}.clean": item.clean for j, item in enumerate(scores.evidence)},
            **{f"evidence.{j}.attacked": item.attacked for j, item in enumerate(scores.evidence)},
        }
        # Long lists are tensors of bytes: the header has a size limit of its own.
        for name, texts in (
            ("example_ids", scores.example_ids),
            ("groups", scores.groups),
            ("clusters", scores.clusters),
        ):
            if texts is not None:
                named[name] = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
        if scores.bounds is not None:
            named["bounds"] = scores.bounds
        small = scores.smallest
        if small is not None:
            named["smallest"] = small.sizes
        universal = scores.universal
        if universal is not None:
            named |= {"universal": universal.logits, "universal.delta": universal.delta}
        arrays |= {f"{i}.{name}": np.ascontiguousarray(array) for name, array in named.items()}
        header.append(
            {
                # The file keeps tensors in an order of its own; the attacks' order decides ties.
                "attacks": list(scores.attacked),
                "epsilons": list(scores.curve),
                "corruptions": [[of.kind, of.severity] for of in scores.corrupted],
                "corruption_table": scores.corruption_table,
                "no_bounds": scores.no_bounds,
                "hidden": scores.hidden,
                "smallest": None
                if small is None
                else [small.k, small.threshold, small.among, list(small.example_ids)],
                "universal": None if universal is None else universal.searched,
                "evidence": [
                    [item.example_id, item.attack, item.clean_logit, item.attacked_logit]
                    for item in scores.evidence
                ],
            }
        )
    save_file(arrays, path, metadata={"tasks": json.dumps(header)})


def load_scores(path: Path, *, only: int | None = None) -> list[Scores]:
    """Read what `save_scores` wrote: every task, or one of them by its number alone."""
    with safe_open(path, framework="np") as file:
        names = set(file.keys())

        def read(name: str) -> NDArray[Any]:
            array: NDArray[Any] = file.get_tensor(name)
            return array

        def texts(name: str) -> list[str]:
            return list(json.loads(read(name).tobytes()))

        return [
            Scores(
                example_ids=texts(f"{i}.example_ids"),
                targets=read(f"{i}.targets"),
                clean=read(f"{i}.clean"),
                attacked={key: read(f"{i}.attacked.{key}") for key in task["attacks"]},
                evidence=[
                    Evidence(
                        example_id=example_id,
                        attack=attack,
                        clean_logit=clean_logit,
                        attacked_logit=attacked_logit,
                        clean=read(f"{i}.evidence.{j}.clean"),
                        attacked=read(f"{i}.evidence.{j}.attacked"),
                    )
                    for j, (example_id, attack, clean_logit, attacked_logit) in enumerate(
                        task["evidence"]
                    )
                ],
                curve={eps: read(f"{i}.curve.{j}") for j, eps in enumerate(task["epsilons"])},
                corrupted={
                    of: read(f"{i}.corrupted.{of.key}")
                    for of in (
                        Corruption(kind=kind, severity=severity)
                        for kind, severity in task["corruptions"]
                    )
                },
                corruption_table=task["corruption_table"],
                bounds=read(f"{i}.bounds") if f"{i}.bounds" in names else None,
                no_bounds=task["no_bounds"],
                hidden=task["hidden"],
                smallest=None
                if task["smallest"] is None
                else SmallestFound(
                    k=task["smallest"][0],
                    threshold=task["smallest"][1],
                    among=task["smallest"][2],
                    example_ids=task["smallest"][3],
                    sizes=read(f"{i}.smallest"),
                ),
                universal=None
                if task["universal"] is None
                else UniversalFound(
                    delta=read(f"{i}.universal.delta"),
                    logits=read(f"{i}.universal"),
                    searched=task["universal"],
                ),
                groups=texts(f"{i}.groups") if f"{i}.groups" in names else None,
                clusters=texts(f"{i}.clusters") if f"{i}.clusters" in names else None,
            )
            for i, task in enumerate(json.loads(file.metadata()["tasks"]))
            if only in (None, i)
        ]


EVIDENCE = 12  # positives whose pictures are kept
