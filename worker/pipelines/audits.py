"""The work of an audit: its shards, its checks, and the report that joins them."""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.numpy import save_file

from adap.core.audit import joining, measuring
from adap.core.audit.checks import check, verdicts
from adap.core.config import (
    Attack,
    AuditConfig,
    Task,
    Threat,
)
from adap.core.datasets import ImageSet
from adap.core.figures import report as reports
from adap.core.figures import task as figures
from adap.core.rankings import Own
from adap.core.rendering import page as report_page
from adap.core.report import Check, DatasetProvenance, ModelProvenance, Provenance
from adap.core.scores import Scores, load_scores, save_scores
from adap.models.wrappers import Scorer
from adap.worker.pipelines.inputs import Result, device, load_scorer
from adap.worker.work import BOUNDS_SAMPLE, Reporter, Work

CERTIFIED_SAMPLE = 8  # of each side

_ATTACK: TypeAdapter[Attack] = TypeAdapter(Attack)


def audit_shard(work: Work, reporter: Reporter) -> Result:
    """Measure some examples of an audit, column by column, except for what is known already."""
    request = work.request
    config, task, device = _audited(work)
    start, stop = request["start"], request["stop"]
    image_set = ImageSet.load(work.inputs["dataset"])
    index = image_set.in_split(request["split"])
    targets = image_set.targets(task, index)  # of the whole split: a shard may lack positives
    part = image_set.subset(index[start:stop])
    scorer = load_scorer(work.inputs["model"], str(device), tuple(task.positive))
    spread = np.unique(np.linspace(0, len(index) - 1, config.batch_size, dtype=np.int64))
    if request["shard"] == 0:  # costs one batch; the others need not ask again
        measuring.refuse_unrankable(
            scorer,
            image_set.images[index[spread]],
            targets,
            batch_size=config.batch_size,
            device=device,
        )
    done = 0
    files: dict[str, str] = {}

    def on_progress(images: int) -> None:
        reporter.progress("attacking", done + images, request["images"], "images")

    def attack(
        attacks: Sequence[Attack], threat: Threat, clean: np.ndarray[Any, Any] | None
    ) -> Scores:
        return measuring.attack_shard(
            scorer,
            part.images,
            targets[start:stop],
            part.example_ids,
            attacks=attacks,
            threat=threat,
            surrogate=_load_surrogate(work, task),
            seed=config.seed,
            shard=request["shard"],
            batch_size=config.batch_size,
            device=device,
            on_progress=on_progress,
            clean=clean,
        )

    def measure(column: dict[str, Any]) -> Scores:
        if column["name"] == "clean":
            return attack([], config.threat, None)
        threat, clean = Threat.model_validate(column["threat"]), found["clean"]
        if "attack" in column:
            return attack([_ATTACK.validate_python(column["attack"])], threat, clean.clean)
        method = column["certify"]
        if method == "sample":
            rows = _certified_sample(targets)
            some = image_set.subset(index[rows])
            return measuring.certify_sample(
                scorer, some.images, targets[rows], some.example_ids, threat=threat, device=device
            )
        if method == "auto" and found[BOUNDS_SAMPLE].no_bounds is not None:
            return replace(clean, no_bounds=found[BOUNDS_SAMPLE].no_bounds)
        return measuring.certify_shard(
            scorer,
            clean,
            part.images,
            threat=threat,
            method="crown_ibp" if method == "auto" else method,
            batch_size=config.batch_size,
            device=device,
            on_progress=on_progress,
        )

    found: dict[str, Scores] = {}  # what other columns are made of
    for i, column in enumerate(request["columns"]):
        name = column["name"]
        if name not in request["known"]:
            files[name] = f"column-{i}.safetensors"
            save_scores([measure(column)], work.folder / files[name])
        if name in ("clean", BOUNDS_SAMPLE):
            known = work.inputs.get(f"known/{name}", work.folder / files.get(name, ""))
            (found[name],) = load_scores(known)
        if name != BOUNDS_SAMPLE:
            done += stop - start
        reporter.progress("attacking", done, request["images"], "images")
    return {"files": files, "known": request["known"]}


