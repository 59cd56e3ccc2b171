"""The judges: a training that ran through, a loop written out by hand, counting, closed forms.

Networks have a few hundred weights and images 4x4 pixels; whether trained rankers resist attacks
at all is asked on real digits.
"""

import io
import math
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import nn

from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.methods import AdapLPNMethod, CEMethod
from adap.core.config.training import (
    Augment,
    Optimizer,
    TrainingAttack,
    TrainingConfig,
    Validation,
    WeightPerturbation,
)
from adap.core.datasets import Picked
from adap.core.errors import ConfigError, DataError, TrainingError
from adap.core.figures.ranking import floor_ap
from adap.core.objectives.registry import OBJECTIVES, build_objective
from adap.core.objectives.surrogates import negative_margin
from adap.core.precision import forward_in
from adap.core.training.attacking import attack_batch
from adap.core.training.loop import EpochRecord, TrainingResult, fit
from adap.core.training.schedule import attack_in, learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


class SmallNet(nn.Module):
    """Has a BatchNorm, whose statistics must come back too, and notes every pass it makes."""

    def __init__(self, *, classes=None):
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.last = nn.Linear(16, classes or 1)
        self.passes = []

    def forward(self, x):
        assert x.dtype == torch.float32
        assert 0 <= x.min() <= x.max() <= 1
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        self.passes.append((self.training, frozen, torch.is_grad_enabled()))
        logits = self.last(self.norm(self.conv(x)).relu().flatten(1))
        return logits.squeeze(1) if self.classes is None else logits


def pictures(count, *, seed):
    """Noise in which the positives, a quarter, are brighter in one corner."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 200, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    targets = (torch.arange(count) % 4 == 0).long()
    images[targets == 1, :, :2, :2] += 40
    return images, targets


def labelled(count, *, seed):
    """The same pictures, brighter in a corner of their own for each of three classes, of which an
    image has any number."""
    images, _ = pictures(count, seed=seed)
    row = torch.arange(count)
    targets = torch.stack([row % 4 == 0, row % 4 == 1, row % 5 == 0], dim=1).long()
    for number, corner in enumerate([(0, 0), (0, 2), (2, 0)]):
        top, left = corner
        images[targets[:, number] == 1, :, top : top + 2, left : left + 2] += 40
    return images, targets


def config_for(method="adap_lpn", **changes):
    defaults = {
        "epochs": 4,
        "batch_size": 8,
        "optimizer": Optimizer(lr=0.01),
        "attack": TrainingAttack(steps=2, step_size=0.02, epsilon=0.05),
        "augment": Augment(crop_padding=1, flip=True),
        "seed": 3,
    }
    return TrainingConfig.model_validate({"method": method, **defaults, **changes})


def train(config, *, network=None, on_epoch=lambda record: None, **changes):
    arguments = {
        "images": pictures(30, seed=1)[0],
        "targets": pictures(30, seed=1)[1],
        "validation": pictures(20, seed=2),
        "device": CPU,
        **changes,
    }
    examples, *columns = arguments["targets"].shape
    classes = columns[0] if columns else None
    network = SmallNet(classes=classes) if network is None else network
    objective = build_objective(config.method, examples=examples, classes=classes)
    result = fit(network, objective, config=config, on_epoch=on_epoch, **arguments)
    return network, objective, result


def through_a_file(checkpoint):
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def without_speed(result):
    """All that a training says of itself, except for how fast it was."""
    value = result.as_json()
    for record in (value["best"], *value["history"]):
        assert record.pop("images_per_s") > 0
        assert record.pop("eta_s") >= 0
    return value


# --- resuming -------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for whatever ends the process after an epoch."""


RECIPE = {
    "ema": 0.9,
    "optimizer": Optimizer(name="sgd", lr=0.01, nesterov=True, schedule="cosine", warmup_epochs=1),
    "augment": Augment(flip=True, crop_shift=1, jitter=0.2, erase=0.5),
    "attack": TrainingAttack(
        steps=2, step_size=0.02, epsilon=0.05, positive_factor=2, positive_warmup_epochs=2
    ),
    "weight_perturbation": WeightPerturbation(size=0.01, warmup_epochs=1),
}
"""Every option that the paper does not have."""
SEVERAL = {
    "images": labelled(30, seed=1)[0],
    "targets": labelled(30, seed=1)[1],
    "validation": labelled(20, seed=2),
}
OPTIMIZERS = get_args(Optimizer.model_fields["name"].annotation)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes", "data"),
    [
        *((method, {}, {}) for method in OBJECTIVES),
        *(("adap_lpn", {"optimizer": Optimizer(name=name, lr=0.01)}, {}) for name in OPTIMIZERS),
        ("adap_lpn", {"ema": 0.9}, {}),
        ({"name": "adap_lpn", "anchor": "ema"}, RECIPE, {}),
        ("adap_lz", {"ema": 0.9}, SEVERAL),
        ("adap_mm", {}, SEVERAL),
        ("adap_ln", {"validation": Validation(patience=4)}, SEVERAL),
    ],
)
def test_a_training_killed_after_any_epoch_and_resumed_ends_in_the_same_bits(method, changes, data):
    config = config_for(method, **changes)
    checkpoints = []
    expected = train(
        config, save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)), **data
    )
    assert [checkpoint["epoch"] for checkpoint in checkpoints] == [1, 2, 3, 4]
    for checkpoint in checkpoints:
        resumed = train(config, checkpoint=checkpoint, **data)
        for actual, wanted in zip(resumed[:2], expected[:2], strict=True):
            actual, wanted = actual.state_dict(), wanted.state_dict()
            assert actual.keys() == wanted.keys()
            assert all(torch.equal(actual[key], wanted[key]) for key in wanted)
        assert without_speed(resumed[2]) == without_speed(expected[2])


