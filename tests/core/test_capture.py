"""The judge: the same training without anything captured.

No GPU is needed: a tape notes the operations of a step and does them again on the same tensors,
without a line of Python, as a CUDA graph does; and as during a capture, nothing may ask for a value
on the host.
"""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adap.core.capture import WARM_UPS, Captured, no_draws_on_the_host
from adap.core.config.training import Augment, Optimizer, TrainingAttack
from adap.core.objectives.registry import OBJECTIVES, build_objective
from adap.core.training.attacking import attack_batch
from adap.core.training.augment import augment
from adap.core.training.optimizers import optimizer_of, set_rate
from tests.core.test_training import (
    RECIPE,
    SEVERAL,
    SmallNet,
    config_for,
    dropping,
    pictures,
    through_a_file,
    train,
    without_speed,
)

pytestmark = pytest.mark.usefixtures("one_thread")
HOST = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.lift_fresh.default,  # numbers that come from the host
}
SGD = Optimizer(name="sgd", lr=0.01)  # torch's others count their steps on the host, on a CPU
L2 = TrainingAttack(norm="l2", epsilon=0.3, steps=2, step_size=0.1)
MANY = {"images": pictures(58, seed=1)[0], "targets": pictures(58, seed=1)[1]}


class Plain(SmallNet):
    """The same without a look at pixels, for which the host would wait."""

    def forward(self, x):
        logits = self.last(self.norm(self.conv(x)).relu().flatten(1))
        return logits.squeeze(1) if self.classes is None else logits


class Tape:
    """A recorder for CPUs. It does the work that it notes, so the first replay has none left."""

    def __init__(self):
        self.replays = 0

    def warm_up(self, work):
        return work()

    def record(self, work, generators):
        states = [generator.get_state() for generator in generators]
        try:
            with _Noting() as noted:
                result = work()
        except RuntimeError:  # what was not recorded has drawn nothing
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            raise ValueError("the capture is not valid any more")  # as leaving it says  # noqa: B904
        done = [True]

        def replay():
            if done:
                done.pop()
                return result
            self.replays += 1
            with torch._C._AutoDispatchBelowAutograd():
                for function, args, kwargs, before in noted.operations:
                    after = tree_leaves(function(*args, **kwargs))
                    for old, new in zip(tree_leaves(before), after, strict=True):
                        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)
            return result

        return replay


class _Noting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in HOST:
            raise RuntimeError(f"{function} is not permitted when a step is captured")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result


def same(found, expected):
    """Two trainings that ended in the same bits and say the same of themselves."""
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name
    assert without_speed(found[2]) == without_speed(expected[2])


@pytest.mark.slow
@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_captured_training_ends_in_the_same_bits_as_one_that_is_not(method):
    config, tape, checkpoints = config_for(method, optimizer=SGD, epochs=2), Tape(), []

    def run(**options):
        return train(config, network=Plain(), **MANY, **options)

    expected = run(save=lambda state: checkpoints.append(through_a_file(state)))
    same(run(recorder=tape), expected)
    assert tape.replays >= 8
    same(run(recorder=tape, checkpoint=checkpoints[0]), expected)


@pytest.mark.parametrize(
    ("method", "changes", "network"),
    [
        ("adap_lpn", RECIPE, Plain),  # rate, factor and perturbation change with the epochs
        ({"name": "adap_lpn", "anchor": "ema"}, {"ema": 0.9}, Plain),
        ("adap_lpn", {"precision": "bfloat16"}, Plain),
        ("pgd", {"attack": L2}, Plain),
        ("ce", {}, dropping),
    ],
)
def test_so_does_one_with_every_option(method, changes, network):
    config, tape = config_for(method, **{"optimizer": SGD, "epochs": 2, **changes}), Tape()
    found = train(config, network=network(), recorder=tape, **MANY)
    same(found, train(config, network=network(), **MANY))
    assert found[2].uncaptured is None
    assert tape.replays > 0


def test_so_does_one_on_many_classes():
    config, tape = config_for("adap_pz", optimizer=SGD), Tape()
    expected = train(config, network=Plain(classes=3), **SEVERAL)
    same(train(config, network=Plain(classes=3), recorder=tape, **SEVERAL), expected)
    assert tape.replays > 0