def audit_checks(work: Work, reporter: Reporter) -> Result:
    """Ask whether the audit of one task can be trusted."""
    config, task, device = _audited(work)
    level = config.resolved_checks()
    assert level != "off"
    image_set = ImageSet.load(work.inputs["dataset"])
    index = image_set.in_split(work.request["split"])
    targets = image_set.targets(task, index)
    attacks = config.resolved_attacks()
    scorer = load_scorer(work.inputs["model"], str(device), tuple(task.positive))
    surrogate = _load_surrogate(work, task)
    measuring.refuse_unrankable(
        scorer,
        image_set.images[index[: config.batch_size]],
        targets,
        batch_size=config.batch_size,
        device=device,
    )
    passes = check.planned_passes(
        targets,
        threat=config.threat,
        attacks=attacks,
        level=level,
        surrogate=surrogate is not None,
    )
    total = work.request["images"]
    found = check.check_audit(
        scorer,
        cast(np.ndarray[Any, np.dtype[np.uint8]], _Picked(image_set.images, index)),
        targets,
        threat=config.threat,
        attacks=attacks,
        level=level,
        surrogate=surrogate,
        seed=config.seed,
        batch_size=config.batch_size,
        device=device,
        on_progress=lambda done: reporter.progress(
            "attacking", min(total, done * total // passes), total, "images"
        ),
    )
    reporter.progress("attacking", total, total, "images")
    text = json.dumps([check.model_dump(mode="json") for check in found])
    (work.folder / "checks.json").write_text(text)
    return {"files": {"checks": "checks.json"}}


def audit_report(work: Work, reporter: Reporter) -> Result:
    """Join the shards of an audit: figures, report, page and the table of scores."""
    config = AuditConfig.model_validate(work.request["config"])
    image_set = ImageSet.load(work.inputs["dataset"])
    by_task: dict[int, list[dict[str, Any]]] = {}
    for shard in work.request["shards"]:
        by_task.setdefault(shard["task_number"], []).append(shard)
    tasks = [Task.model_validate(shards[0]["task"]) for shards in by_task.values()]
    reporter.progress("reporting", 0, len(tasks), "tasks")
    scores, found = [], []
    resampled: dict[str, np.ndarray[Any, Any]] = {}
    for number, (task, shards) in enumerate(zip(tasks, by_task.values(), strict=True)):
        joined = _joined_scores(work, config, image_set, shards)
        aps = figures.resample(joined)
        resampled |= {f"{number}.{own.value}": aps[own] for own in (Own.CLEAN, Own.WORST_CASE)}
        scores.append(joined)
        found.append(figures.figures(joined, positive=task.positive, config=config, resampled=aps))
        reporter.progress("reporting", number + 1, len(tasks), "tasks")
    path = work.folder / "scores.safetensors"
    save_scores(scores, path)
    save_file(resampled, work.folder / "resampled.safetensors")
    provenance = Provenance(
        model=ModelProvenance(**work.request["model"]),
        dataset=DatasetProvenance(**work.request["dataset"]),
        surrogate=(
            ModelProvenance(**work.request["surrogate"]) if work.request["surrogate"] else None
        ),
        config=config.as_json(),
        config_sha256=config.sha256(),
        scores_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        seed=config.seed,
        versions={
            "adap": version("adap-audit"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        device=device(work),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    checked = {
        "+".join(shard["task"]["positive"]): [
            Check.model_validate(check)
            for check in json.loads(work.inputs[f"{shard['number']}/checks"].read_text())
        ]
        for shard in work.request["shards"]
        if shard["part"] == "checks"
    }
    report = reports.build_report(
        found,
        config=config,
        provenance=provenance,
        trained_on_these=work.request["trained_on_these"],
        trust=verdicts.merge(checked) if checked else None,
    )
    (work.folder / "report.json").write_text(report.model_dump_json())
    (work.folder / "report.html").write_text(report_page.render(report, scores), encoding="utf-8")
    _write_score_table(scores, tasks, work.folder / "scores.ndjson")
    return {
        "summary": {
            "clean_ap": report.mean["clean"],
            "worst_case_ap": report.mean["worst_case"],
            "attacks": {key: report.mean[key] for key in found[0].attacks},
            "certified_floor": report.mean.get("certified_floor"),
            "chance": float(np.mean([task.chance for task in found])),
            "floor": float(np.mean([task.floor for task in found])),
            "trust": None if report.trust is None else report.trust.verdict,
            "thresholds": [result.model_dump(mode="json") for result in report.thresholds],
            "warnings": report.warnings,
            "tasks": [
                {
                    "positive": task.positive,
                    "clean": task.clean.model_dump(mode="json"),
                    "worst_case": task.worst_case.model_dump(mode="json"),
                }
                for task in found
            ],
        },
        "files": {
            "report": "report.json",
            "page": "report.html",
            "scores": "scores.safetensors",
            "resampled": "resampled.safetensors",
            "table": "scores.ndjson",
        },
    }


def _audited(work: Work) -> tuple[AuditConfig, Task, torch.device]:
    return (
        AuditConfig.model_validate(work.request["config"]),
        Task.model_validate(work.request["task"]),
        torch.device(device(work)),
    )


def _load_surrogate(work: Work, task: Task) -> Scorer | None:
    """The attacker's own model, on the same task; one of a single logit has none to choose."""
    if "surrogate" not in work.inputs:
        return None
    return load_scorer(work.inputs["surrogate"], device(work), tuple(task.positive))


def _certified_sample(
    targets: np.ndarray[Any, np.dtype[np.int64]],
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows of some positives and some negatives, evenly spread: what `auto` tries bounds on."""
    return np.concatenate(
        [
            members[np.unique(np.linspace(0, len(members) - 1, CERTIFIED_SAMPLE, dtype=np.int64))]
            for members in (np.flatnonzero(targets == 1), np.flatnonzero(targets == 0))
        ]
    )


def _joined_scores(
    work: Work, config: AuditConfig, image_set: ImageSet, shards: list[dict[str, Any]]
) -> Scores:
    """The scores of one task, from the columns of its shards."""

    def column(shard: dict[str, Any], name: str) -> Scores:
        return load_scores(work.inputs[f"{shard['number']}/{name}"])[0]

    index = image_set.in_split(work.request["dataset"]["split"])
    groups, position, parts = image_set.group_names(index), 0, []
    for shard in shards:
        if shard["part"] != "scores":
            continue
        clean = column(shard, "clean")
        stop = position + len(clean)
        parts.append(
            joining.combine(
                clean,
                attacked={
                    attack.key: column(shard, f"attack.{attack.key}")
                    for attack in config.resolved_attacks()
                },
                curve={
                    epsilon: column(shard, f"curve.{i}")
                    for i, epsilon in enumerate(config.resolved_epsilons())
                },
                bounds=None if config.certify == "off" else column(shard, "bounds"),
                groups=None if groups is None else groups[position:stop],
            )
        )
        position = stop
    return joining.join(parts)


class _Picked:
    """Rows of a memory map by an index, read only when they are looked at."""

    def __init__(
        self, images: np.ndarray[Any, np.dtype[np.uint8]], index: np.ndarray[Any, Any]
    ) -> None:
        self._images, self._index = images, index

    def __getitem__(self, rows: Any) -> Any:
        return self._images[self._index[rows]]


def _write_score_table(scores: Sequence[Scores], tasks: Sequence[Task], path: Path) -> None:
    with path.open("w") as file:
        for task, found in zip(tasks, scores, strict=True):
            for i, example_id in enumerate(found.example_ids):
                row = {
                    "task": "+".join(task.positive),
                    "example_id": example_id,
                    "target": int(found.targets[i]),
                    "clean": float(found.clean[i]),
                    "attacks": {key: float(logits[i]) for key, logits in found.attacked.items()},
                }
                file.write(json.dumps(row) + "\n")