@pytest.mark.slow
def test_a_training_may_be_killed_after_every_epoch():
    config = config_for()
    saved = [None]

    def killed_after_save(checkpoint):
        saved.append(through_a_file(checkpoint))
        raise KilledError

    for epoch in range(1, 5):
        with pytest.raises(KilledError):
            train(config, checkpoint=saved[-1], save=killed_after_save)
        assert saved[-1]["epoch"] == epoch
    network, _, result = train(config, checkpoint=saved[-1])
    expected, _, expected_result = train(config)
    assert without_speed(result) == without_speed(expected_result)
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_an_epoch_is_saved_before_it_is_announced():
    order = []
    train(
        config_for(epochs=2),
        save=lambda checkpoint: order.append(("saved", checkpoint["epoch"])),
        on_epoch=lambda record: order.append(("announced", record.epoch)),
    )
    assert order == [("saved", 1), ("announced", 1), ("saved", 2), ("announced", 2)]


def dropping():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.Flatten(0)
        )


def test_a_network_with_dropout_draws_from_the_run_and_is_resumed_in_the_same_bits():
    config = config_for(epochs=2)
    checkpoints = []
    torch.manual_seed(5)
    expected = train(
        config,
        network=dropping(),
        save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)),
    )
    torch.manual_seed(6)
    before = torch.get_rng_state()
    for checkpoint in (None, checkpoints[0]):
        found = train(config, network=dropping(), checkpoint=checkpoint)
        for name, value in expected[0].state_dict().items():
            assert torch.equal(found[0].state_dict()[name], value)
        assert without_speed(found[2]) == without_speed(expected[2])
    assert torch.equal(torch.get_rng_state(), before)
    other = train(config_for(epochs=2, seed=4), network=dropping())
    assert other[2].history[0].loss != expected[2].history[0].loss


