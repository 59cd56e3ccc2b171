"""The work of every kind of job, as plain functions of its input files: here core and models meet.

A pipeline reads the files it is given, writes files into its folder, and returns a result whose
`files` names those that the worker shall keep. It knows no database and no broker. Opening a data
set needs no torch and stands in `worker.intake.pipeline`.
"""

import hashlib
import io
import json
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.numpy import save_file

from core import audit, checks, report_page, training
from core.config import (
    AnyTask,
    Attack,
    AuditConfig,
    EachClass,
    RankingRequest,
    Task,
    Threat,
    TrainingConfig,
)
from core.datasets import ImageSet
from core.errors import DataError, ModelError
from core.objectives.registry import build_objective
from core.ranking import rank_order
from core.report import Check, DatasetProvenance, ModelProvenance, Provenance
from core.scores import Scores, load_scores, save_scores
from models import architectures, conversion, exporting, loading
from models.errors import ModelFileError
from models.header import ONE_LOGIT, InputSpec, Manifest, logit_a_class
from models.wrappers import EveryLogit, Scorer
from store import disk
from worker.ranking_files import WRITERS
from worker.work import BOUNDS_SAMPLE, Reporter, Work

log = logging.getLogger(__name__)

Result = dict[str, Any]

CERTIFIED_SAMPLE = 8  # of each side
_ATTACK: TypeAdapter[Attack] = TypeAdapter(Attack)
_TASK: TypeAdapter[AnyTask] = TypeAdapter(AnyTask)


def validate_model(work: Work, reporter: Reporter) -> Result:
    """Load an uploaded model into its architecture, try it, and store it with its manifest."""
    declared = work.request.get("manifest")
    try:
        manifest = None if declared is None else Manifest.model_validate(declared)
        reporter.progress("loading", 0, 2, "steps")
        converted = conversion.to_safetensors(work.inputs["upload"], manifest, folder=work.folder)
        scorer, manifest = loading.load(converted.path, manifest, device="cpu")
        reporter.progress("probing", 1, 2, "steps")
        findings = loading.probe(scorer).model_copy(
            update={"format": converted.format, "onnx_difference": converted.onnx_difference}
        )
        if findings.problems:
            return {"rejected": findings.problems}
        loading.save(scorer, work.folder / "content.safetensors", manifest)
    except ModelFileError as error:
        return {"rejected": [str(error)]}
    reporter.progress("probing", 2, 2, "steps")
    return {
        "manifest": manifest.model_dump(mode="json"),
        "findings": findings.model_dump(mode="json"),
        "files": {"content": "content.safetensors"},
    }


