"""The judge: the network itself, in float64, whose logits and gradients a folded copy must have."""

import pytest
import torch
from torch import nn

from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.holding import attacking
from adap.core.config.training import TrainingConfig
from adap.core.errors import ConfigError
from adap.core.objectives.registry import OBJECTIVES
from adap.core.precision import forward_in
from adap.core.training.folding import Folded
from adap.models import architectures
from tests.core.test_capture import MANY, SGD, Plain, Tape, same
from tests.core.test_training import (
    CPU,
    KilledError,
    config_for,
    through_a_file,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def lived_in(network):
    """Statistics and weights that no fresh network has."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    return network


def folded(network, x, precision="float32"):
    return Folded(network, x, precision=precision, device=CPU)


def gradients(network, forward, x):
    with attacking(network):
        signs = torch.linspace(-2, 1.5, len(x), dtype=x.dtype)
        return loss_and_gradient(lambda x: signs * forward(x), x)


@pytest.mark.parametrize("name", ["small_cnn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_folded_gradients_equal_the_networks_own_in_float64_step_after_step(name):
    built = architectures.build(name, channels=3, seed=0)
    network = lived_in(nn.Sequential(built, nn.Flatten(0)).double()).train()
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    copy = folded(network, x)
    for _ in range(2):
        for got, expected in zip(
            gradients(network, copy.settle(), x), gradients(network, network, x), strict=True
        ):
            scale = expected.abs().max()
            assert scale > 0
            torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-11)
        network(x).sum().backward()  # which moves the statistics too
        with torch.no_grad():
            for weight in network.parameters():
                weight -= 0.01 * weight.grad
    assert all(module.training for module in network.modules())
    assert all(weight.requires_grad for weight in network.parameters())


def test_in_bfloat16_it_is_as_near_to_float32_as_the_networks_own_passes_are():
    built = architectures.build("small_cnn", channels=3, seed=0)
    network = lived_in(nn.Sequential(built, nn.Flatten(0)))
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    own = forward_in("bfloat16", network, device=CPU)
    _, exact = gradients(network, network, x)
    _, rounded = gradients(network, own, x)
    _, ours = gradients(network, folded(network, x, "bfloat16").settle(), x)
    off, usual = ((found - exact).norm() / exact.norm() for found in (ours, rounded))
    assert 0 < off < 2 * usual
    assert len(set(folded(network, x, "bfloat16").settle()(x).tolist())) == len(x), "no ties"


class Moving(Plain):
    """Counts its passes in train mode, in what no state_dict holds, and answers by the count."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.move()
        return super().forward(x) * (1 + self.count)

    def move(self):
        self.count += 1


class Replacing(Moving):
    def move(self):
        self.count = self.count + 1


class Counting(Moving):
    def __init__(self, count=0):
        super().__init__()
        del self.count
        self.count = count


@pytest.mark.parametrize(
    "make", [Moving, Replacing, Counting, lambda: Counting(torch.zeros(()))], ids=range(4)
)
def test_what_a_network_moves_beside_its_state_dict_moves_in_the_copy(make):
    network = lived_in(make().double()).train()
    x = torch.rand(4, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    copy = folded(network, x)
    for count in (1, 2):
        network(x)
        assert network.count == count
        copy.settle()(x)  # which moves nothing of the network's
        assert network.count == count
        expected = network.eval()(x)
        network.train()
        torch.testing.assert_close(copy.settle()(x), expected, rtol=1e-11, atol=1e-11)
        assert count == 1 or (expected - super(Moving, network).forward(x)).abs().max() > 0.1


@pytest.mark.parametrize("method", [name for name, o in OBJECTIVES.items() if o.needs_adversarial])
def test_a_training_attacked_so_is_captured_and_resumed_to_the_same_bits(method):
    config, tape = config_for(method, optimizer=SGD, epochs=2, folded_attack=True), Tape()
    checkpoints = []

    def run(**options):
        return train(config, network=Plain(), **MANY, **options)

    expected = run(save=lambda state: checkpoints.append(through_a_file(state)))
    same(run(recorder=tape, checkpoint=checkpoints[0]), expected)
    assert tape.replays > 0
    own = train(config_for(method, optimizer=SGD, epochs=2), network=Plain(), **MANY)
    assert expected[2].best.loss == pytest.approx(own[2].best.loss, rel=0.05, abs=0.05)


def test_a_training_without_attack_is_as_it_was():
    config = config_for("ce", optimizer=SGD, epochs=1)
    same(
        train(config.model_copy(update={"folded_attack": True}), network=Plain()),
        train(config, network=Plain()),
    )


class Odd(Plain):
    """Answers by what it is called by, so a copy of it answers otherwise."""

    def __init__(self):
        super().__init__()
        self.first = id(self)

    def forward(self, x):
        return super().forward(x) * (1 if id(self) == self.first else 2)


class Uncopied(Plain):
    def __deepcopy__(self, memo):
        raise KilledError("there is one of me")


@pytest.mark.parametrize(
    ("network", "said"),
    [(Odd, "that answers alike when it is folded, got"), (Uncopied, "that can be copied, got Kil")],
)
def test_a_network_that_cannot_be_folded_is_refused_in_a_sentence(network, said):
    with pytest.raises(ConfigError, match=said) as refused:
        train(config_for("pgd", folded_attack=True), network=network())
    assert "leave folded_attack out" in str(refused.value)


def test_a_network_without_batchnorm_is_attacked_as_it_is():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    x = torch.rand(4, 1, 4, 4)
    assert torch.equal(folded(network, x).settle()(x), network(x))


def test_it_counts_in_the_hash():
    assert TrainingConfig(folded_attack=True).sha256() != TrainingConfig().sha256()
