"""What a training learns from and with, made from its inputs: the same on each of its devices."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adap.core.config.data import AnyTask, EachClass, Task
from adap.core.datasets import ImageSet, Picked, channel_statistics
from adap.core.objectives.base import Objective
from adap.core.objectives.registry import build_objective
from adap.core.training.examples import Images
from adap.core.training.splitting import training_split
from adap.models import architectures, loading
from adap.models.header import ONE_LOGIT, InputSpec, Manifest, logit_a_class
from adap.models.wrappers import EveryLogit, Scorer
from adap.worker.pipelines.requests import Training
from adap.worker.work import Work


@dataclass(frozen=True)
class Learning:
    """A network before its first step, its objective, and the examples."""

    scorer: nn.Module
    objective: Objective
    images: Images
    targets: Tensor
    validation: tuple[Images, Tensor]
    manifest: Manifest
    tests: bool
    """Whether the data set has a test split."""
    examples: int
    """Of the data set, a test split left out."""


def learning_of(work: Work[Training]) -> Learning:
    """Read the data set, hold out the validation part, build or load the network."""
    config, task = work.request.config, work.request.task
    image_set = ImageSet.load(work.inputs["dataset"])
    train_index, validation_index = training_split(
        image_set, task, config, sample=work.request.sample
    )
    images, targets = examples(image_set, train_index, task)

    channels, height, width = images.shape[1:]
    classes = list(image_set.classes) if isinstance(task, EachClass) else None
    output = ONE_LOGIT if classes is None else logit_a_class(classes)
    network = architectures.build(
        config.architecture, channels=channels, seed=config.seed, outputs=output.count
    )
    start = work.request.warm_start
    if start is None:
        mean, std = channel_statistics(images)
        spec = InputSpec(channels=channels, height=height, width=width, mean=mean, std=std)
    else:
        source, known = loading.load(work.inputs["warm_start"], device="cpu")
        spec = known.input  # its weights belong to its own mean and std
        architectures.start_from(network, source.network.state_dict(), fresh_head=start.fresh_head)
    tests = image_set.has_split("test")
    return Learning(
        scorer=(Scorer if classes is None else EveryLogit)(network, spec, output=output),
        objective=build_objective(
            config.method, examples=len(targets), classes=None if classes is None else len(classes)
        ),
        images=images,
        targets=targets,
        validation=examples(image_set, validation_index, task),
        manifest=Manifest(
            architecture=config.architecture,
            input=spec,
            output=output,
            positive=None if isinstance(task, EachClass) else task.positive,
        ),
        tests=tests,
        examples=len(image_set) - (len(image_set.in_split("test")) if tests else 0),
    )


def examples(image_set: ImageSet, index: NDArray[np.int64], task: AnyTask) -> tuple[Picked, Tensor]:
    """The images at these places, and (N,) targets of a task or (N, K) of each class."""
    if isinstance(task, Task):
        targets = image_set.targets(task, index)
    else:
        of_each = [image_set.targets(Task(positive=[name]), index) for name in image_set.classes]
        targets = np.stack(of_each, axis=1)
    return Picked(image_set.images, index), torch.from_numpy(targets)