def train(work: Work, reporter: Reporter) -> Result:
    """Train a model; hands over a checkpoint after every epoch and goes on from one it is given."""
    config = TrainingConfig.model_validate(work.request["config"])
    task = _TASK.validate_python(work.request["task"])
    image_set = ImageSet.load(work.inputs["dataset"])
    train_index, validation_index = _training_split(image_set, task, config)
    parts = image_set.subset(train_index), image_set.subset(validation_index)
    images, targets = _tensors(parts[0], task)
    validation = _tensors(parts[1], task)

    channels, height, width = images.shape[1:]
    classes = list(image_set.classes) if isinstance(task, EachClass) else None
    output = ONE_LOGIT if classes is None else logit_a_class(classes)
    network = architectures.build(
        config.architecture, channels=channels, seed=config.seed, outputs=output.count
    )
    start = work.request["warm_start"]
    if start is None:
        mean, std = _channel_statistics(parts[0].images)
        spec = InputSpec(channels=channels, height=height, width=width, mean=mean, std=std)
    else:
        source, known = loading.load(work.inputs["warm_start"], device="cpu")
        spec = known.input  # its weights belong to its own mean and std
        architectures.start_from(
            network, source.network.state_dict(), fresh_head=start["fresh_head"]
        )
    manifest = Manifest(
        architecture=config.architecture,
        input=spec,
        output=output,
        positive=None if isinstance(task, EachClass) else task.positive,
    )
    scorer = (Scorer if classes is None else EveryLogit)(network, spec, output=output)
    objective = build_objective(
        config.method, examples=len(targets), classes=None if classes is None else len(classes)
    )

    def checkpoint_of(epoch: int) -> Path:
        # a name of its own: the worker may still read the one before
        return work.folder / f"checkpoint-{epoch}.pt"

    def save(checkpoint: dict[str, Any]) -> None:
        content = io.BytesIO()
        torch.save({**checkpoint, "job": work.request["job_id"]}, content)
        path = checkpoint_of(checkpoint["epoch"])
        try:
            path.write_bytes(content.getbuffer())
        except OSError as error:
            path.unlink(missing_ok=True)
            if not disk.is_full(error):
                raise

    def on_epoch(record: training.EpochRecord) -> None:
        # the event first: if the worker dies in between, it is told twice rather than never
        reporter.event("epoch", record.as_json())
        if checkpoint_of(record.epoch).exists():
            reporter.checkpoint(checkpoint_of(record.epoch), epoch=record.epoch)
        else:  # the training is worth more than this checkpoint of it
            reporter.event("checkpoint_not_kept", {"reason": disk.CODE})
        reporter.progress("training", record.epoch, config.epochs, "epochs")

    checkpoint = None
    if "checkpoint" in work.inputs:
        checkpoint = torch.load(work.inputs["checkpoint"], weights_only=True)
        reporter.event("resumed", {"epoch": int(checkpoint["epoch"])})
    reporter.progress(
        "training", 0 if checkpoint is None else checkpoint["epoch"], config.epochs, "epochs"
    )
    result = training.fit(
        scorer,
        objective,
        images=images,
        targets=targets,
        validation=validation,
        config=config,
        device=torch.device(_device(work)),
        on_epoch=on_epoch,
        checkpoint=checkpoint,
        save=save,
    )
    if result.stopped_early:
        best, last = result.best.epoch, result.history[-1].epoch
        reporter.event("stopped_early", {"epoch": last, "best_epoch": best})
    summary = {
        "method": config.method.as_json(),
        "task": task.as_json(),
        "warm_start": start,
        "config": config.as_json(),
        "config_sha256": config.sha256(),
        "dataset": work.request["dataset"],
        "train_examples": len(parts[0]),
        "validation_examples": len(parts[1]),
        **result.as_json(),
    }
    manifest = manifest.model_copy(update={"training": summary})
    loading.save(scorer, work.folder / "model.safetensors", manifest)
    return {
        "manifest": manifest.model_dump(mode="json"),
        "summary": summary,
        "files": {"content": "model.safetensors"},
    }


