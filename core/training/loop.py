"""Training a ranker: one loop for all methods, resumable after any epoch.

    fit(network, objective, images=..., targets=..., validation=..., config=..., device=..., ...)

A step draws a batch, augments it, attacks it where the objective wants attacked images, runs the
passes that the objective reads, and descends. The loop knows no method by name. Targets are (N,)
for one task, or (N, K) for a network with a logit for each of K classes, which is trained on, and
judged by, the mean AP of the classes, each against the rest.

All randomness comes from the run: the sampler's generator, whose state is part of the checkpoint,
and for each epoch a seed for its augmentation, its attack, and what the network draws itself from
torch's own generator (dropout), derived from the seed and the epoch. So a training that was killed
and resumed gives the same weights, bit for bit on a CPU with the same number of threads, as one
that ran through. Torch's own generators are left as they were found. A network that draws from
elsewhere (NumPy, `random`) is outside this promise. Several
processes may share a training (`ranks`): each then attacks and passes its share of every batch.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adap.core.attacks.geometry import normal
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD, START_SIZE
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.drawing import drawing
from adap.core.config import EPSILON_PAPER, VALIDATION_STEPS, Optimizer, TrainingConfig
from adap.core.errors import ConfigError, DataError, TrainingError
from adap.core.figures.ranking import average_precision
from adap.core.objectives.base import Objective
from adap.core.objectives.surrogates import negative_margin
from adap.core.training.attacking import attack_batch, of_images
from adap.core.training.augment import augment
from adap.core.training.averaging import WeightAverage
from adap.core.training.cautions import tied_epochs
from adap.core.training.perturbation import perturbed
from adap.core.training.precision import (
    Forward,
    float32_products,
    forward_in,
    refuse_unsupported,
)
from adap.core.training.ranks import ALONE, Ranks
from adap.core.training.resuming import load_tensors, refuse_other_config, refuse_other_tensors
from adap.core.training.sampling import ClassSampler, PlainSampler, PositiveSampler, Sampler
from adap.core.training.schedule import attack_in, learning_rate
from adap.core.training.synchronised import synchronised
from adap.reading import Fact

MAX_PAIRS = 2**28
"""Numbers in a batch's pairwise losses, over all classes: 1 GiB in float32, several times over."""

VALIDATION_STEP_SIZE = 0.007 / EPSILON_PAPER
"""Step size of the validation attack as a share of epsilon: the paper's 0.007 at 8/255."""

SelectBy = Literal["robust_ap", "clean_ap"]

