"""The work of an audit: its shards, its checks, and the report that joins them."""

import hashlib
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.numpy import save_file
from torch import nn

from adap.core.audit import measuring
from adap.core.audit.checks import check
from adap.core.audit.checks.figures import of_figures
from adap.core.audit.checks.files import check_files, doubts
from adap.core.audit.checks.verdicts import merge
from adap.core.audit.deployed import deployed, followed
from adap.core.audit.leakage import Learned, audited_images, find_leakage
from adap.core.audit.pieces import Measured, joined
from adap.core.audit.plan import (
    CHECKS_FILE,
    MADE_OF,
    SAMPLES,
    ChecksPiece,
    ScoresPiece,
    known_input,
    piece_input,
    recovery_of,
    trained_on_input,
)
from adap.core.audit.sampling import audited_rows, sample_doubt
from adap.core.config.data import Task
from adap.core.datasets import ImageSet, Picked
from adap.core.figures import report as reports
from adap.core.figures import task as figures
from adap.core.rankings import Own
from adap.core.rendering import page as report_page
from adap.core.report import Check, Provenance
from adap.core.scores import Scores, load_scores, save_scores
from adap.worker.pipelines.inputs import device, load_scorer
from adap.worker.pipelines.requests import AuditChecks, AuditReport, AuditScores
from adap.worker.pipelines.results import AuditJoined, AuditSummary, PieceMeasured, TaskSummary
from adap.worker.work import Reporter, Work

_CHECKS: TypeAdapter[list[Check]] = TypeAdapter(list[Check])


def measure_piece(work: Work[AuditScores], reporter: Reporter) -> PieceMeasured:
    """Measure some examples of an audit, column by column, except for what is known already."""
    piece, known = work.request.piece, work.request.known
    measured = _measured(work)
    if piece.shard == 0:  # costs one batch; the others need not ask again
        _refuse_unrankable(measured)
    done = 0
    files: dict[str, str] = {}
    found: dict[str, Scores] = {}  # what other columns are made of

    def on_progress(images: int) -> None:
        reporter.progress("attacking", done + images, piece.images, "images")

    for i, column in enumerate(piece.columns):
        name = column.name
        if name not in known:
            files[name] = f"column-{i}.safetensors"
            made = measured.column(column.measure, found, on_progress=on_progress)
            save_scores([made], work.folder / files[name])
        if isinstance(column.measure, MADE_OF):
            kept = work.inputs[known_input(name)] if name in known else work.folder / files[name]
            (found[name],) = load_scores(kept)
        if not isinstance(column.measure, SAMPLES):
            done += piece.stop - piece.start
        reporter.progress("attacking", done, piece.images, "images")
    return PieceMeasured(files=files, known=known)


def _measured(work: Work[AuditScores]) -> Measured:
    piece, where = work.request.piece, torch.device(device(work))
    image_set = ImageSet.load(work.inputs["dataset"])
    index = audited_rows(image_set, piece.split, piece.task, piece.config)
    scorer, surrogate = _load(work)
    return Measured(
        piece=piece,
        images=Picked(image_set.images, index),
        example_ids=[image_set.example_ids[i] for i in index],
        targets=image_set.targets(piece.task, index),
        scorer=scorer,
        surrogate=surrogate,
        device=where,
    )


def _refuse_unrankable(measured: Measured) -> None:
    batch_size, examples = measured.piece.config.batch_size, len(measured.targets)
    spread = np.unique(np.linspace(0, examples - 1, batch_size, dtype=np.int64))
    measuring.refuse_unrankable(
        measured.scorer,
        measured.images[spread],
        measured.targets,
        batch_size=batch_size,
        device=measured.device,
    )