class VersionedNet(SmallNet):
    """Refuses tensors of a version that it is not told, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        assert local_metadata.get("version") == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_a_network_that_asks_for_the_version_of_its_weights_is_trained_and_resumed():
    config = config_for(epochs=2, ema=0.9)
    checkpoints = []
    expected = train(
        config,
        network=VersionedNet(),
        save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)),
    )
    found = train(config, network=VersionedNet(), checkpoint=checkpoints[0])
    assert without_speed(found[2]) == without_speed(expected[2])


def test_a_checkpoint_of_another_configuration_is_refused_with_the_fields_that_differ():
    checkpoints = []
    train(config_for(epochs=1), save=lambda checkpoint: checkpoints.append(checkpoint))
    for changes, said in (
        ({"seed": 4}, "seed 4 instead of 3$"),
        ({"method": "ap"}, "method.name 'ap' instead of 'adap_lpn'"),
        ({"optimizer": Optimizer(lr=0.02)}, "optimizer.lr 0.02 instead of 0.01$"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(config_for(**{"epochs": 1, **changes}), checkpoint=checkpoints[0])


def test_more_epochs_go_on_where_the_learning_rates_so_far_are_the_same():
    def rates(epochs, *milestones):
        optimizer = Optimizer(lr=0.01, milestones=list(milestones))
        return config_for("ce", epochs=epochs, optimizer=optimizer)

    checkpoints = []
    train(rates(2), save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)))
    longer = train(rates(3), checkpoint=checkpoints[-1])
    through = train(rates(3))
    assert without_speed(longer[2]) == without_speed(through[2])
    assert torch.equal(longer[0].conv.weight, through[0].conv.weight)
    with pytest.raises(ConfigError, match="epochs 1 instead of 2: 2 are done"):
        train(rates(1), checkpoint=checkpoints[-1])
    train(rates(4, 0.75), save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)))
    with pytest.raises(ConfigError, match=r"number 4 has a learning rate of 0\.01, not 0\.001"):
        train(rates(8, 0.75), checkpoint=checkpoints[-1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": dropping()}, "the same network, with 1.weight"),
        (
            {"images": pictures(32, seed=1)[0], "targets": pictures(32, seed=1)[1]},
            r"training set and method, with ap.u_pos \(32,\), got one with \(30,\)",
        ),
    ],
)
def test_a_checkpoint_of_another_network_or_training_set_is_refused(changes, said):
    checkpoints = []
    config = config_for("ap", epochs=1)
    train(config, save=lambda checkpoint: checkpoints.append(checkpoint))
    with pytest.raises(ConfigError, match=said):
        train(config, checkpoint=checkpoints[0], **changes)


def test_an_option_counts_in_the_hash_where_it_is_used_and_only_there():
    plain = TrainingConfig(method="ce")
    said = {"ema": None, "validation": Validation(patience=None), "optimizer": Optimizer()}
    assert TrainingConfig(method="ce", **said).sha256() == plain.sha256()
    options = (
        {},
        {"ema": 0.9},
        {"validation": Validation(patience=3)},
        {"optimizer": Optimizer(name="sgd", nesterov=True)},
        {"optimizer": Optimizer(name="sgd")},
        {"optimizer": Optimizer(schedule="cosine")},
        {"optimizer": Optimizer(warmup_epochs=1)},
        {"augment": Augment(crop_shift=1)},
        {"augment": Augment(jitter=0.1)},
        {"augment": Augment(erase=0.1)},
        {"attack": TrainingAttack(positive_factor=2)},
        {"attack": TrainingAttack(positive_factor=2, positive_warmup_epochs=1)},
        {"weight_perturbation": WeightPerturbation()},
        {"weight_perturbation": WeightPerturbation(warmup_epochs=1)},
    )
    made = [TrainingConfig(method="ce", **option) for option in options]
    assert len({config.sha256() for config in made}) == len(options)
    for config in made:
        assert TrainingConfig.model_validate(config.as_json()) == config


@pytest.mark.parametrize("method", ["ce", "adap_lpn"])
def test_the_seed_decides_and_the_global_generator_is_left_alone(method):
    before = torch.get_rng_state()
    first, again, other = (train(config_for(method, seed=seed))[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv.weight, again.conv.weight)
    assert not torch.equal(first.conv.weight, other.conv.weight)


# --- what a step does -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_step_runs_the_passes_that_the_method_needs_and_no_other(method):
    config = config_for(method, epochs=1, validation=Validation(select_by="clean_ap"))
    network, objective, _ = train(config, network=SmallNet().eval())
    steps = math.ceil(30 / 8)
    training, validation = network.passes[:-3], network.passes[-3:]  # 20 images in batches of 8
    step = []
    if objective.needs_adversarial:
        step += [(False, True, False)] * objective.inner_needs_clean
        step += [(False, True, True)] * config.attack.steps
    step += [(True, False, True)] * (objective.needs_clean + objective.needs_adversarial)
    assert training == step * steps
    assert validation == [(False, True, False)] * 3


BY_HAND = {
    "adam": (Optimizer(lr=0.01), lambda w: torch.optim.Adam(w, 0.01, weight_decay=2e-4)),
    "adamw": (
        Optimizer(name="adamw", lr=0.01, weight_decay=0.1),
        lambda w: torch.optim.AdamW(w, 0.01, weight_decay=0.1),
    ),
    "nadam": (
        Optimizer(name="nadam", lr=0.01),
        lambda w: torch.optim.NAdam(w, 0.01, weight_decay=2e-4),
    ),
    "radam": (
        Optimizer(name="radam", lr=0.01),
        lambda w: torch.optim.RAdam(w, 0.01, weight_decay=2e-4),
    ),
    "rmsprop": (
        Optimizer(name="rmsprop", lr=0.01, momentum=0.5),
        lambda w: torch.optim.RMSprop(w, 0.01, momentum=0.5, weight_decay=2e-4),
    ),
    "sgd": (
        Optimizer(name="sgd", lr=0.01),
        lambda w: torch.optim.SGD(w, 0.01, momentum=0.9, weight_decay=2e-4),
    ),
    "nesterov": (
        Optimizer(name="sgd", lr=0.01, momentum=0.8, nesterov=True),
        lambda w: torch.optim.SGD(w, 0.01, momentum=0.8, nesterov=True, weight_decay=2e-4),
    ),
}


def test_every_optimiser_is_checked_by_hand():
    assert set(BY_HAND) == {*OPTIMIZERS, "nesterov"}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_loop_does_what_a_loop_written_out_by_hand_does(name):
    # CE on one batch that is the whole set: no order, no attack and no augmentation to differ in.
    images, targets = pictures(30, seed=1)
    settings, build = BY_HAND[name]
    config = config_for("ce", batch_size=64, augment=Augment(), optimizer=settings)
    checkpoints = []
    train(config, save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)))

    network = SmallNet()
    optimizer = build(network.parameters())
    for epoch in range(4):
        for group in optimizer.param_groups:
            group["lr"] = [0.01, 0.01, 0.001, 0.0001][epoch]
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy(network(images / 255).sigmoid(), targets.float())
        loss.backward()
        optimizer.step()
        assert checkpoints[-1]["history"][epoch]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, weights in network.state_dict().items():
        # A bias before BatchNorm has no gradient but rounding, which adaptive steps blow up.
        if name not in ("conv.bias", "norm.running_mean"):
            torch.testing.assert_close(
                checkpoints[-1]["network"][name], weights, rtol=1e-4, atol=1e-5
            )


def test_the_average_of_the_weights_is_what_is_validated_and_kept():
    states, expected = [], None
    config = config_for("ce", epochs=5, ema=0.6, optimizer=Optimizer(lr=0.05))

    class Watching(SmallNet):
        """Notes its weights as every step finds them, and those in which each epoch left it."""

        def forward(self, x):
            if self.training:
                states.append({k: v.clone() for k, v in self.state_dict().items()})
            return super().forward(x)

    checkpoints = []
    network, _, result = train(
        config,
        network=Watching(),
        save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)),
    )
    # what a step found is what the step before it left, apart from BatchNorm's statistics, which
    # the pass itself moves: so the average of the weights proper is written out here
    names = [name for name, _ in network.named_parameters()]
    expected = {name: states[0][name] for name in names}
    left_by_step = [*states[1:], checkpoints[-1]["network"]]
    best = []
    for step, weights in enumerate(left_by_step, start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {n: decay * expected[n] + (1 - decay) * weights[n] for n in names}
        if step % 4 == 0:
            kept = checkpoints[step // 4 - 1]["average"]
            for name in names:
                torch.testing.assert_close(kept[name], expected[name])
            best.append(kept)
    for name, value in network.state_dict().items():
        assert torch.equal(value, best[result.best.epoch - 1][name])
    assert not torch.equal(network.conv.weight, checkpoints[-1]["network"]["conv.weight"])
    live = checkpoints[-1]["network"]
    assert kept["norm.num_batches_tracked"] == live["norm.num_batches_tracked"] == 20
    assert not torch.equal(kept["norm.running_mean"], live["norm.running_mean"])
    images, targets = pictures(20, seed=2)
    with torch.no_grad():
        judged = average_precision_score(targets, network(images / 255))
    assert result.best.clean_ap == pytest.approx(judged)


def test_the_training_attack_moves_images_within_the_ball_and_raises_their_loss():
    class Watching(nn.Module):
        """A linear network, so that the worst image is known: x - epsilon * (2y - 1) * sign(w)."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 16))
            self.seen = []

        def forward(self, x):
            if self.training:
                self.seen.append(x.detach().clone())
            return x.flatten(1) @ self.weight

    images, targets = pictures(8, seed=1)
    images = images.clamp(50, 200)  # away from 0 and 1, where the ball would be cut off
    network = Watching()
    attack = TrainingAttack(steps=5, step_size=0.02, epsilon=0.05)
    config = config_for("mart", epochs=1, batch_size=8, attack=attack, augment=Augment())
    train(config, network=network, images=images, targets=targets)
    clean, adv = network.seen  # one step: the clean pass, then the attacked one
    order = [(clean == image).flatten(1).all(dim=1).nonzero().item() for image in images / 255]
    signs = (2 * targets - 1).view(-1, 1, 1, 1) * torch.linspace(-1, 1, 16).sign().view(1, 1, 4, 4)
    torch.testing.assert_close(adv[order], images / 255 - 0.05 * signs)


