"""Training a ranker: one loop for all methods, resumable after any epoch.

    fit(network, objective, images=..., targets=..., validation=..., config=..., device=..., ...)

A step (`step`) augments a batch, attacks it where the objective wants attacked images, runs the
passes that the objective reads, and descends; on a GPU it is captured and replayed (`capture`). The
loop knows no method by name. Targets are (N,)
for one task, or (N, K) for a network with a logit for each of K classes, which is trained on, and
judged by, the mean AP of the classes, each against the rest.

All randomness comes from the run: the sampler's generator, whose state is part of the checkpoint,
and for each epoch a seed for its augmentation, its attack, and what the network draws itself from
torch's own generator (dropout), derived from the seed and the epoch. So a training that was killed
and resumed gives the same weights, bit for bit on a CPU with the same number of threads, as one
that ran through. Torch's own generators are left as they were found. A network that draws from
elsewhere (NumPy, `random`) is outside this promise, and so is one that changes what no checkpoint
holds, such as a buffer that is not persistent. Several processes may share a training (`ranks`):
each then attacks and passes its share of every batch. One process may also run several trainings, a
step of each in turn (`together`).
"""

import math
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adap.core.audit.drawing import drawing
from adap.core.capture import Captured, Recorder, graphs_of
from adap.core.config.training import TrainingConfig
from adap.core.errors import ConfigError, DataError, TrainingError
from adap.core.objectives.base import Objective
from adap.core.precision import float32_products, refuse_unsupported
from adap.core.training.averaging import WeightAverage
from adap.core.training.cautions import not_captured, tied_epochs
from adap.core.training.examples import Images, home, refuse_unusable, resident, taken
from adap.core.training.optimizers import load_optimizer, optimizer_of
from adap.core.training.ranks import ALONE, Ranks
from adap.core.training.resuming import load_tensors, refuse_other_config, refuse_other_tensors
from adap.core.training.sampling import ClassSampler, PlainSampler, PositiveSampler, Sampler
from adap.core.training.schedule import learning_rate
from adap.core.training.seeds import Use, seed
from adap.core.training.step import Step
from adap.core.training.synchronised import synchronised
from adap.core.training.together import to_the_end
from adap.core.training.validating import Validator
from adap.loggers import scalars
from adap.reading import Fact

MAX_PAIRS = 2**28
"""Numbers in a batch's pairwise losses, over all classes: 1 GiB in float32, several times over."""

SelectBy = Literal["robust_ap", "clean_ap"]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did. Average precisions are the validation set's, ties negatives first; of
    several classes their mean. Epochs that are not validated (`validation.every`) have none."""

    epoch: int
    """Counted from 1, so also the number of epochs done."""
    epochs: int
    lr: float
    loss: float
    """Mean over the steps; that of a method with an AP surrogate carries no meaning."""
    metrics: dict[str, float]
    """The objective's own, for example surrogate_ap."""
    clean_ap: float | None
    robust_ap: float | None
    """Under PGD-10; None where the epoch is not chosen by it, as it costs as much as training."""
    images_per_s: float
    """Images drawn for training, over the time of training without that of validating. Of several
    trainings that take turns that time is of all of them."""
    eta_s: float | None = None
    """Seconds until the last epoch is done, at the pace of the epochs since the (re)start."""

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)

    def scalars(self) -> dict[str, float]:
        """What a logger of experiments draws by epoch: each figure that there is, by its name."""
        return scalars(self.as_json())