def check_piece(work: Work[AuditChecks], reporter: Reporter) -> PieceMeasured:
    """Ask whether the audit of one task can be trusted."""
    piece, where = work.request.piece, torch.device(device(work))
    config, task = piece.config, piece.task
    level = config.resolved_checks()
    assert level != "off"
    image_set = ImageSet.load(work.inputs["dataset"])
    index = audited_rows(image_set, piece.split, task, config)
    targets = image_set.targets(task, index)
    attacks = config.resolved_attacks()
    scorer, surrogate = _load(work)
    measuring.refuse_unrankable(
        scorer,
        image_set.images[index[: config.batch_size]],
        targets,
        batch_size=config.batch_size,
        device=where,
    )
    passes = check.planned_passes(
        targets,
        threat=config.threat,
        attacks=attacks,
        level=level,
        surrogate=surrogate is not None,
        draws=piece.draws,
    )
    total = piece.images
    found = check.check_audit(
        scorer,
        cast(np.ndarray[Any, np.dtype[np.uint8]], Picked(image_set.images, index)),
        targets,
        threat=config.threat,
        attacks=attacks,
        level=level,
        surrogate=surrogate,
        seed=config.seed,
        batch_size=config.batch_size,
        device=where,
        on_progress=lambda done: reporter.progress(
            "attacking", min(total, done * total // passes), total, "images"
        ),
        draws=piece.draws,
    )
    reporter.progress("attacking", total, total, "images")
    text = json.dumps([check.model_dump(mode="json") for check in found])
    (work.folder / "checks.json").write_text(text)
    return PieceMeasured(files={CHECKS_FILE: "checks.json"})


def join_pieces(work: Work[AuditReport], reporter: Reporter) -> AuditJoined:
    """Join the pieces of an audit: figures, report, page and the table of scores."""
    asked, config = work.request, work.request.config
    image_set = ImageSet.load(work.inputs["dataset"])
    tasks = list({piece.task_number: piece.task for piece in asked.pieces}.values())
    reporter.progress("reporting", 0, len(tasks), "tasks")
    scores, found = [], []
    resampled: dict[str, np.ndarray[Any, Any]] = {}
    for number, task in enumerate(tasks):
        together = _joined_scores(work, image_set, number)
        aps = figures.resample(together)
        for own in (Own.CLEAN, Own.WORST_CASE):
            resampled |= {f"{number}.{own.value}.{of}": row for of, row in vars(aps[own]).items()}
        scores.append(together)
        found.append(
            figures.figures(
                together,
                positive=task.positive,
                config=config,
                recovery=recovery_of(asked.pieces),
                resampled=aps,
            )
        )
        reporter.progress("reporting", number + 1, len(tasks), "tasks")
    path = work.folder / "scores.safetensors"
    save_scores(scores, path)
    save_file(resampled, work.folder / "resampled.safetensors")
    provenance = Provenance(
        model=asked.model,
        dataset=asked.dataset,
        surrogate=asked.surrogate,
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
        "+".join(piece.task.positive): [
            *_CHECKS.validate_json(work.inputs[piece_input(number, CHECKS_FILE)].read_bytes()),
            *of_figures(found[piece.task_number], asked.model),
        ]
        for number, piece in enumerate(asked.pieces)
        if isinstance(piece, ChecksPiece)
    }
    leakage = find_leakage(
        image_set,
        asked.dataset.split,
        trained_on=None
        if asked.trained_on is None
        else [
            Learned(ImageSet.load(work.inputs[trained_on_input(i)]), held_out)
            for i, held_out in enumerate(asked.trained_on)
        ],
        missing=asked.missing,
    )
    of_files = check_files(
        dataset=asked.dataset.reading, model=asked.model.reading, leakage=leakage
    )
    of_split = image_set.in_split(asked.dataset.split)
    sampled = sample_doubt(
        config.sampled(len(of_split)),
        len(of_split),
        clusters=scores[0].clusters,
        seed=config.seed,
    )
    report = reports.build_report(
        found,
        config=config,
        provenance=provenance,
        doubts=[*([] if sampled is None else [sampled]), *doubts(of_files)],
        trust=merge(checked, of_files=of_files) if checked else None,
        images=audited_images(image_set.images, of_split, leakage),
        statement=asked.statement,
    )
    (work.folder / "report.json").write_text(report.model_dump_json())
    (work.folder / "report.html").write_text(report_page.render(report, scores), encoding="utf-8")
    _write_score_table(scores, tasks, work.folder / "scores.ndjson")
    return AuditJoined(
        summary=AuditSummary(
            clean_ap=report.mean["clean"],
            worst_case_ap=report.mean["worst_case"],
            attacks={key: report.mean[key] for key in found[0].attacks if key in report.mean},
            certified_floor=report.mean.get("certified_floor"),
            chance=float(np.mean([task.chance for task in found])),
            floor=float(np.mean([task.floor for task in found])),
            trust=None if report.trust is None else report.trust.verdict,
            thresholds=report.thresholds,
            warnings=report.warnings,
            tasks=[
                TaskSummary(positive=task.positive, clean=task.clean, worst_case=task.worst_case)
                for task in found
            ],
        ),
        files={
            "report": "report.json",
            "page": "report.html",
            "scores": "scores.safetensors",
            "resampled": "resampled.safetensors",
            "table": "scores.ndjson",
        },
    )


def _load(work: Work[AuditScores | AuditChecks]) -> tuple[nn.Module, nn.Module | None]:
    """The model, and the attacker's own where there is one: on the task, behind the pipeline."""

    def scorer(name: str) -> nn.Module:
        return load_scorer(work.inputs[name], device(work), tuple(piece.task.positive))

    piece = work.request.piece
    pipeline = piece.config.pipeline
    other = followed(scorer("surrogate"), pipeline) if "surrogate" in work.inputs else None
    return deployed(scorer("model"), pipeline), other


def _joined_scores(work: Work[AuditReport], image_set: ImageSet, task_number: int) -> Scores:
    """The scores of one task, from the columns of its pieces."""
    pieces = [
        (number, piece)
        for number, piece in enumerate(work.request.pieces)
        if isinstance(piece, ScoresPiece) and piece.task_number == task_number
    ]
    index = audited_rows(
        image_set, work.request.dataset.split, pieces[0][1].task, work.request.config
    )
    return joined(
        [
            (
                piece,
                lambda name, number=number: load_scores(  # type: ignore[misc]
                    work.inputs[piece_input(number, name)]
                )[0],
            )
            for number, piece in pieces
        ],
        groups=image_set.group_names(index),
        clusters=image_set.cluster_names(index),
    )


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
                if found.clusters is not None:
                    row["cluster"] = found.clusters[i]
                file.write(json.dumps(row) + "\n")