def test_every_epoch_augments_anew():
    class Watching(SmallNet):
        def forward(self, x):
            if self.training:
                self.seen.append(x.clone())
            return super().forward(x)

    network = Watching()
    network.seen = []
    images, _ = pictures(30, seed=1)
    alike = images[:1].expand_as(images)  # so that the order of the images does not show
    train(config_for("ce", epochs=2, batch_size=30), network=network, images=alike)
    first, second = network.seen
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("milestones", "epochs", "expected"),
    [
        ([0.5, 0.75], 4, [1, 1, 0.1, 0.01]),
        ([0.5, 0.75], 60, [1] * 30 + [0.1] * 15 + [0.01] * 15),
        ([0.5, 0.75], 1, [1]),
        ([0.7], 30, [1] * 21 + [0.1] * 9),  # 0.7 * 30 is above 21 in floating point
        ([], 3, [1, 1, 1]),
    ],
)
def test_the_learning_rate_falls_at_its_milestones(milestones, epochs, expected):
    optimizer = Optimizer(lr=1.0, milestones=list(milestones))
    rates = [learning_rate(optimizer, done=done, epochs=epochs) for done in range(epochs)]
    assert rates == pytest.approx(expected)


def test_the_learning_rate_rises_in_a_warm_up_and_falls_along_a_cosine():
    def rates(epochs, **fields):
        optimizer = Optimizer(lr=1.0, **fields)
        return [learning_rate(optimizer, done=done, epochs=epochs) for done in range(epochs)]

    half = [(1 + math.cos(math.pi * done / 8)) / 2 for done in range(8)]
    assert rates(8, schedule="cosine") == pytest.approx(half)
    assert rates(4, warmup_epochs=2, milestones=[]) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    both = rates(10, schedule="cosine", warmup_epochs=2)
    assert both == pytest.approx([1 / 3, 2 / 3, *half])
    assert rates(4, warmup_epochs=1) == pytest.approx([0.5, 1, 0.1, 0.01])


# --- options that the paper does not have ---------------------------------------------------------


def test_weight_perturbation_descends_from_where_the_loss_is_higher_and_steps_from_where_it_was():
    # CE on one batch that is the whole set, written out by hand
    images, targets = pictures(30, seed=1)
    config = config_for(
        "ce",
        batch_size=64,
        epochs=3,
        augment=Augment(),
        optimizer=Optimizer(name="sgd", lr=0.1, momentum=0, weight_decay=0, milestones=[]),
        weight_perturbation=WeightPerturbation(size=0.1, warmup_epochs=1),
    )
    checkpoints = []
    train(config, save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)))

    def loss_of(network):
        logits = network(images / 255)
        return nn.functional.binary_cross_entropy_with_logits(logits, targets.float())

    network = SmallNet()
    for epoch in range(3):
        moved = SmallNet()
        moved.load_state_dict(network.state_dict())
        if epoch >= 1:
            network.zero_grad()
            loss_of(network).backward()
            gradients = {name: w.grad.clone() for name, w in network.named_parameters()}
            network.load_state_dict(moved.state_dict())  # whose statistics that pass has moved
            with torch.no_grad():
                for name in ("conv.weight", "last.weight"):
                    weight, gradient = moved.get_parameter(name), gradients[name]
                    weight += 0.1 * weight.norm() * gradient / gradient.norm()
        loss = loss_of(moved)
        loss.backward()
        with torch.no_grad():
            for weight, other in zip(network.parameters(), moved.parameters(), strict=True):
                weight -= 0.1 * other.grad
            for buffer, other in zip(network.buffers(), moved.buffers(), strict=True):
                buffer.copy_(other)
        assert checkpoints[epoch]["history"][-1]["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert checkpoints[epoch]["network"]["norm.num_batches_tracked"] == epoch + 1
        for name, value in network.state_dict().items():
            torch.testing.assert_close(
                checkpoints[epoch]["network"][name], value, rtol=1e-4, atol=1e-6
            )


def test_weight_perturbation_reads_the_estimators_and_writes_none():
    config = config_for("adap_lpn", epochs=1, batch_size=30, attack=TrainingAttack(steps=1))
    moved = config.model_copy(update={"weight_perturbation": WeightPerturbation(size=1e-9)})
    plain, other = (train(c)[1].state_dict() for c in (config, moved))
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_positives_are_attacked_so_much_further_than_negatives():
    images, targets = pictures(8, seed=1)
    x = images.clamp(80, 170) / 255  # away from 0 and 1, where the ball would be cut off
    weights = torch.linspace(-1, 1, 16)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1, bias=False), nn.Flatten(0))
    network[1].weight.data = weights[None].clone()
    moved = {}
    for norm in ("linf", "l2"):
        x_adv = attack_batch(
            network,
            build_objective(config_for("pgd").method, examples=8),
            x,
            targets.float(),
            torch.arange(8),
            settings=TrainingAttack(
                norm=norm, steps=6, step_size=0.02, epsilon=0.05, positive_factor=3
            ),
            generator=torch.Generator().manual_seed(0),
        )
        moved[norm] = x_adv - x
    # of a linear network the worst image is known: each pixel by epsilon against the margin
    signs = (1 - 2 * targets).view(-1, 1, 1, 1) * weights.sign().view(1, 1, 4, 4)
    far = torch.where(targets == 1, 0.15, 0.05).view(-1, 1, 1, 1)
    torch.testing.assert_close(moved["linf"], far * signs)
    lengths = moved["l2"].flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, far.flatten(), rtol=1e-3, atol=0)