# What a generator is for: part of its seed, so that no two of a run draw the same numbers.
_SAMPLING, _AUGMENTING, _ATTACKING, _VALIDATING = range(4)


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did. Average precisions are the validation set's, ties negatives first; of
    several classes their mean."""

    epoch: int
    """Counted from 1, so also the number of epochs done."""
    epochs: int
    lr: float
    loss: float
    """Mean over the steps; that of a method with an AP surrogate carries no meaning."""
    metrics: dict[str, float]
    """The objective's own, for example surrogate_ap."""
    clean_ap: float
    robust_ap: float | None
    """Under PGD-10; None where the epoch is not chosen by it, as it costs as much as training."""
    images_per_s: float
    """Images drawn for training, over the time of training alone."""
    eta_s: float | None = None
    """Seconds until the last epoch is done, at the pace of the epochs since the (re)start."""

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingResult:
    """How training went; the network itself holds the best epoch's weights."""

    best: EpochRecord
    history: list[EpochRecord]
    select_by: SelectBy
    stopped_early: bool = False
    """Some epochs were left out, as the figure had not risen for `validation.patience` of them."""

    @property
    def facts(self) -> list[Fact]:
        """What a reader of the figures must know of how the epoch was chosen."""
        best = getattr(self.best, self.select_by)
        tied = [r.epoch for r in self.history if getattr(r, self.select_by) == best]
        said = tied_epochs(tied, self.select_by)
        return [] if said is None else [said]

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def fit(
    network: nn.Module,
    objective: Objective,
    *,
    images: Tensor,
    targets: Tensor,
    validation: tuple[Tensor, Tensor],
    config: TrainingConfig,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None],
    checkpoint: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    ranks: Ranks = ALONE,
) -> TrainingResult:
    """Train `network` in place; afterwards it holds the weights of its best epoch, in eval mode.

    network: (B, C, H, W) floats in [0, 1] -> (B,) logits, normalisation inside; or (B, K), with an
    objective that was built for K classes.
    images: (N, C, H, W) uint8, or float32 in [0, 1].  targets: (N,) or (N, K) in {0, 1}.
    validation: more of both, held out.
    They stay where they are, and batches go to `device`: images that are there save the way.
    save: given a checkpoint after every epoch, to be written before it returns, since its tensors
    are the live ones. It holds tensors, numbers, text, lists and dicts only, so
    `torch.load(weights_only=True)` reads it.  checkpoint: such a one, to go on from.
    on_epoch: told of every epoch done, once its checkpoint is saved; what it raises ends training.
    ranks: the processes that share this training, each of which calls with the same. The first
    one's weights, estimators and checkpoint count; it alone saves and is told.

    The best epoch is that of highest validation AP, the first one among equals: by default
    robust AP where the objective trains on attacked images, otherwise clean AP. With `config.ema`
    it is the average of the weights that is validated and kept.

    Raises DataError for images or targets that cannot be trained on, ConfigError for a checkpoint
    of another configuration, more pairs of images than memory could hold, a precision that the
    device lacks or a batch that the ranks do not divide, TrainingError in an epoch whose loss,
    weights or validation logits are not finite; the checkpoint of the epoch before is then the
    last.
    """
    refuse_unsupported(config.precision, device)
    for name, (pixels, marks) in {"training": (images, targets), "validation": validation}.items():
        _refuse_unusable(name, pixels, marks)
    if validation[1].shape[1:] != targets.shape[1:]:
        raise DataError(
            f"expected validation targets of as many classes as the training targets "
            f"{tuple(targets.shape)}, got {tuple(validation[1].shape)}"
        )
    pairs = config.batch_size**2 * max(1, targets[0].numel())
    if objective.needs_positives and pairs > MAX_PAIRS:
        raise ConfigError(
            f"expected at most {MAX_PAIRS:,} pairs of images in a batch over all classes, got "
            f"{pairs:,}: a batch_size below {config.batch_size} helps"
        )
    select_by: SelectBy = config.validation.select_by or (
        "robust_ap" if objective.needs_adversarial else "clean_ap"
    )
    # channels_last: the same convolutions, 1.3 to 1.5 times as fast for the small CNN on a CPU.
    network.to(device).to(memory_format=torch.channels_last)
    objective.to(device)
    labels = targets.to(device, torch.float32)
    if ranks.count > 1:
        ranks.refuse_other(config, images, targets, *validation)
        ranks.agree_on(network, objective)
    checkpoint = ranks.told(checkpoint)
    state = _State(
        network=network,
        objective=objective,
        optimizer=_OPTIMIZERS[config.optimizer.name](network.parameters(), config.optimizer),
        sampler=build_sampler(objective, targets, config),
        config=config,
        average=None if config.ema is None else WeightAverage(network, decay=config.ema),
    )
    ranks.refuse_indivisible(state.sampler.batch_size)
    if checkpoint is not None:
        state.restore(checkpoint)

    done_before, begun = len(state.history), time.perf_counter()
    while not state.ended(config):
        epoch = len(state.history) + 1
        lr = learning_rate(config.optimizer, done=epoch - 1, epochs=config.epochs)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        draws = (config.seed, epoch) if ranks.leads else (config.seed, epoch, ranks.rank)
        with float32_products(config.precision), drawing(device, *draws):
            started = time.perf_counter()
            with synchronised(network, ranks):
                loss = _train_epoch(state, images, labels, epoch=epoch, config=config, ranks=ranks)
            seconds = time.perf_counter() - started
            judged = network if state.average is None else state.average.settle()
            aps = {
                select: _validation_ap(
                    judged,
                    *validation,
                    attacked=select == "robust_ap",
                    epoch=epoch,
                    config=config,
                    device=device,
                    ranks=ranks,
                )
                for select in dict.fromkeys(("clean_ap", select_by))
            }
        record = EpochRecord(
            epoch=epoch,
            epochs=config.epochs,
            lr=lr,
            loss=loss,
            metrics=objective.metrics(),
            clean_ap=aps["clean_ap"],
            robust_ap=aps.get("robust_ap"),
            images_per_s=len(state.sampler) * state.sampler.batch_size / seconds,
            eta_s=(time.perf_counter() - begun) / (epoch - done_before) * (config.epochs - epoch),
        )
        state.keep(record, figure=aps[select_by], weights=judged.state_dict())
        if ranks.leads:
            if save is not None:
                save(state.checkpoint())
            on_epoch(record)

    load_tensors(network, state.best_weights)
    network.eval()
    return TrainingResult(
        best=state.history[state.best_epoch - 1],
        history=state.history,
        select_by=select_by,
        stopped_early=len(state.history) < config.epochs,
    )


