"""The work of every kind of job, as plain functions of its input files: here core and models meet.

A pipeline reads the files it is given, writes files into its folder, and returns a result whose
`files` names those that the worker shall keep. It knows no database and no broker. Opening a data
set needs no torch and stands in `worker.intake.pipeline`.
"""

import hashlib
import json
import logging
import platform
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import audit, report_page, training
from core.config import AuditConfig, RankingRequest, Task, TrainingConfig
from core.datasets import ImageSet
from core.errors import DataError, ModelError
from core.objectives.registry import build_objective
from core.ranking import rank_order
from core.report import DatasetProvenance, ModelProvenance, Provenance
from core.scores import Scores, load_scores, save_scores
from models import architectures, loading
from models.errors import ModelFileError
from models.header import InputSpec, Manifest
from models.wrappers import Scorer
from worker.intake import IntakeLimits
from worker.intake.images import UnusableImageError, decode, strict_decoding
from worker.work import Reporter, Work

log = logging.getLogger(__name__)

Result = dict[str, Any]


def validate_model(work: Work, reporter: Reporter) -> Result:
    """Load an uploaded model into its architecture, try it, and store it with its manifest."""
    declared = work.request.get("manifest")
    try:
        manifest = None if declared is None else Manifest.model_validate(declared)
        reporter.progress("loading", 0, 2, "steps")
        scorer, manifest = loading.load(work.inputs["upload"], manifest, device="cpu")
        reporter.progress("probing", 1, 2, "steps")
        findings = loading.probe(scorer)
    except ModelFileError as error:
        return {"rejected": [str(error)]}
    if findings.problems:
        return {"rejected": findings.problems}
    loading.save(scorer, work.folder / "content.safetensors", manifest)
    reporter.progress("probing", 2, 2, "steps")
    return {
        "manifest": manifest.model_dump(mode="json"),
        "findings": findings.model_dump(mode="json"),
        "files": {"content": "content.safetensors"},
    }


