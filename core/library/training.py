"""Training from one's own process: `adap.fit`, and the pieces of its loop for a loop of one's own.

    loss = adap.AdapLPN(examples=len(images))
    sampler = adap.batches(loss, targets, batch_size=32, seed=0)
    for epoch in range(1, epochs + 1):
        generator = adap.attack_generator(seed=0, epoch=epoch)
        for index in sampler:
            x, y = images[index], targets[index].float()
            x_adv = adap.training_attack(model, loss, x, y, index, generator=generator)
            ...

Written so, a loop trains to the weights of `adap.fit`.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adap.core.attacks.holding import in_eval_mode
from adap.core.config import training as config
from adap.core.config.training import TrainingConfig
from adap.core.errors import ConfigError, DataError, ModelError
from adap.core.library.attacks import Refusing, columns_of, refuse_no_generator
from adap.core.library.examples import Examples, Layout, Part, as_float, examples_of, targets_of
from adap.core.library.kept_training import KeptTraining, start_of
from adap.core.library.losses import HALF, LOSSES, Loss
from adap.core.library.progress import Progress, counting
from adap.core.library.rankers import TRIED, Outputs, Ready, device_of, kept_modes, ready
from adap.core.library.refusals import configured, refuse_unless_whole
from adap.core.library.running import made_folder
from adap.core.library.several import ranks_of
from adap.core.training import attacking, loop, seeds
from adap.core.training.loop import EpochRecord, SelectBy
from adap.core.training.sampling import Sampler
from adap.core.training.splitting import held_out_of


class TrainingAttack(Refusing, config.TrainingAttack):
    """PGD as run inside training, last iterate: norm, epsilon (8/255), steps (6), step_size (0.01).

    positive_factor (1): positives have so many times the epsilon, after positive_warmup_epochs.

    Pixels in [0, 1]. Raises ConfigError for fields out of bounds. Source: Section 5 of the paper.

    >>> adap.TrainingAttack(steps=3).step_size
    0.01
    """


class Optimizer(Refusing, config.Optimizer):
    """The optimiser of `fit`, and the decay of its learning rate.

    Fields: name ('adam', 'adamw', 'nadam', 'radam', 'rmsprop', 'sgd'), lr (0.001), weight_decay
    (0.0002), momentum, nesterov, milestones (fractions of the epochs, [0.5, 0.75]) after which lr
    is multiplied by decay (0.1), schedule ('steps' or 'cosine'), warmup_epochs (0).
    Raises ConfigError for fields out of bounds. Source: torch.optim.

    >>> adap.Optimizer(name="sgd", lr=0.1).momentum
    0.9
    """


class Augment(Refusing, config.Augment):
    """Random changes of the training images that keep their labels; none by default.

    Fields: crop_padding (pixels), flip, crop_shift (pixels), jitter (0 to 1), erase (a share of the
    images). Raises ConfigError for fields out of bounds. Source: `docs/methods.md`.

    >>> adap.Augment(crop_padding=4, flip=True).erase
    0
    """


class WeightPerturbation(Refusing, config.WeightPerturbation):
    """Adversarial weight perturbation: each step descends from weights at which the loss is higher.

    Fields: size (0.01, a share of each layer's weights), warmup_epochs (0, without it).
    Raises ConfigError for fields out of bounds. Source: Wu, Xia & Wang 2020.

    >>> adap.WeightPerturbation(size=0.005).warmup_epochs
    0
    """


@dataclass(frozen=True)
class Fitted:
    """How a training went; the model itself holds the weights of the best epoch.

    best, history: epochs with `.epoch` (from 1), `.loss`, `.clean_ap`, `.robust_ap`, of the
    validation part.  select_by: the figure that chose the best.  loss: the objective, trained.
    warnings: what was decided about the model and the images.

    >>> adap.Fitted.__dataclass_fields__.keys() >= {"best", "history"}
    True
    """

    best: EpochRecord
    history: Sequence[EpochRecord]
    select_by: SelectBy
    stopped_early: bool
    loss: Loss
    warnings: Sequence[str] = ()


def fit(
    model: nn.Module,
    images: Any,
    labels: Any = None,
    loss: Loss | type[Loss] | str = "adap_lpn",
    *,
    validation: tuple[Any, Any] | float = 0.2,
    epochs: int = 30,
    batch_size: int = 128,
    positives_per_batch: int | None = None,
    optimizer: config.Optimizer | None = None,
    attack: config.TrainingAttack | None = None,
    augment: config.Augment | None = None,
    select_by: SelectBy | None = None,
    validate_every: int = 1,
    patience: int | None = None,
    ema: float | None = None,
    precision: config.Precision = "float32",
    folded_attack: bool = False,
    weight_perturbation: config.WeightPerturbation | None = None,
    devices: int = 1,
    positive: Any = None,
    outputs: Outputs = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: Layout | None = None,
    clusters: Any = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Fitted:
    """Train a model in place, by one of the ten methods; it ends with its best epoch's weights.

    model: an `nn.Module` as in `adap.audit`; left where it was and in the mode it had.
    images, labels, positive, outputs, mean, std, layout: as in `adap.audit`.
    loss: an objective (built for as many examples as are trained on), its class, or its name.
    validation: (images, labels) on which the best epoch is chosen; or the share of each side that
    is held out for it, at random by `seed`.
    clusters: (N,) names of what images that are no independent draws have in common: a patient, a
    drive. The part that is held out holds whole clusters, and its share is of clusters.
    epochs, batch_size, positives_per_batch, optimizer, attack, augment, select_by, patience, ema,
    precision, folded_attack, weight_perturbation: as in the service.
    validate_every: so many epochs, and after the last: only those can be the best.
    devices: processes that share every batch, on a GPU each, for the same training up to rounding:
    `torchrun --nproc-per-node N script.py`, each process calling with devices=N, the same images
    and labels, and a GPU of its own (device="cuda"). The first keeps, shows and tells.
    folder: where a checkpoint is kept after every epoch. The same call goes on from there, with the
    weights that the model had at first or those that the training left in it; with other data,
    labels, options or weights it is refused. What ends an epoch half way (Ctrl-C) leaves no trace
    of it in the weights. More `epochs` go on too, where no milestone moves by them.
    on_epoch: told of each epoch, whose `scalars()` are what TensorBoard or MLflow draw; what it
    raises ends the training.

    Raises ConfigError, DataError or ModelError before the first step, TrainingError for a loss or
    weights that are not finite. Source: Algorithms 1 to 5 of the paper.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
    >>> images, labels = torch.rand(40, 3, 4, 4), torch.tensor([0, 1] * 20)
    >>> fitted = adap.fit(model, images, labels, adap.CE, epochs=2, batch_size=8)
    >>> len(fitted.history), fitted.select_by
    (2, 'clean_ap')
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module to train, got {type(model).__name__}")
    _refuse_untrainable(model)
    refuse_unless_whole("seed", seed, least=0)
    if on_epoch is not None and not callable(on_epoch):
        raise ConfigError(f"expected on_epoch= as a function, got {type(on_epoch).__name__}")
    share = validation if isinstance(validation, float) else 0.2
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())  # whatever surrounds a training, it needs them
        if clusters is not None and not isinstance(validation, float):
            raise ConfigError(
                "expected clusters= where a share of the images is held out (validation=0.2), got "
                "a validation part of your own: which clusters are in it is decided already"
            )
        found = stack.enter_context(
            examples_of(images, labels, positive=positive, clusters=clusters, layout=layout)
        )
        if isinstance(validation, float):
            train, held_out = _held_out(found, share, seed)
        else:
            if not isinstance(validation, tuple) or len(validation) != 2:
                raise ConfigError(
                    "expected validation as (images, labels), or the share to hold out, got "
                    f"{type(validation).__name__}"
                )
            train = found.part()
            held_out = stack.enter_context(
                examples_of(*validation, positive=positive, layout=layout)
            ).part()
        ranks = stack.enter_context(ranks_of(devices))
        objective = _objective(loss, len(train))
        settings = configured(
            TrainingConfig,
            {
                "method": objective.options,
                "epochs": epochs,
                "batch_size": batch_size,
                "positives_per_batch": positives_per_batch,
                "optimizer": optimizer or Optimizer(),
                "attack": attack or TrainingAttack(),
                "augment": augment or Augment(),
                "validation": {
                    "fraction": share,
                    "select_by": select_by,
                    "every": validate_every,
                    "patience": patience,
                },
                "ema": ema,
                "precision": precision,
                "folded_attack": folded_attack,
                "weight_perturbation": weight_perturbation,
                "seed": seed,
            },
        )
        made = stack.enter_context(
            ready(
                model,
                as_float(train.images[:TRIED]),
                outputs=outputs,
                positive=columns_of(positive),
                mean=mean,
                std=std,
                device=device,
            )
        )
        shown = progress if ranks.leads else False
        tell = stack.enter_context(counting(epochs, shown=shown, what="epochs"))
        _refuse_no_gradients(made, train)
        kept = None
        if folder is not None and ranks.leads:
            start = start_of(made.scorer, objective, train, held_out)
            few = as_float(train.images[:TRIED])
            kept = KeptTraining(made_folder(folder), made.scorer, objective, start, images=few)
        checkpoint = None if kept is None else kept.checkpoint(settings)

        def told(record: EpochRecord) -> None:
            tell(record.epoch)
            if on_epoch is not None:
                on_epoch(record)

        for held in (kept_modes(model), kept_modes(objective)):
            stack.enter_context(held)
        with nullcontext() if kept is None else kept.whole_epochs():
            result = loop.fit(
                made.scorer,
                objective,
                images=train.images,
                targets=torch.from_numpy(train.targets),
                validation=(
                    held_out.images,
                    torch.from_numpy(held_out.targets),
                ),
                config=settings,
                device=made.device,
                on_epoch=told,
                checkpoint=checkpoint,
                save=None if kept is None else kept.save,
                ranks=ranks,
            )
        decided = [*made.decided, *train.decided, *held_out.decided]
        warnings = list(dict.fromkeys([*decided, *(fact.message for fact in result.facts)]))
    return Fitted(
        result.best,
        result.history,
        result.select_by,
        result.stopped_early,
        objective,
        warnings=warnings,
    )