def test_the_factor_of_positives_rises_over_its_warm_up():
    attack = TrainingAttack(positive_factor=3, positive_warmup_epochs=3)
    factors = [attack_in(attack, epoch=epoch).positive_factor for epoch in range(1, 6)]
    assert factors == pytest.approx([1.5, 2, 2.5, 3, 3])
    assert attack_in(TrainingAttack(), epoch=1) == TrainingAttack()


def test_a_factor_of_positives_of_several_classes_is_refused():
    config = config_for("pgd", attack=TrainingAttack(positive_factor=2))
    with pytest.raises(ConfigError, match="expected positive_factor 1 for several classes"):
        train(config, **SEVERAL)


@pytest.mark.parametrize("method", ["adap_ln", "adap_lpn"])
def test_the_anchor_of_the_listwise_term_is_the_ranking_of_the_averaged_weights(method):
    images, targets = pictures(30, seed=1)
    config = config_for(
        {"name": method, "anchor": "ema"},
        batch_size=30,
        ema=0.5,
        optimizer=Optimizer(lr=0.05),
        augment=Augment(),
    )
    anchors, checkpoints = [], []
    objective = build_objective(config.method, examples=30)
    asked = objective.register_forward_pre_hook(
        lambda _, inputs: anchors.append((inputs[3], inputs[4]))
    )
    fit(
        SmallNet(),
        objective,
        images=images,
        targets=targets,
        validation=pictures(20, seed=2),
        config=config,
        device=CPU,
        on_epoch=lambda record: None,
        save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)),
    )
    asked.remove()
    assert len(anchors) == 4  # a step an epoch: its average is that of the epoch before
    for (index, anchor), before in zip(anchors[1:], checkpoints, strict=False):
        network = SmallNet()
        network.load_state_dict(before["average"])
        with torch.no_grad():
            expected = network.eval()(images[index] / 255)
        torch.testing.assert_close(anchor, expected)
        assert not anchor.requires_grad


def test_an_anchor_needs_an_average():
    with pytest.raises(ValueError, match=r"expected ema, for example 0\.999"):
        TrainingConfig.model_validate({"method": {"name": "adap_ln", "anchor": "ema"}})


def test_every_epoch_is_recorded_with_its_learning_rate():
    _, _, result = train(config_for(optimizer=Optimizer(lr=0.01)))
    assert [record.epoch for record in result.history] == [1, 2, 3, 4]
    assert [record.lr for record in result.history] == pytest.approx([0.01, 0.01, 1e-3, 1e-4])
    for record in result.history:
        assert record.epochs == 4
        assert (record.eta_s == 0) == (record.epoch == 4)
        assert record.images_per_s > 0
        assert 0 < record.metrics["surrogate_ap"] < 1
        assert floor_ap(5, 20) <= record.robust_ap <= 1


# --- choosing the epoch ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "select_by", "expected"),
    [
        ("ce", None, "clean_ap"),
        ("ap", None, "clean_ap"),
        ("pgd", None, "robust_ap"),
        ("adap_mm", None, "robust_ap"),
        ("adap_lpn", "clean_ap", "clean_ap"),
        ("ce", "robust_ap", "robust_ap"),
    ],
)
def test_the_best_epoch_is_kept_by_the_figure_asked_for(method, select_by, expected):
    config = config_for(method, epochs=6, validation=Validation(select_by=select_by))
    weights = []
    network, _, result = train(
        config,
        save=lambda checkpoint: weights.append(through_a_file(checkpoint)["network"]),
    )
    assert result.select_by == expected
    figures = [getattr(record, expected) for record in result.history]
    assert result.best.epoch == 1 + int(np.argmax(figures))
    assert all((record.robust_ap is None) == (expected == "clean_ap") for record in result.history)
    best = weights[result.best.epoch - 1]
    assert all(torch.equal(best[name], value) for name, value in network.state_dict().items())
    assert not network.training


def test_training_stops_when_the_figure_has_not_risen_for_so_long():
    # A learning rate of almost nothing: the first epoch's AP is never exceeded.
    config = config_for(
        "ce",
        epochs=50,
        optimizer=Optimizer(lr=1e-9, name="sgd", momentum=0.0),
        validation=Validation(patience=3),
    )
    seldom = config.model_copy(update={"validation": Validation(patience=3, every=2)})

    class Still(SmallNet):
        """Without a BatchNorm, whose statistics would move."""

        def __init__(self):
            super().__init__()
            self.norm = nn.Identity()

    checkpoints = []
    _, _, result = train(config, network=Still(), save=lambda c: checkpoints.append(c["epoch"]))
    assert checkpoints == [1, 2, 3, 4]
    assert (result.best.epoch, result.stopped_early) == (1, True)
    result = train(seldom, network=Still())[2]
    assert (result.best.epoch, len(result.history)) == (2, 6)  # of 2, 4 and 6, the validated ones
    _, _, whole = train(config_for("ce"))
    assert not whole.stopped_early