@dataclass
class _State:
    """All that training changes: what is not in here is a function of seed and epoch."""

    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    config: TrainingConfig
    average: WeightAverage | None
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_figure: float = -math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def anchor(self, x: Tensor) -> Tensor:
        """(B,) or (B, K) logits by the averaged weights, in eval mode and without gradients."""
        assert self.average is not None  # the configuration of such a method has one
        network = self.average.settle()
        forward = forward_in(self.config.precision, network, device=x.device)
        with attacking(network), torch.no_grad():
            return forward(x)

    def ended(self, config: TrainingConfig) -> bool:
        """All epochs are done, or none has been better for too long."""
        done, patience = len(self.history), config.validation.patience
        return done >= config.epochs or (
            patience is not None and done - self.best_epoch >= patience
        )

    def keep(self, record: EpochRecord, *, figure: float, weights: dict[str, Tensor]) -> None:
        """Note the epoch, and its weights if none was better."""
        self.history.append(record)
        if figure > self.best_figure:
            self.best_epoch, self.best_figure = record.epoch, figure
            self.best_weights = {name: tensor.clone() for name, tensor in weights.items()}

    def checkpoint(self) -> dict[str, Any]:
        return {
            "epoch": len(self.history),
            "config_sha256": self.config.sha256(),
            "config": self.config.as_json(),
            "network": dict(self.network.state_dict()),
            "objective": dict(self.objective.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "average": None if self.average is None else dict(self.average.network.state_dict()),
            "history": [record.as_json() for record in self.history],
            "best_epoch": self.best_epoch,
            "best_figure": self.best_figure,
            "best_weights": self.best_weights,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        refuse_other_config(checkpoint, self.config)
        refuse_other_tensors("network", checkpoint["network"], self.network)
        refuse_other_tensors("training set and method", checkpoint["objective"], self.objective)
        load_tensors(self.network, checkpoint["network"])
        load_tensors(self.objective, checkpoint["objective"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.sampler.load_state_dict(checkpoint["sampler"])
        if self.average is not None:
            load_tensors(self.average.network, checkpoint["average"])
        self.history = [
            EpochRecord(**{**record, "epochs": self.config.epochs})
            for record in checkpoint["history"]
        ]
        self.best_epoch = checkpoint["best_epoch"]
        self.best_figure = checkpoint["best_figure"]
        self.best_weights = checkpoint["best_weights"]


def _train_epoch(
    state: _State,
    images: Tensor,
    targets: Tensor,
    *,
    epoch: int,
    config: TrainingConfig,
    ranks: Ranks,
) -> float:
    """One epoch of optimisation; the mean loss. `targets` are floats on the network's device."""
    network, objective, device = state.network, state.objective, targets.device
    augment_generator = _generator(device, config.seed, _AUGMENTING, epoch)
    noise = attack_generator(device, config.seed, epoch)
    attack = attack_in(config.attack, epoch=epoch)
    moving = config.weight_perturbation
    if moving is not None and epoch <= moving.warmup_epochs:
        moving = None
    forward = forward_in(config.precision, network, device=device)
    network.train()
    objective.train()  # in eval mode its estimators would stay where they are
    total = torch.zeros((), device=device)
    before = (epoch - 1) * len(state.sampler)
    # All indices of the epoch in one transfer, so that no step waits for the host.
    batches = torch.stack(list(state.sampler))  # (steps, B)
    for step, (rows, index) in enumerate(
        zip(batches.to(images.device), batches.to(device), strict=True), start=1
    ):
        # Augmented whole and then shared, so that each image changes as on one device.
        x = augment(images[rows].to(device), config.augment, generator=augment_generator)
        x, y = _as_input(ranks.own(x)), targets[index]
        x_adv = (
            attack_batch(
                network,
                objective,
                x,
                y,
                index,
                settings=attack,
                generator=noise,
                forward=forward,
                ranks=ranks,
            )
            if objective.needs_adversarial
            else None
        )
        anchor = ranks.gathered(state.anchor(x)) if objective.needs_anchor else None
        loss_fn = partial(_loss, objective, forward, ranks, x, x_adv, y, index, anchor)
        with (
            nullcontext()
            if moving is None
            else perturbed(network, objective, loss_fn, size=moving.size, ranks=ranks)
        ):
            loss = loss_fn()
            state.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            ranks.add_up([w.grad for w in network.parameters() if w.grad is not None])
        state.optimizer.step()
        if state.average is not None:
            state.average.update(step=before + step)
        total += loss.detach()
        # A loss that is not finite makes the sum so for good: looking seldom misses none.
        if (step % 50 == 0 or step == len(batches)) and not total.isfinite():
            raise TrainingError(
                f"expected a finite loss, got {float(total)} in epoch {epoch} of {config.epochs}"
            )
    # A loss may be finite beside weights that are not, for example a variance that overflowed.
    if not torch.stack([value.isfinite().all() for value in network.state_dict().values()]).all():
        raise TrainingError(
            f"expected finite weights, got NaN or infinity after epoch {epoch} of {config.epochs}"
        )
    return float(total) / len(batches)


def _loss(
    objective: Objective,
    forward: Forward,
    ranks: Ranks,
    x: Tensor,
    x_adv: Tensor | None,
    targets: Tensor,
    index: Tensor,
    anchor: Tensor | None,
) -> Tensor:
    """() what a step descends, after the passes that the objective reads."""
    clean = ranks.gathered(forward(x)) if objective.needs_clean else None
    adv = ranks.gathered(forward(x_adv)) if x_adv is not None else None
    loss: Tensor = objective(clean, adv, targets, index, anchor)
    return loss


def _validation_ap(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    attacked: bool,
    epoch: int,
    config: TrainingConfig,
    device: torch.device,
    ranks: Ranks,
) -> float:
    """AP on clean images, or under PGD-10 within the training attack's ball; of K classes the mean.

    K classes are attacked at once, by the sum of their margins: one attack for each, as an audit
    runs them, would cost K times as much and find a mean AP that is lower still. The same random
    start at every epoch, so that epochs are compared on equal terms. The attack searches in the
    training's precision; the logits that are ranked are the network's own. Each rank scores some of
    the batches.
    """
    threat_model = ThreatModel(config.attack.norm, config.attack.epsilon)
    generator = _generator(device, config.seed, _VALIDATING)
    forward = forward_in(config.precision, network, device=device)
    like = torch.empty(0, device=device)
    logits = torch.zeros(targets.shape, dtype=torch.float64)
    with attacking(network), torch.no_grad():
        for number, start in enumerate(range(0, len(images), config.batch_size)):
            rows = slice(start, start + config.batch_size)
            noise = normal(images[rows].shape, like=like, generator=generator) if attacked else None
            if number % ranks.count != ranks.rank:
                continue
            x, y = _as_input(images[rows].to(device)), targets[rows].to(device, torch.float32)

            def margin_loss(x_adv: Tensor, y: Tensor = y) -> Tensor:
                return of_images(negative_margin(forward(x_adv), y))

            if noise is not None:
                pgd = PGD(
                    steps=VALIDATION_STEPS,
                    step_size=VALIDATION_STEP_SIZE * config.attack.epsilon,
                    iterate="last",
                    start=x + START_SIZE * noise,
                )
                x = pgd.perturb(margin_loss, x, threat_model=threat_model, generator=generator)
            logits[rows] = network(x)
    ranks.add_up([logits])  # of which each rank has some, and zeros
    if not logits.isfinite().all():
        raise TrainingError(
            "expected finite logits on the validation images, got NaN or infinity "
            f"after epoch {epoch} of {config.epochs}"
        )
    columns = zip(
        logits.reshape(len(logits), -1).T.numpy(),
        targets.reshape(len(targets), -1).T.cpu().numpy(),
        strict=True,
    )
    return float(np.mean([average_precision(*column) for column in columns]))


def _as_input(images: Tensor) -> Tensor:
    """uint8 to floats in [0, 1]; floats are in it already."""
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    return x.contiguous(memory_format=torch.channels_last)


_OPTIMIZERS: dict[str, Callable[[Any, Optimizer], torch.optim.Optimizer]] = {
    "adam": lambda weights, o: torch.optim.Adam(weights, o.lr, weight_decay=o.weight_decay),
    "adamw": lambda weights, o: torch.optim.AdamW(weights, o.lr, weight_decay=o.weight_decay),
    "nadam": lambda weights, o: torch.optim.NAdam(weights, o.lr, weight_decay=o.weight_decay),
    "radam": lambda weights, o: torch.optim.RAdam(weights, o.lr, weight_decay=o.weight_decay),
    "rmsprop": lambda weights, o: torch.optim.RMSprop(
        weights, o.lr, momentum=o.momentum, weight_decay=o.weight_decay
    ),
    "sgd": lambda weights, o: torch.optim.SGD(
        weights, o.lr, momentum=o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov
    ),
}


def build_sampler(objective: Objective, targets: Tensor, config: TrainingConfig) -> Sampler:
    generator = _generator(torch.device("cpu"), config.seed, _SAMPLING)
    if not objective.needs_positives:
        return PlainSampler(len(targets), batch_size=config.batch_size, generator=generator)
    one_task = targets.ndim == 1 or targets.shape[1] == 1
    sampler = PositiveSampler if one_task else ClassSampler
    return sampler(
        targets.flatten() if one_task else targets,
        batch_size=config.batch_size,
        positives_per_batch=config.positives_per_batch or config.batch_size // 2,
        generator=generator,
    )


def attack_generator(device: torch.device, seed: int, epoch: int) -> torch.Generator:
    """The random numbers of the attack on the images of one epoch, counted from 1."""
    return _generator(device, seed, _ATTACKING, epoch)


def _generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator of its own for each key, which starts with the seed of the run."""
    (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(seed))


def _refuse_unusable(name: str, images: Tensor, targets: Tensor) -> None:
    unit = images.dtype == torch.float32 and bool(((images >= 0) & (images <= 1)).all())
    if not (images.dtype == torch.uint8 or unit) or images.ndim != 4:
        raise DataError(
            f"expected {name} images (N, C, H, W) of uint8, or of float32 in [0, 1], "
            f"got {tuple(images.shape)} of {images.dtype}"
        )
    if targets.shape[:1] != images.shape[:1] or targets.ndim > 2:
        raise DataError(
            f"expected {len(images)} {name} targets, one an image (and class), "
            f"got {tuple(targets.shape)}"
        )
    other = int(((targets != 0) & (targets != 1)).sum())
    if other:
        raise DataError(f"expected {name} targets in {{0, 1}}, got {other} other values")
    for number, positives in enumerate((targets == 1).sum(dim=0).reshape(-1).tolist()):
        if positives in (0, len(images)):
            of_class = "" if targets.ndim == 1 else f" of class {number}"
            raise DataError(
                f"expected positives and negatives{of_class} among the {name} images, "
                f"got {positives} positives and {len(images) - positives} negatives"
            )