def batches(
    loss: Loss,
    targets: Any,
    *,
    batch_size: int = 128,
    positives_per_batch: int | None = None,
    seed: int = 0,
) -> Sampler:
    """The batches of `fit`: iterating gives one epoch of (B,) int64 places in the training set.

    targets: (N,) in {0, 1}.  Objectives with an AP surrogate get `positives_per_batch` positives in
    each batch, by default half; the others plain shuffles. `state_dict()` resumes it.
    Raises ConfigError or DataError for what leaves no such batch, and for other than as many
    targets as the loss has examples. Source: `adap.core.training.sampling`.

    >>> targets = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1])
    >>> [len(index) for index in adap.batches(adap.AP(examples=8), targets, batch_size=4)]
    [4, 4]
    """
    _refuse_no_loss(loss)
    settings = configured(
        TrainingConfig,
        {"batch_size": batch_size, "positives_per_batch": positives_per_batch, "seed": seed},
    )
    marks = targets_of(targets, loss.examples, both_sides=False)
    return loop.build_sampler(loss, torch.from_numpy(marks), settings)


def training_attack(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    targets: Tensor,
    index: Tensor,
    *,
    attack: config.TrainingAttack | None = None,
    generator: torch.Generator,
) -> Tensor:
    """(B, C, H, W) images on which `loss.inner_loss` is high: what the method trains on.

    x: (B, C, H, W) floats in [0, 1].  targets, index: (B,), as for the loss.  The model runs in
    eval mode with frozen weights and is left as it was. Estimators are read, not written.
    Raises ConfigError for a loss that trains on clean images, another kind of attack, or shapes
    that do not fit; DataError for pixels outside [0, 1].
    Source: Algorithms 1 to 5 of the paper.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
    >>> x, y, index = torch.rand(4, 3, 4, 4), torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.arange(4)
    >>> generator = adap.attack_generator(seed=0, epoch=1)
    >>> adap.training_attack(model, adap.PGDTraining(examples=4), x, y, index,
    ...                      generator=generator).shape
    torch.Size([4, 3, 4, 4])
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module to attack, got {type(model).__name__}")
    _refuse_no_loss(loss)
    if not loss.needs_adversarial:
        raise ConfigError(f"{type(loss).__name__} trains on clean images only: attack none")
    if attack is not None and not isinstance(attack, config.TrainingAttack):
        raise ConfigError(
            "expected attack as adap.TrainingAttack(epsilon=8/255, steps=6), the PGD of training, "
            f"got {attack!r:.80}"
        )
    refuse_no_generator(generator)
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        got = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"expected float images (B, C, H, W) as a tensor, got {got}")
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "expected a call outside of torch.inference_mode(), in which an attack has no gradient"
        )
    low, high = (float(value) for value in x.detach().aminmax())
    if not (low >= 0 and high <= 1):  # nor NaN
        raise DataError(
            f"expected pixels in [0, 1], where epsilon is meant, got {low:g} to {high:g}: "
            "normalisation belongs into the model, as its first layer"
        )
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weights is not None and weights.device != x.device:
        raise ConfigError(
            f"expected images on {weights.device}, where the model is, got them on {x.device}"
        )
    dtype = x.dtype if weights is None else weights.dtype
    return attacking.attack_batch(
        model,
        loss,
        x,
        targets,
        index,
        settings=attack or TrainingAttack(),
        generator=generator,
        forward=lambda x: model(x.to(dtype)),
    )


def attack_generator(
    *, seed: int, epoch: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """The random numbers of `fit`'s attack in one epoch, counted from 1.

    Raises ConfigError for a seed below 0, an epoch below 1, or a device that is not there.
    Source: `adap.core.training.seeds`.

    >>> adap.attack_generator(seed=0, epoch=1).device.type
    'cpu'
    """
    refuse_unless_whole("seed", seed, least=0)
    refuse_unless_whole("epoch", epoch, least=1)
    return seeds.attack_generator(device_of(device), seed, epoch)


def _refuse_untrainable(model: nn.Module) -> None:
    """Raise ModelError where no weights may change, or not in steps as small as an optimiser's."""
    trained = [value for value in model.parameters() if value.requires_grad]
    if not trained:
        raise ModelError(
            "expected weights to train, got none that requires gradients: "
            "model.requires_grad_(True), or of the layers that are to be trained"
        )
    half = {value.dtype for value in trained} & set(HALF)
    if half:
        raise ModelError(
            f"expected weights of float32 or float64 to train, got {half.pop()}, in which small "
            "steps are lost: model.float()"
        )