@pytest.mark.slow
def test_only_every_so_many_epochs_and_the_last_are_validated_and_can_be_kept():
    always = train(config_for(epochs=5))[2]
    result = train(config_for(epochs=5, validation=Validation(every=2)))[2]
    assert [record.robust_ap is not None for record in result.history] == [False, True] * 2 + [True]
    for record, known in zip(result.history, always.history, strict=True):
        assert record.loss == known.loss
        if record.epoch in (2, 4, 5):
            assert (record.clean_ap, record.robust_ap) == (known.clean_ap, known.robust_ap)
        else:
            assert (record.clean_ap, record.robust_ap) == (None, None)
    best = max((always.history[i - 1].robust_ap, -i) for i in (2, 4, 5))
    assert (result.best.robust_ap, -result.best.epoch) == best


@pytest.mark.slow
def test_a_training_that_had_stopped_early_stays_so_when_resumed():
    config = config_for(epochs=40, validation=Validation(patience=2))
    checkpoints = []
    expected = train(config, save=lambda checkpoint: checkpoints.append(through_a_file(checkpoint)))
    assert expected[2].stopped_early, "choose another seed"
    done = len(expected[2].history)
    assert done == expected[2].best.epoch + 2
    for checkpoint in (checkpoints[0], checkpoints[-2], checkpoints[-1]):
        resumed = train(config, checkpoint=checkpoint)
        assert without_speed(resumed[2]) == without_speed(expected[2])


def test_validation_figures_are_those_of_an_attack_run_from_outside():
    network, _, result = train(config_for())
    images, targets = pictures(20, seed=2)
    with torch.no_grad():
        clean = network(images / 255)
    assert result.best.clean_ap == pytest.approx(average_precision_score(targets, clean))
    # A start so close to the image (0.001 of noise) hardly matters on so smooth a network.
    attack = PGD(steps=10, step_size=0.007 / (8 / 255) * 0.05, iterate="last", start="normal")
    adv = attack.perturb(
        lambda x: negative_margin(network(x), targets),
        images / 255,
        threat_model=ThreatModel("linf", 0.05),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        expected = average_precision_score(targets, network(adv))
    assert result.best.robust_ap == pytest.approx(expected, abs=0.02)
    assert expected < result.best.clean_ap


# --- a task a class -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OBJECTIVES)
def test_one_column_of_targets_trains_as_one_task_does(method):
    images, targets = pictures(30, seed=1)
    held_out, wanted = pictures(20, seed=2)
    columns = {
        "images": images,
        "targets": targets[:, None],
        "validation": (held_out, wanted[:, None]),
    }
    config = config_for(method, epochs=2)
    (network, _, result), (expected, _, binary) = train(config, **columns), train(config)
    for name, value in expected.state_dict().items():
        # float32 in another order of summation, through eight steps
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert result.best.clean_ap == pytest.approx(binary.best.clean_ap, abs=0.02)


def test_many_classes_are_judged_by_the_mean_of_their_aps():
    network, objective, result = train(config_for("adap_ln"), **SEVERAL)
    images, targets = SEVERAL["validation"]
    with torch.no_grad():
        clean = network(images / 255)
    assert result.best.clean_ap == pytest.approx(
        np.mean([average_precision_score(targets[:, k], clean[:, k]) for k in range(3)])
    )
    attack = PGD(steps=10, step_size=0.007 / (8 / 255) * 0.05, iterate="last", start="normal")
    adv = attack.perturb(
        lambda x: negative_margin(network(x), targets).sum(dim=1),
        images / 255,
        threat_model=ThreatModel("linf", 0.05),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        scores = network(adv)
    judged = np.mean([average_precision_score(targets[:, k], scores[:, k]) for k in range(3)])
    assert result.best.robust_ap == pytest.approx(judged, abs=0.02)
    assert judged < result.best.clean_ap
    # 4 epochs of 4 batches with 4 places for positives of 3 classes reach every one of them
    assert torch.equal(objective.ap.u_all > 0, SEVERAL["targets"] == 1)


def test_the_training_attack_on_many_classes_hurts_them_all_together():
    class Watching(nn.Module):
        """Linear, so that the worst image for the sum of the margins is known."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 48).view(3, 16).sin())
            self.seen = []

        def forward(self, x):
            if self.training:
                self.seen.append(x.detach().clone())
            return x.flatten(1) @ self.weight.T

    images, targets = labelled(10, seed=1)
    images = images.clamp(50, 200)
    network = Watching()
    config = config_for(
        "mart",
        epochs=1,
        batch_size=10,
        attack=TrainingAttack(steps=5, step_size=0.02, epsilon=0.05),
        augment=Augment(),
    )
    before = network.weight.detach().clone()
    train(config, network=network, **{**SEVERAL, "images": images, "targets": targets})
    clean, adv = network.seen
    order = [(clean == image).flatten(1).all(dim=1).nonzero().item() for image in images / 255]
    slope = (2 * targets - 1).float() @ before
    worst = images / 255 - 0.05 * slope.sign().view(-1, 1, 4, 4)
    torch.testing.assert_close(adv[order], worst)


# --- what goes wrong ------------------------------------------------------------------------------


class Breaking(SmallNet):
    """Gives NaN from some pass in training mode on, or in eval mode only."""

    def __init__(self, *, after, training):
        super().__init__()
        self.remaining, self.breaks_in_training = after, training

    def forward(self, x):
        logits = super().forward(x)
        if self.training == self.breaks_in_training:
            self.remaining -= 1
            if self.remaining < 0:
                return logits * torch.nan
        return logits


@pytest.mark.parametrize(
    ("after", "training", "message"),
    [
        # four steps an epoch; the third epoch breaks
        (9, True, "expected a finite loss, got nan in epoch 3 of 4"),
        # three validation batches an epoch; the second epoch's validation breaks
        (4, False, "on the validation images, got NaN or infinity after epoch 2 of 4"),
    ],
)
def test_a_value_that_is_not_finite_ends_training_and_leaves_the_last_good_checkpoint(
    after, training, message
):
    epochs = []
    with pytest.raises(TrainingError, match=message):
        train(
            config_for("ce"),
            network=Breaking(after=after, training=training),
            save=lambda checkpoint: epochs.append(through_a_file(checkpoint)),
        )
    assert [checkpoint["epoch"] for checkpoint in epochs] == list(range(1, len(epochs) + 1))
    assert f"epoch {len(epochs) + 1} of" in message
    assert all(value.isfinite().all() for value in epochs[-1]["network"].values())


def test_weights_that_overflow_behind_a_finite_loss_end_training():
    class Hiding(SmallNet):
        """Its BatchNorm's variance overflows in the second epoch, which no logit shows."""

        def forward(self, x):
            if self.training and self.norm.num_batches_tracked == 6:
                self.norm.running_var.fill_(torch.inf)
            return super().forward(x)

    saved = []
    with pytest.raises(TrainingError, match=r"finite weights, .* after epoch 2 of 4"):
        train(config_for("ce"), network=Hiding(), save=lambda c: saved.append(c["epoch"]))
    assert saved == [1]


def test_what_a_listener_raises_ends_training_with_the_epoch_saved():
    epochs = []

    def stop(record: EpochRecord):
        if record.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train(
            config_for(), on_epoch=stop, save=lambda checkpoint: epochs.append(checkpoint["epoch"])
        )
    assert epochs == [1, 2]


IMAGES, TARGETS = pictures(8, seed=0)


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (
            IMAGES.float(),
            TARGETS,
            r"of uint8, or of float32 in .0, 1., got \(8, 1, 4, 4\) of torch.float32",
        ),
        (
            IMAGES[:, 0],
            TARGETS,
            r"\(N, C, H, W\) of uint8, or of float32 in .0, 1., got \(8, 4, 4\)",
        ),
        (IMAGES, TARGETS[:7], r"expected 8 \w+ targets, one an image \(and class\), got \(7,\)"),
        (IMAGES, TARGETS * 0, "got 0 positives and 8 negatives"),
        (IMAGES, TARGETS * 0 + 1, "got 8 positives and 0 negatives"),
        (IMAGES, TARGETS * 2, r"targets in \{0, 1\}, got 2 other values"),
        (IMAGES, TARGETS[:, None, None], r"one an image \(and class\), got \(8, 1, 1\)"),
        (
            IMAGES,
            torch.stack([TARGETS, TARGETS * 0], dim=1),
            "of class 1 among the .* got 0 positives and 8 negatives",
        ),
    ],
)
@pytest.mark.parametrize("part", ["training", "validation"])
def test_data_that_cannot_be_trained_on_is_refused_before_any_step(part, images, targets, message):
    network = SmallNet()
    changes = (
        {"images": images, "targets": targets}
        if part == "training"
        else {"validation": (images, targets)}
    )
    with pytest.raises(DataError, match=message):
        train(config_for(), network=network, **changes)
    assert network.passes == []