def audit_shard(work: Work, reporter: Reporter) -> Result:
    """Measure some examples of an audit, column by column, except for what is known already."""
    request = work.request
    config, task, device = _audited(work)
    start, stop = request["start"], request["stop"]
    image_set = ImageSet.load(work.inputs["dataset"])
    index = image_set.in_split(request["split"])
    targets = image_set.targets(task, index)  # of the whole split: a shard may lack positives
    part = image_set.subset(index[start:stop])
    scorer = _load_scorer(work.inputs["model"], str(device), tuple(task.positive))
    spread = np.unique(np.linspace(0, len(index) - 1, config.batch_size, dtype=np.int64))
    if request["shard"] == 0:  # costs one batch; the others need not ask again
        audit.refuse_unrankable(
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
        return audit.attack_shard(
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
            return audit.certify_sample(
                scorer, some.images, targets[rows], some.example_ids, threat=threat, device=device
            )
        if method == "auto" and found[BOUNDS_SAMPLE].no_bounds is not None:
            return replace(clean, no_bounds=found[BOUNDS_SAMPLE].no_bounds)
        return audit.certify_shard(
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
    scorer = _load_scorer(work.inputs["model"], str(device), tuple(task.positive))
    surrogate = _load_surrogate(work, task)
    audit.refuse_unrankable(
        scorer,
        image_set.images[index[: config.batch_size]],
        targets,
        batch_size=config.batch_size,
        device=device,
    )
    passes = checks.planned_passes(
        targets,
        threat=config.threat,
        attacks=attacks,
        level=level,
        surrogate=surrogate is not None,
    )
    total = work.request["images"]
    found = checks.check_audit(
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
        aps = audit.resample(joined)
        resampled |= {f"{number}.{name}": aps[name] for name in ("clean", "worst_case")}
        scores.append(joined)
        found.append(audit.figures(joined, positive=task.positive, config=config, resampled=aps))
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
            "adap": version("adap"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        device=_device(work),
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
    report = audit.build_report(
        found,
        config=config,
        provenance=provenance,
        trained_on_these=work.request["trained_on_these"],
        trust=checks.merge(checked) if checked else None,
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


def rank(work: Work, reporter: Reporter) -> Result:
    """Score every image of a split and write them best first, in each form of `WRITERS`."""
    request = RankingRequest.model_validate(work.request["config"])
    image_set = ImageSet.load(work.inputs["dataset"])
    index = image_set.in_split(work.request["split"])
    positive = None if request.task is None else tuple(request.task.positive)
    scorer = _load_scorer(work.inputs["model"], _device(work), positive)
    logits = np.empty(len(index))
    with torch.inference_mode():
        for start in range(0, len(index), request.batch_size):
            batch = index[start : start + request.batch_size]
            x = torch.from_numpy(image_set.images[batch]).to(_device(work)).float() / 255
            logits[start : start + len(batch)] = scorer(x).double().cpu().numpy()
            reporter.progress("scoring", start + len(batch), len(index), "images")
    if not np.isfinite(logits).all():
        raise ModelError("expected finite scores, got NaN or infinity from the model")
    example_ids = [image_set.example_ids[i] for i in index]
    matrix = None
    if request.task is not None:
        matrix = image_set.label_matrix(request.task.positive)[index]
    rows = []
    for position, i in enumerate(rank_order(logits, example_ids), start=1):
        row = {
            "rank": position,
            "example_id": example_ids[i],
            "score": float(logits[i]),
            "label": image_set.label_of(index[i]),
        }
        if matrix is not None:
            row["positive"] = bool(matrix[i].any())
        rows.append(row)
    files = {}
    for suffix, write in WRITERS.items():
        files["ranking" if suffix == "ndjson" else suffix] = name = f"ranking.{suffix}"
        write(rows, work.folder / name)
    return {"summary": {"examples": len(index)}, "files": files}


def export(work: Work, reporter: Reporter) -> Result:
    """Write a stored model as ONNX, and see that onnxruntime gives its logits."""
    reporter.progress("exporting", 0, 1, "models")
    scorer, manifest = loading.load(work.inputs["model"], None, device="cpu")
    difference = exporting.to_onnx(scorer, manifest, work.folder / "model.onnx")
    reporter.progress("exporting", 1, 1, "models")
    return {"summary": {"onnx_difference": difference}, "files": {"onnx": "model.onnx"}}


def try_device(work: Work, _reporter: Reporter) -> Result:
    """Compute something on the device."""
    total = torch.ones(8, 8, device=_device(work)).sum().item()
    return {"works": total == 64}


PIPELINES: dict[str, Callable[[Work, Reporter], Result]] = {
    "validate_model": validate_model,
    "train": train,
    "audit_shard": audit_shard,
    "audit_checks": audit_checks,
    "audit_report": audit_report,
    "rank": rank,
    "export": export,
    "try_device": try_device,
}


def _device(work: Work) -> str:
    if work.device != "auto":
        return work.device
    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=4)
def _load_scorer(path: Path, device: str, positive: tuple[str, ...] | None = None) -> Scorer:
    """A stored model for a task; kept between the shards of an audit, as blobs never change."""
    scorer, _ = loading.load(path, None, device=device, positive=positive)
    return scorer


def _training_split(
    image_set: ImageSet, task: AnyTask, config: TrainingConfig
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """The declared splits, or a stratified random one of the examples that are not for testing."""
    if image_set.has_split("train"):
        train_index = image_set.in_split("train")
        if image_set.has_split("validation"):
            return train_index, image_set.in_split("validation")
    else:
        declared = image_set.has_split("test") or image_set.has_split("validation")
        if declared:
            raise DataError("expected a train split beside the other splits, got none")
        train_index = image_set.in_split(None)
    generator = np.random.default_rng(config.seed)
    if isinstance(task, EachClass) and image_set.multilabel:
        return _multilabel_split(image_set, train_index, config)
    if isinstance(task, EachClass):
        names = [f"images of {name!r}" for name in image_set.classes]
        strata = image_set.labels[train_index]
    else:
        names = ["negatives", "positives"]
        strata = image_set.targets(task, train_index)
    held_out = []
    for stratum, name in enumerate(names):
        members = generator.permutation(train_index[strata == stratum])
        count = round(len(members) * config.validation.fraction)
        if not 0 < count < len(members):
            raise DataError(
                f"expected enough {name} for a training and a validation part, got {len(members)}"
            )
        held_out.append(members[:count])
    validation_index = np.sort(np.concatenate(held_out))
    return np.setdiff1d(train_index, validation_index), validation_index


def _multilabel_split(
    image_set: ImageSet, train_index: np.ndarray[Any, np.dtype[np.int64]], config: TrainingConfig
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """A random split of images with several labels: rarest class first, each class is shared out.

    An image that a rarer class has placed stays there; the images without any class come last.
    """
    generator = np.random.default_rng(config.seed)
    matrix = image_set.label_matrix()[train_index]
    placed = np.zeros(len(train_index), bool)
    held_out = np.zeros(len(train_index), bool)
    for k in np.argsort(matrix.sum(axis=0), kind="stable"):
        members = matrix[:, k] == 1
        wanted = round(int(members.sum()) * config.validation.fraction)
        free = generator.permutation(np.flatnonzero(members & ~placed))
        held_out[free[: max(0, wanted - int((members & held_out).sum()))]] = True
        placed |= members
        if not 0 < int((members & held_out).sum()) < int(members.sum()):
            raise DataError(
                f"expected enough images of {image_set.classes[k]!r} for a training and a "
                f"validation part, got {int(members.sum())}"
            )
    rest = generator.permutation(np.flatnonzero(~placed))
    held_out[rest[: round(len(rest) * config.validation.fraction)]] = True
    return train_index[~held_out], train_index[held_out]


def _tensors(part: ImageSet, task: AnyTask) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and (N,) targets of a task or (N, K) of each class against the rest."""
    if isinstance(task, Task):
        targets = part.targets(task)
    else:
        of_each = [part.targets(Task(positive=[name])) for name in part.classes]
        targets = np.stack(of_each, axis=1)
    return torch.from_numpy(part.images), torch.from_numpy(targets)


def _channel_statistics(
    images: np.ndarray[Any, np.dtype[np.uint8]],
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels in [0, 1], from the counts of values."""
    means, stds = [], []
    values = np.arange(256) / 255
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, channel].size
        mean = float(share @ values)
        means.append(round(mean, 6))
        std = float(np.sqrt(share @ (values - mean) ** 2))
        stds.append(round(max(std, 1 / 255), 6))  # a constant channel is left as it is
    return means, stds


def _audited(work: Work) -> tuple[AuditConfig, Task, torch.device]:
    return (
        AuditConfig.model_validate(work.request["config"]),
        Task.model_validate(work.request["task"]),
        torch.device(_device(work)),
    )


def _load_surrogate(work: Work, task: Task) -> Scorer | None:
    """The attacker's own model, on the same task; one of a single logit has none to choose."""
    if "surrogate" not in work.inputs:
        return None
    return _load_scorer(work.inputs["surrogate"], _device(work), tuple(task.positive))


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
            audit.combine(
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
    return audit.join(parts)


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