def test_a_step_that_cannot_be_captured_runs_as_it_is_and_the_training_says_so():
    config = config_for(optimizer=SGD, epochs=2)
    expected = train(config, network=SmallNet(), **MANY)
    try:
        raise KeyError("something else that is being handled")
    except KeyError:
        network, objective, result = train(config, network=SmallNet(), recorder=Tape(), **MANY)
    (said,) = [fact for fact in result.facts if fact.code == "not_captured"]
    assert "RuntimeError: aten._local_scalar_dense.default is not permitted" in said.message
    assert "not_captured" not in {fact.code for fact in expected[2].facts}
    assert result.history[-1].loss == expected[2].history[-1].loss
    for name, value in expected[0].state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    assert all(
        torch.equal(value, expected[1].state_dict()[name])
        for name, value in objective.state_dict().items()
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_neither_an_attack_nor_an_augmentation_asks_anything_of_the_host(norm):
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0))
    x, targets = torch.rand(4, 3, 8, 8), torch.tensor([1.0, 0.0, 0.0, 1.0])
    options = Augment(crop_padding=1, flip=True, crop_shift=2, jitter=0.2, erase=0.5)
    objective = build_objective(config_for("pgd").method, examples=4)
    with _Noting() as noted:
        attack_batch(
            network,
            objective,
            augment(x, options, generator=torch.Generator()),
            targets,
            torch.arange(4),
            settings=TrainingAttack(norm=norm, epsilon=0.1, steps=2, step_size=0.1),
            generator=torch.Generator(),
        )
    assert noted.operations


def test_what_is_replayed_belongs_to_the_first_shape_and_other_shapes_run_as_they_are():
    tape = Tape()
    doubled = Captured(lambda x: 2 * x, tape)
    for number in range(WARM_UPS + 3):
        assert doubled(torch.full((3,), float(number))).tolist() == [2 * number] * 3
        assert doubled(torch.full((1,), float(number))).tolist() == [2 * number]
    assert tape.replays == 2


@pytest.mark.parametrize(
    ("draw", "by"),
    [
        (lambda: torch.rand([]), "torch"),
        (random.random, "random"),
        (lambda: np.random.rand(), "NumPy"),
    ],
)
def test_what_draws_on_the_host_is_not_recorded_and_draws_the_same_afterwards(draw, by):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    refused = pytest.raises(RuntimeError, match=f"random numbers on the CPU, by {by}$")
    with refused, no_draws_on_the_host():
        first = draw()
    assert draw() == first
    with no_draws_on_the_host():
        torch.ones(3).sum()


def test_what_was_recorded_is_forgotten_when_something_beside_the_tensors_changes():
    factor, tape = [2], Tape()
    scaled = Captured(lambda x: factor[0] * x, tape)
    for _ in range(WARM_UPS + 2):
        assert scaled(torch.ones(1)).item() == 2
    factor[0] = 3
    assert scaled(torch.ones(1)).item() == 2  # replayed
    scaled.forget()
    for _ in range(WARM_UPS + 2):
        assert scaled(torch.ones(1)).item() == 3


@pytest.mark.parametrize("name", ["nadam", "radam", "rmsprop"])  # fused ones need a driver
def test_an_optimiser_on_a_gpu_asks_nothing_of_the_host(name):
    with FakeTensorMode():  # in which whoever asks for a value is refused
        weight = nn.Parameter(torch.empty(3, 3, device="cuda"))
        device = torch.device("cuda")
        optimizer = optimizer_of([weight], Optimizer(name=name), device=device)
        for lr in (0.1, 0.2):
            anew = set_rate(optimizer, lr)
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            assert anew == (name == "rmsprop")


def test_a_checkpoint_of_a_gpu_goes_on_without_one():
    config, checkpoints = config_for(epochs=2), []
    expected = train(config, save=lambda state: checkpoints.append(through_a_file(state)))
    (group,) = checkpoints[0]["optimizer"]["param_groups"]
    group.update(lr=torch.tensor(0.5), capturable=True, fused=True)
    same(train(config, checkpoint=checkpoints[0]), expected)