def test_more_pairs_than_memory_could_hold_are_refused_before_any_step():
    targets = torch.eye(20).repeat(2, 1).long()
    data = {"images": IMAGES[:1].expand(40, -1, -1, -1), "targets": targets}
    network = SmallNet(classes=20)
    with pytest.raises(ConfigError, match="got 335,544,320: a batch_size below 4096 helps"):
        train(
            config_for("ap", batch_size=4096),
            network=network,
            validation=(data["images"], targets),
            **data,
        )
    assert network.passes == []


def test_targets_of_other_classes_for_validation_are_refused():
    with pytest.raises(DataError, match=r"as the training targets \(30, 3\), got \(20,\)"):
        train(config_for(), **{**SEVERAL, "validation": pictures(20, seed=2)})


def test_one_positive_is_enough_to_train_on():
    images, targets = pictures(20, seed=1)
    targets = (torch.arange(20) == 7).long()
    _, _, result = train(config_for(), images=images, targets=targets)
    assert len(result.history) == 4
    images, targets = labelled(20, seed=1)
    targets[:, 1] = (torch.arange(20) == 7).long()
    data = {**SEVERAL, "images": images, "targets": targets}
    _, objective, result = train(config_for(), **data)
    assert len(result.history) == 4
    assert objective.ap.u_all[7, 1] > 0


# --- does it work? --------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_real_digits_a_defended_ranker_keeps_the_ap_that_an_undefended_one_loses():
    digits = load_digits()
    images = torch.from_numpy((digits.images / 16 * 255).astype(np.uint8))[:, None]
    targets = torch.from_numpy((digits.target == 8).astype(np.int64))
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    rows, held_out = order[:900], order[900:1400]

    def robust_ap(method):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(512, 1),
                nn.Flatten(0),
            )
        config = TrainingConfig(
            method=method,
            epochs=6,
            batch_size=64,
            optimizer=Optimizer(lr=0.01),
            attack=TrainingAttack(steps=3, step_size=0.05, epsilon=0.1),
            validation=Validation(select_by="robust_ap"),
        )
        _, _, result = train(
            config,
            network=network,
            images=images[rows],
            targets=targets[rows],
            validation=(images[held_out], targets[held_out]),
        )
        return result.history[-1].robust_ap

    undefended, defended = robust_ap(CEMethod()), robust_ap(AdapLPNMethod(gamma1=0.9, gamma2=0.9))
    # Over three seeds, network and split included: 0.11 to 0.20, and 0.45 to 0.79.
    assert undefended < 0.3
    assert defended > undefended + 0.2


# --- precision ------------------------------------------------------------------------------------


def forward_by_hand(network, x):
    """bfloat16 up to the last layer, which is float32: written out, without autocast."""
    conv = torch.nn.functional.conv2d(
        x.bfloat16(), network.conv.weight.bfloat16(), network.conv.bias.bfloat16()
    )
    features = network.norm(conv).relu().flatten(1)
    return torch.nn.functional.linear(features.float(), network.last.weight, network.last.bias)


