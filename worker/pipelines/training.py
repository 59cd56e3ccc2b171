"""The work of a training, with a checkpoint after every epoch."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adap.core.config import AnyTask, EachClass, Task
from adap.core.datasets import ImageSet, channel_statistics
from adap.core.objectives.registry import build_objective
from adap.core.training import loop as training
from adap.core.training.splitting import training_split
from adap.models import architectures, loading
from adap.models.header import ONE_LOGIT, InputSpec, Manifest, logit_a_class
from adap.models.wrappers import EveryLogit, Scorer
from adap.store import disk
from adap.worker.pipelines.inputs import device
from adap.worker.pipelines.requests import Training
from adap.worker.pipelines.results import Trained
from adap.worker.work import Reporter, Work

log = logging.getLogger(__name__)


def train(work: Work[Training], reporter: Reporter) -> Trained:
    """Train a model; hands over a checkpoint after every epoch and goes on from one it is given."""
    config, task = work.request.config, work.request.task
    image_set = ImageSet.load(work.inputs["dataset"])
    train_index, validation_index = training_split(image_set, task, config)
    parts = image_set.subset(train_index), image_set.subset(validation_index)
    images, targets = tensors(parts[0], task)
    validation = tensors(parts[1], task)

    channels, height, width = images.shape[1:]
    classes = list(image_set.classes) if isinstance(task, EachClass) else None
    output = ONE_LOGIT if classes is None else logit_a_class(classes)
    network = architectures.build(
        config.architecture, channels=channels, seed=config.seed, outputs=output.count
    )
    start = work.request.warm_start
    if start is None:
        mean, std = channel_statistics(parts[0].images)
        spec = InputSpec(channels=channels, height=height, width=width, mean=mean, std=std)
    else:
        source, known = loading.load(work.inputs["warm_start"], device="cpu")
        spec = known.input  # its weights belong to its own mean and std
        architectures.start_from(network, source.network.state_dict(), fresh_head=start.fresh_head)
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
        device=torch.device(device(work)),
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
        "warm_start": None if start is None else start.as_json(),
        "config": config.as_json(),
        "config_sha256": config.sha256(),
        "dataset": work.request.dataset.model_dump(mode="json"),
        "train_examples": len(parts[0]),
        "validation_examples": len(parts[1]),
        **result.as_json(),
    }
    manifest = manifest.model_copy(update={"training": summary})
    loading.save(scorer, work.folder / "model.safetensors", manifest)
    return Trained(manifest=manifest, files={"content": "model.safetensors"})


def tensors(part: ImageSet, task: AnyTask) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and (N,) targets of a task or (N, K) of each class against the rest."""
    if isinstance(task, Task):
        targets = part.targets(task)
    else:
        of_each = [part.targets(Task(positive=[name])) for name in part.classes]
        targets = np.stack(of_each, axis=1)
    return torch.from_numpy(part.images), torch.from_numpy(targets)
