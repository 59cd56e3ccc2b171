"""The work of a training, with a checkpoint after every epoch."""

import io
import logging
from pathlib import Path
from typing import Any

import torch

from adap.core.training import loop as training
from adap.core.training.cautions import no_test_split, only_a_sample
from adap.models import loading
from adap.store import disk
from adap.worker.pipelines.learning import learning_of
from adap.worker.pipelines.ranks import device_of, ranks_of, refuse_more_than_there_are
from adap.worker.pipelines.requests import Training
from adap.worker.pipelines.results import Trained
from adap.worker.work import Reporter, Work

log = logging.getLogger(__name__)


def train(work: Work[Training], reporter: Reporter) -> Trained:
    """Train a model; hands over a checkpoint after every epoch and goes on from one it is given."""
    refuse_more_than_there_are(work)
    config, task, start = work.request.config, work.request.task, work.request.warm_start
    learning = learning_of(work)
    learned = len(learning.targets) + len(learning.validation[1])
    found = [
        no_test_split(tests=learning.tests),
        only_a_sample(learned, examples=learning.examples),
    ]
    before = [fact for fact in found if fact is not None]
    if "checkpoint" not in work.inputs:
        for fact in before:
            reporter.event("fact", fact.model_dump(mode="json"))

    def checkpoint_of(epoch: int) -> Path:
        # a name of its own: the worker may still read the one before
        return work.folder / f"checkpoint-{epoch}.pt"

    def save(checkpoint: dict[str, Any]) -> None:
        content = io.BytesIO()
        torch.save({**checkpoint, "job": work.request.job_id}, content)
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
        checkpoint = torch.load(work.inputs["checkpoint"], weights_only=True, map_location="cpu")
        reporter.event("resumed", {"epoch": int(checkpoint["epoch"])})
    reporter.progress(
        "training", 0 if checkpoint is None else checkpoint["epoch"], config.epochs, "epochs"
    )
    with ranks_of(work) as ranks:
        result = training.fit(
            learning.scorer,
            learning.objective,
            images=learning.images,
            targets=learning.targets,
            validation=learning.validation,
            config=config,
            device=device_of(work, ranks),
            on_epoch=on_epoch,
            checkpoint=checkpoint,
            save=save,
            ranks=ranks,
        )
    if result.stopped_early:
        best, last = result.best.epoch, result.history[-1].epoch
        reporter.event("stopped_early", {"epoch": last, "best_epoch": best})
    for fact in result.facts:
        reporter.event("fact", fact.model_dump(mode="json"))
    facts = [*before, *result.facts]
    summary = {
        "facts": [fact.model_dump(mode="json") for fact in facts],
        "method": config.method.as_json(),
        "task": task.as_json(),
        "warm_start": None if start is None else start.as_json(),
        "config": config.as_json(),
        "config_sha256": config.sha256(),
        "dataset": work.request.dataset.model_dump(mode="json"),
        "sample": work.request.sample,
        "devices": work.request.devices,
        "train_examples": len(learning.targets),
        "validation_examples": len(learning.validation[1]),
        **result.as_json(),
    }
    manifest = learning.manifest.model_copy(update={"training": summary})
    loading.save(learning.scorer, work.folder / "model.safetensors", manifest)
    return Trained(manifest=manifest, files={"content": "model.safetensors"})