def test_bfloat16_ends_in_a_float32_layer_and_reads_the_weights_anew():
    network = SmallNet().eval()
    forward = forward_in("bfloat16", network, device=CPU)
    x = pictures(8, seed=0)[0] / 255
    with torch.no_grad():
        logits = forward(x)
        assert logits.dtype == torch.float32
        assert (logits != network(x)).any()  # it is not simply float32
        torch.testing.assert_close(logits, forward_by_hand(network, x)[:, 0], rtol=0, atol=1e-6)
        network.conv.weight.mul_(2)
        doubled = forward(x)
        torch.testing.assert_close(doubled, forward_by_hand(network, x)[:, 0], rtol=0, atol=1e-6)
    assert not network._modules["last"]._forward_hooks  # nothing of ours stays on the network


def bright(count, *, seed):
    """Pictures whose positives are so much brighter in one corner that a few steps teach it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 160, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    targets = (torch.arange(count) % 4 == 0).long()
    images[targets == 1, :, :2, :2] += 90
    return images, targets


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(OBJECTIVES))
def test_bfloat16_learns_as_float32_does(method):
    # Under one autocast context for the whole training, every pass would use the weights of the
    # first step: clean AP then stays between 0.40 and 0.61, and 0.73 to 0.82 is learned otherwise.
    images, targets = bright(96, seed=1)
    aps = {}
    for precision in ("float32", "bfloat16"):
        config = config_for(
            method,
            epochs=6,
            batch_size=16,
            augment=Augment(),
            precision=precision,
            optimizer=Optimizer(lr=0.01),
        )
        held_out = bright(80, seed=2)
        _, _, result = train(config, images=images, targets=targets, validation=held_out)
        aps[precision] = result.history[-1].clean_ap
    assert min(aps.values()) > 0.68
    assert aps["bfloat16"] == pytest.approx(aps["float32"], abs=0.08)


@pytest.mark.parametrize(
    "method", [name for name, objective in OBJECTIVES.items() if objective.needs_adversarial]
)
def test_the_attack_in_bfloat16_moves_every_image_that_it_moves_in_float32(method):
    # Clean and attacked logit that round alike would leave a gradient of exactly zero.
    images, targets = pictures(64, seed=4)
    x, y = images / 255, targets.float()
    settings = TrainingAttack(steps=5, step_size=0.02, epsilon=0.1)
    moved = {}
    for precision in ("float32", "bfloat16"):
        network = SmallNet().train()
        objective = build_objective(config_for(method).method, examples=64)
        x_adv = attack_batch(
            network,
            objective,
            x,
            y,
            torch.arange(64),
            settings=settings,
            generator=torch.Generator().manual_seed(0),
            forward=forward_in(precision, network, device=CPU),
        )
        moved[precision] = (x_adv - x).abs().amax(dim=(1, 2, 3)) > 0.03
    assert moved["float32"].any()
    assert moved["bfloat16"][moved["float32"]].all()


def test_what_is_ranked_for_validation_is_not_rounded():
    seen = []

    class Noting(SmallNet):
        def forward(self, x):
            logits = super().forward(x)
            if not torch.is_grad_enabled():
                seen.append((torch.is_autocast_enabled("cpu"), logits.dtype))
            return logits

    train(config_for("ce", epochs=1, precision="bfloat16"), network=Noting())
    assert seen[-1] == (False, torch.float32)  # the last pass of an epoch scores for validation


def test_a_precision_that_the_device_lacks_is_refused():
    with pytest.raises(
        ConfigError, match="expected precision float32 or bfloat16 on cpu, got tf32"
    ):
        train(config_for("ce", precision="tf32"))


@pytest.mark.parametrize(
    ("figures", "tied"), [([0.5, 0.9, 0.9, 0.8, 0.9], "3, 5"), ([0.5, 0.9, 0.8], None)]
)
def test_epochs_that_share_the_best_figure_are_told(figures: list[float], tied: str | None) -> None:
    history = [
        EpochRecord(i, len(figures), 0.1, 0.0, {}, ap, None, 1.0)
        for i, ap in enumerate(figures, start=1)
    ]
    facts = TrainingResult(history[1], history, "clean_ap").facts
    assert [fact.code for fact in facts] == ([] if tied is None else ["tied_epochs"])
    assert all(
        f"Epoch 2 was kept, the first of 3 with the best validation clean AP (also {tied})"
        in fact.message
        for fact in facts
    )


class Watched(np.ndarray):
    """An array that notes how many of its images are taken at once."""

    taken: list[int]

    def __getitem__(self, rows):
        found = np.asarray(self)[rows]
        self.taken.append(len(found))
        return found


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_images_of_a_file_are_read_batch_by_batch_to_the_same_weights(dtype, tmp_path):
    def stored(images):
        """All of them, in another order, and an image that is none of them."""
        pixels = images.numpy() if dtype == "uint8" else images.numpy() / np.float32(255)
        path = tmp_path / f"{len(pixels)}.npy"
        np.save(path, np.concatenate([pixels[:1] + 1, pixels[::-1]]))
        mapped = np.load(path, mmap_mode="r").view(Watched)
        mapped.taken = []
        return mapped, Picked(mapped, np.arange(len(pixels), 0, -1))

    (images, targets), (others, marks) = pictures(30, seed=1), pictures(20, seed=2)
    mapped, picked = stored(images)
    held_out = stored(others)[1]
    expected = train(config_for())
    found = train(config_for(), images=picked, targets=targets, validation=(held_out, marks))
    if dtype == "uint8":
        assert max(mapped.taken) == 8  # a batch
        assert without_speed(found[2]) == without_speed(expected[2])
    for name, value in expected[0].state_dict().items():
        torch.testing.assert_close(found[0].state_dict()[name], value, rtol=1e-3, atol=1e-4)