def train(work: Work, reporter: Reporter) -> Result:
    """Train a model; hands over a checkpoint after every epoch and goes on from one it is given."""
    config = TrainingConfig.model_validate(work.request["config"])
    task = Task.model_validate(work.request["task"])
    image_set = ImageSet.load(work.inputs["dataset"])
    train_index, validation_index = _training_split(image_set, task, config)
    parts = image_set.subset(train_index), image_set.subset(validation_index)
    images, targets = _tensors(parts[0], task)
    validation = _tensors(parts[1], task)

    channels, height, width = images.shape[1:]
    mean, std = _channel_statistics(parts[0].images)
    manifest = Manifest(
        architecture=config.architecture,
        input=InputSpec(channels=channels, height=height, width=width, mean=mean, std=std),
        positive=task.positive,
    )
    network = architectures.build(config.architecture, channels=channels, seed=config.seed)
    scorer = Scorer(network, manifest.input)
    objective = build_objective(config.method, examples=len(targets))

    def checkpoint_of(epoch: int) -> Path:
        # a name of its own: the worker may still read the one before
        return work.folder / f"checkpoint-{epoch}.pt"

    def save(checkpoint: dict[str, Any]) -> None:
        content = {**checkpoint, "job": work.request["job_id"]}
        torch.save(content, checkpoint_of(checkpoint["epoch"]))

    def on_epoch(record: training.EpochRecord) -> None:
        # the event first: if the worker dies in between, it is told twice rather than never
        reporter.event("epoch", record.as_json())
        reporter.checkpoint(checkpoint_of(record.epoch))
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
    summary = {
        "method": config.method.as_json(),
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
    """Attack some examples of an audit and keep their scores."""
    config = AuditConfig.model_validate(work.request["config"])
    task = Task.model_validate(work.request["task"])
    start, stop = work.request["start"], work.request["stop"]
    image_set = ImageSet.load(work.inputs["dataset"])
    index = image_set.in_split(work.request["split"])
    targets = image_set.targets(task, index)  # of the whole split: a shard may lack positives
    part = image_set.subset(index[start:stop])
    attacks = config.resolved_attacks()
    scorer = _load_scorer(work.inputs["model"], _device(work))
    if work.request["shard"] == 0:  # costs one batch; the others need not ask again
        spread = np.unique(np.linspace(0, len(index) - 1, config.batch_size, dtype=np.int64))
        audit.refuse_unrankable(
            scorer,
            image_set.images[index[spread]],
            targets,
            batch_size=config.batch_size,
            device=torch.device(_device(work)),
        )
    surrogate = (
        _load_scorer(work.inputs["surrogate"], _device(work))
        if "surrogate" in work.inputs
        else None
    )
    total = work.request["images"]
    scores = audit.attack_shard(
        scorer,
        part.images,
        targets[start:stop],
        part.example_ids,
        attacks=attacks,
        threat=config.threat,
        surrogate=surrogate,
        seed=config.seed,
        shard=work.request["shard"],
        batch_size=config.batch_size,
        device=torch.device(_device(work)),
        on_progress=lambda done: reporter.progress("attacking", done, total, "images"),
    )
    save_scores([scores], work.folder / "scores.safetensors")
    return {"files": {"scores": "scores.safetensors"}}


def audit_report(work: Work, _reporter: Reporter) -> Result:
    """Join the shards of an audit: figures, report, page and the table of scores."""
    config = AuditConfig.model_validate(work.request["config"])
    task = Task.model_validate(work.request["task"])
    shards = sorted(name for name in work.inputs if name.startswith("shard"))
    scores = audit.join([load_scores(work.inputs[name])[0] for name in shards])
    path = work.folder / "scores.safetensors"
    save_scores([scores], path)
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
    report = audit.build_report(
        scores,
        positive=task.positive,
        attacks=config.resolved_attacks(),
        threat=config.threat,
        provenance=provenance,
        trained_on_these=work.request["trained_on_these"],
    )
    (work.folder / "report.json").write_text(report.model_dump_json())
    (work.folder / "report.html").write_text(report_page.render(report, [scores]), encoding="utf-8")
    _write_score_table(scores, work.folder / "scores.ndjson")
    figures = report.tasks[0]
    return {
        "summary": {
            "clean_ap": figures.clean.ap,
            "worst_case_ap": figures.worst_case.ap,
            "attacks": {name: figure.ap for name, figure in figures.attacks.items()},
            "chance": figures.chance,
            "floor": figures.floor,
            "warnings": report.warnings,
        },
        "files": {
            "report": "report.json",
            "page": "report.html",
            "scores": "scores.safetensors",
            "table": "scores.ndjson",
        },
    }


def rank(work: Work, reporter: Reporter) -> Result:
    """Score every image of a split and write them best first."""
    request = RankingRequest.model_validate(work.request["config"])
    image_set = ImageSet.load(work.inputs["dataset"])
    index = image_set.in_split(work.request["split"])
    scorer = _load_scorer(work.inputs["model"], _device(work))
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
    with (work.folder / "ranking.ndjson").open("w") as file:
        for position, i in enumerate(rank_order(logits, example_ids), start=1):
            label = image_set.classes[image_set.labels[index[i]]]
            row = {
                "rank": position,
                "example_id": example_ids[i],
                "score": float(logits[i]),
                "label": label,
            }
            if request.task is not None:
                row["positive"] = label in request.task.positive
            file.write(json.dumps(row) + "\n")
    return {"summary": {"examples": len(index)}, "files": {"ranking": "ranking.ndjson"}}


def score(work: Work, reporter: Reporter) -> Result:
    """Score the images of one request, in the order in which they came."""
    scorer = _load_scorer(work.inputs["model"], "cpu")
    spec = scorer.input_spec
    names = work.request["file_names"]
    images = np.empty((len(names), spec.channels, spec.height, spec.width), np.uint8)
    reasons = []
    with zipfile.ZipFile(work.inputs["upload"]) as bundle, strict_decoding():
        for i, name in enumerate(names):
            try:
                data = bundle.read(f"{i:06d}")
                images[i] = _fitted(decode(data, max_pixels=IntakeLimits().pixels), spec)
            except UnusableImageError as error:
                reasons.append(f"{name}: {error}")
    if reasons:
        return {"rejected": reasons}
    with torch.inference_mode():
        logits = scorer(torch.from_numpy(images).float() / 255).double().numpy()
    if not np.isfinite(logits).all():
        raise ModelError("expected finite scores, got NaN or infinity from the model")
    ranks = np.empty(len(names), np.int64)
    ranks[rank_order(logits, [f"{i:06d}" for i in range(len(names))])] = np.arange(len(names)) + 1
    reporter.progress("scoring", len(names), len(names), "images")
    return {
        "scores": [
            {"file_name": name, "score": float(logits[i]), "rank": int(ranks[i])}
            for i, name in enumerate(names)
        ]
    }


PIPELINES: dict[str, Callable[[Work, Reporter], Result]] = {
    "validate_model": validate_model,
    "train": train,
    "audit_shard": audit_shard,
    "audit_report": audit_report,
    "rank": rank,
    "score": score,
}


def _fitted(pixels: np.ndarray[Any, np.dtype[np.uint8]], spec: InputSpec) -> Any:
    """Decoded pixels as the (C, H, W) that a model takes: grey for all channels, else RGB."""
    if pixels.shape[:2] != (spec.height, spec.width):
        raise UnusableImageError(
            f"expected {spec.height}x{spec.width} pixels (height x width), "
            f"got {pixels.shape[0]}x{pixels.shape[1]}"
        )
    if pixels.ndim == 2:
        return pixels[None].repeat(spec.channels, axis=0)
    if spec.channels == 1:
        raise UnusableImageError("expected a grey image, as the model has one channel, got colours")
    return pixels.transpose(2, 0, 1)


def _device(work: Work) -> str:
    if work.device != "auto":
        return work.device
    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=4)
def _load_scorer(path: Path, device: str) -> Scorer:
    """A stored model; kept between the shards of an audit, as blobs never change."""
    scorer, _ = loading.load(path, None, device=device)
    return scorer


def _training_split(
    image_set: ImageSet, task: Task, config: TrainingConfig
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
    targets = image_set.targets(task, train_index)
    held_out = []
    for value in (0, 1):
        members = generator.permutation(train_index[targets == value])
        count = round(len(members) * config.validation.fraction)
        if not 0 < count < len(members):
            raise DataError(
                f"expected enough {'positives' if value else 'negatives'} for a training and a "
                f"validation part, got {len(members)}"
            )
        held_out.append(members[:count])
    validation_index = np.sort(np.concatenate(held_out))
    return np.setdiff1d(train_index, validation_index), validation_index


def _tensors(part: ImageSet, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(part.images), torch.from_numpy(part.targets(task))


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


def _write_score_table(scores: Scores, path: Path) -> None:
    with path.open("w") as file:
        for i, example_id in enumerate(scores.example_ids):
            row = {
                "example_id": example_id,
                "target": int(scores.targets[i]),
                "clean": float(scores.clean[i]),
                "attacks": {name: float(logits[i]) for name, logits in scores.attacked.items()},
            }
            file.write(json.dumps(row) + "\n")