@dataclass(frozen=True)
class TrainingResult:
    """How training went; the network itself holds the best epoch's weights."""

    best: EpochRecord
    history: list[EpochRecord]
    select_by: SelectBy
    stopped_early: bool = False
    """Some epochs were left out, as the figure had not risen for `validation.patience` of them."""
    uncaptured: str | None = None
    """Why steps were not replayed as CUDA graphs, where they should have been."""

    @property
    def facts(self) -> list[Fact]:
        """What a reader must know of how the epoch was chosen and the steps were run."""
        best = getattr(self.best, self.select_by)
        tied = [r.epoch for r in self.history if getattr(r, self.select_by) == best]
        said = tied_epochs(tied, self.select_by), not_captured(self.uncaptured)
        return [fact for fact in said if fact is not None]

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def fitting(
    network: nn.Module,
    objective: Objective,
    *,
    images: Images,
    targets: Tensor,
    validation: tuple[Images, Tensor],
    config: TrainingConfig,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None],
    checkpoint: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    ranks: Ranks = ALONE,
    recorder: Recorder | None = None,
) -> Generator[None, None, TrainingResult]:
    """Train `network` in place; afterwards it holds the weights of its best epoch, in eval mode.

    `fit` does it at once and returns how it went. `fitting` takes the same and stops after every
    step, so that others have their turn, whose time is then in `images_per_s` and `eta_s` too.

    network: (B, C, H, W) floats in [0, 1] -> (B,) logits, normalisation inside; or (B, K), with an
    objective that was built for K classes.
    images: (N, C, H, W) uint8, or float32 in [0, 1].  targets: (N,) or (N, K) in {0, 1}.
    validation: more of both, held out.
    They go to a GPU where they take up less than half of its free memory; else they stay where they
    are, and batches go to `device`: those `Picked` from a mapped file need no memory.
    save: given a checkpoint after every epoch, to be written before it returns, since its tensors
    are the live ones. It holds tensors, numbers, text, lists and dicts only, so
    `torch.load(weights_only=True)` reads it.  checkpoint: such a one, to go on from.
    on_epoch: told of every epoch done, once its checkpoint is saved; what it raises ends training.
    ranks: the processes that share this training, each of which calls with the same. The first
    one's weights, estimators and checkpoint count; it alone saves and is told.
    recorder: what steps are captured by; by default CUDA graphs on a GPU, for a process alone, and
    nothing elsewhere.

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
        refuse_unusable(name, pixels, marks)
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
    images, held_out = resident([images, validation[0]], device)
    optimizer = optimizer_of(network.parameters(), config.optimizer, device=device)
    average = None if config.ema is None else WeightAverage(network, decay=config.ema)
    step = Step(network, objective, optimizer, average, config, device, ranks)
    if recorder is None and ranks.count == 1:
        recorder = graphs_of(device)
    validator = Validator(
        network if average is None else average.network,
        held_out,
        validation[1],
        config=config,
        device=device,
        ranks=ranks,
        recorder=recorder,
    )
    state = _State(
        network=network,
        objective=objective,
        optimizer=optimizer,
        sampler=build_sampler(objective, targets, config),
        config=config,
        average=average,
        step=step,
        stepping=Captured(step, recorder, step.generators),
    )
    ranks.refuse_indivisible(state.sampler.batch_size)
    if checkpoint is not None:
        state.restore(checkpoint)

    done_before, begun = len(state.history), time.perf_counter()
    while not state.ended(config):
        epoch = len(state.history) + 1
        lr = learning_rate(config.optimizer, done=epoch - 1, epochs=config.epochs)
        draws = (config.seed, epoch) if ranks.leads else (config.seed, epoch, ranks.rank)
        with float32_products(config.precision), drawing(device, *draws):
            started = time.perf_counter()
            with synchronised(network, ranks):
                loss = yield from _train_epoch(state, images, labels, epoch=epoch, lr=lr)
            seconds = time.perf_counter() - started
            judged = network if state.average is None else state.average.settle()
            aps: dict[SelectBy, float] = {}
            if epoch % config.validation.every == 0 or epoch == config.epochs:
                for figure in dict.fromkeys(("clean_ap", select_by)):
                    attacked = figure == "robust_ap"
                    aps[figure] = yield from validator.ap(attacked=attacked, epoch=epoch)
        record = EpochRecord(
            epoch=epoch,
            epochs=config.epochs,
            lr=lr,
            loss=loss,
            metrics=objective.metrics(),
            clean_ap=aps.get("clean_ap"),
            robust_ap=aps.get("robust_ap"),
            images_per_s=len(state.sampler) * state.sampler.batch_size / seconds,
            eta_s=(time.perf_counter() - begun) / (epoch - done_before) * (config.epochs - epoch),
        )
        state.keep(record, figure=aps.get(select_by), weights=judged.state_dict())
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
        uncaptured=state.stepping.refused or validator.refused,
    )


fit = to_the_end(fitting, name="fit")


@dataclass
class _State:
    """All that training changes: what is not in here is a function of seed and epoch."""

    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    config: TrainingConfig
    average: WeightAverage | None
    step: Step
    stepping: Captured[Tensor]
    """The same step, replayed where it can be."""
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_figure: float = -math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def ended(self, config: TrainingConfig) -> bool:
        """All epochs are done, or none has been better for too long, as the last one showed."""
        done, patience = len(self.history), config.validation.patience
        return done >= config.epochs or (
            patience is not None
            and done - self.best_epoch >= patience
            and self.history[-1].clean_ap is not None
        )

    def keep(
        self, record: EpochRecord, *, figure: float | None, weights: dict[str, Tensor]
    ) -> None:
        """Note the epoch, and its weights if it was judged and none was better."""
        self.history.append(record)
        if figure is not None and figure > self.best_figure:
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
        load_optimizer(self.optimizer, checkpoint["optimizer"])
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
    state: _State, images: Images, targets: Tensor, *, epoch: int, lr: float
) -> Generator[None, None, float]:
    """One epoch of optimisation; the mean loss. `targets` are floats on the network's device."""
    device = targets.device
    if state.step.begin(epoch, lr=lr):
        state.stepping.forget()
    state.network.train()
    state.objective.train()  # in eval mode its estimators would stay where they are
    total = torch.zeros((), device=device)
    before = (epoch - 1) * len(state.sampler)
    # All indices of the epoch in one transfer, so that no step waits for the host.
    batches = torch.stack(list(state.sampler))  # (steps, B)
    for number, (rows, index) in enumerate(
        zip(batches.to(home(images)), batches.to(device), strict=True), start=1
    ):
        total += state.stepping(taken(images, rows, device), targets[index], index)
        if state.average is not None:
            state.average.update(step=before + number)
        yield
        # A loss that is not finite makes the sum so for good: looking seldom misses none.
        if (number % 50 == 0 or number == len(batches)) and not total.isfinite():
            raise TrainingError(
                f"expected a finite loss, got {float(total)} in epoch {epoch} of "
                f"{state.config.epochs}"
            )
    # A loss may be finite beside weights that are not, for example a variance that overflowed.
    values = state.network.state_dict().values()
    if not torch.stack([value.isfinite().all() for value in values]).all():
        raise TrainingError(
            f"expected finite weights, got NaN or infinity after epoch {epoch} of "
            f"{state.config.epochs}"
        )
    return float(total) / len(batches)


def build_sampler(objective: Objective, targets: Tensor, config: TrainingConfig) -> Sampler:
    generator = seed(torch.Generator(), config.seed, Use.SAMPLING)
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