def _refuse_no_gradients(made: Ready, train: Part) -> None:
    """Raise ModelError for a network whose scores autograd cannot follow to its weights."""
    with in_eval_mode(made.scorer):
        scores = made.scorer(torch.from_numpy(as_float(train.images[:2])).to(made.device))
    if not scores.requires_grad:
        raise ModelError(
            "expected scores with gradients, got some that autograd cannot follow to the weights: "
            "no torch.no_grad, detach, rounding or NumPy inside the model"
        )


def _objective(loss: Loss | type[Loss] | str, examples: int) -> Loss:
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ConfigError(f"expected a loss among {', '.join(LOSSES)}, got {loss!r}")
        return LOSSES[loss](examples=examples)
    if isinstance(loss, type) and issubclass(loss, Loss):
        return loss(examples=examples)
    _refuse_no_loss(loss)
    if loss.examples != examples or loss.classes is not None:
        raise ConfigError(
            f"expected a loss of examples={examples}, as many as are trained on, and one logit, "
            f"got examples={loss.examples} and classes={loss.classes}: its class, "
            f"{type(loss).__name__}, is built to fit"
        )
    return loss


def _refuse_no_loss(loss: Any) -> None:
    if not isinstance(loss, Loss):
        raise ConfigError(
            "expected a loss such as adap.AdapLPN(examples=1000), got "
            f"{'the class ' + loss.__name__ if isinstance(loss, type) else type(loss).__name__}"
        )


def _held_out(examples: Examples, share: float, seed: int) -> tuple[Part, Part]:
    """What is trained on, and the share of each side that chooses the epoch."""
    if not 0 < share < 1:
        raise ConfigError(f"expected a share between 0 and 1 to hold out, got {share}")
    positives = int(examples.targets.sum())
    if min(positives, len(examples) - positives) < 2:
        raise DataError(
            "expected at least 2 positives and 2 negatives, to train on one and choose the epoch "
            f"by another, got {positives} and {len(examples) - positives}"
        )
    sides = np.stack([1 - examples.targets, examples.targets], axis=1)
    chosen = held_out_of(
        sides,
        names=["negatives", "positives"],
        fraction=share,
        seed=seed,
        clusters=examples.clusters,
    )
    parts = examples.part(np.flatnonzero(~chosen)), examples.part(np.flatnonzero(chosen))
    for part, what in zip(parts, ("training", "validation"), strict=True):
        kept = int(part.targets.sum())
        if not 0 < kept < len(part):
            raise DataError(
                f"expected positives and negatives in the {what} part, got {kept} positives among "
                f"{len(part)} images: whole clusters are held out, so give more of them, or a "
                "validation part of your own"
            )
    return parts
