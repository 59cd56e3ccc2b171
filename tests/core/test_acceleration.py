"""The judge: the scorer itself, in float64, where only a wrong rewrite can make a difference."""

import gc
import logging
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adap.core.attacks.acceleration import Accelerated, Dense, Strided, accelerate
from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.models import architectures
from adap.models.header import InputSpec
from adap.models.wrappers import Scorer

MUCH = 10**6  # passes to come


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=5, *, channels=3, size=32):
    return torch.rand(count, channels, size, size, dtype=torch.float64, generator=generator())


def lived_in(network):
    """With the statistics, scales and shifts of a BatchNorm that has seen data."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = (module.num_features,)
            module.running_mean = torch.randn(shape, generator=generator(1)) / 10
            module.running_var = 0.5 + torch.rand(shape, generator=generator(2))
            module.weight.data = 0.5 + torch.rand(shape, generator=generator(3))
            module.bias.data = torch.randn(shape, generator=generator(4)) / 10
    return network.double().eval().requires_grad_(False)


def scorer(name, *, channels=3, size=32):
    spec = InputSpec(
        channels=channels, height=size, width=size, mean=[0.4] * channels, std=[0.3] * channels
    )
    return lived_in(Scorer(architectures.build(name, channels=channels, seed=0), spec))


def assert_same(fast, slow, x):
    assert isinstance(fast, Accelerated)
    signs = torch.linspace(-2, 1.5, len(x), dtype=x.dtype)
    ends = [loss_and_gradient(lambda x, f=f: signs * f(x), x) for f in (fast, slow)]
    for got, expected in zip(*ends, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-11)
    torch.testing.assert_close(fast(x), slow(x))


def replaced(fast, kind):
    return sum(isinstance(module, kind) for module in fast.modules())


# --- the same function ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("small_cnn", 3, 32),
        ("small_cnn", 1, 7),
        ("resnet18", 3, 32),
        ("resnet18", 1, 45),
        ("resnet18_3x3", 3, 16),
    ],
)
def test_logits_and_gradients_are_the_scorers_own(name, channels, size):
    slow, x = scorer(name, channels=channels, size=size), images(channels=channels, size=size)
    assert_same(accelerate(slow, x, passes=MUCH), slow, x)


@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_in_float32_the_logits_are_the_same_to_1e_5(name):
    slow, x = scorer(name).float(), images(40).float()
    torch.testing.assert_close(accelerate(slow, x, passes=MUCH)(x), slow(x), rtol=1e-5, atol=1e-6)


def test_the_resnet_of_the_paper_is_rewritten_wherever_it_can_be():
    slow, x = scorer("resnet18"), images()
    fast = accelerate(slow, x, passes=MUCH)
    assert replaced(slow, nn.BatchNorm2d) == 20
    assert replaced(fast, nn.BatchNorm2d) == 0
    assert replaced(fast, Strided) == 1
    assert replaced(fast, Dense) == 3 + 4  # three at 2x2, then all but the shortcut's at 1x1


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_a_batch_of_any_size_is_worked_off_in_pieces(count):
    slow = scorer("small_cnn", size=8)
    fast = accelerate(slow, images(size=8), passes=MUCH)
    fast.piece = 32
    assert_same(fast, slow, images(count, size=8))


@pytest.mark.parametrize("size", [9, 12, 13, 16])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(7, 2, 3), (3, 2, 1), (4, 4, 0), (2, 3, 0), (5, 3, (2, 1))]
)
def test_a_convolution_with_a_stride_has_its_own_gradient(kernel, stride, padding, size):
    x = images(channels=2, size=size)[..., : size - 2].requires_grad_()
    layer = nn.Conv2d(2, 5, kernel, stride, padding).double()
    assert Strided.pays(layer)
    upstream = torch.randn(layer(x).shape, dtype=x.dtype, generator=generator())
    (expected,) = torch.autograd.grad(layer(x), x, upstream)
    (got,) = torch.autograd.grad(Strided(layer)(x), x, upstream)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [(1, 3, 1, 1, 1), (2, 3, 1, 1, 1), (2, 3, 2, 1, 1), (2, 5, 1, 4, 2), (1, 1, 1, 0, 1)],
)
def test_a_convolution_of_a_tiny_image_is_a_matrix_product(
    size, kernel, stride, padding, dilation, memory_format
):
    x = images(channels=4, size=size)[:, :, :, :1].to(memory_format=memory_format)
    layer = nn.Conv2d(4, 5, kernel, stride, padding, dilation).double()
    y = layer(x)
    torch.testing.assert_close(Dense(layer, x.shape, y.shape)(x), y)


# --- networks that are not what they seem ---------------------------------------------------------


class Foreign(nn.Module):
    """conv and norm of a small network, put together in the way that a subclass says."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.body(self.first(x)).mean(dim=(1, 2, 3))


class Twice(Foreign):
    def body(self, x):
        return self.norm(self.conv(self.norm(self.conv(x))))


class NormTwice(Foreign):
    def body(self, x):
        return self.norm(self.norm(self.conv(x)))


class Branch(Foreign):
    def body(self, x):
        y = self.conv(x)
        return self.norm(y) * 2 + 1e-5 * y


class Overwritten(Foreign):
    def body(self, x):
        return self.norm(F.relu_(self.conv(x)))


class Tied(Foreign):
    def body(self, x):
        return self.norm(self.conv(F.conv2d(x, self.conv.weight, padding=1)))


class Hooked(Foreign):
    def __init__(self):
        super().__init__()
        self.conv.register_forward_hook(lambda module, inputs, output: output**3)

    def body(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize("kind", [Twice, NormTwice, Branch, Overwritten, Tied, Hooked])
def test_layers_that_do_not_simply_follow_each_other_are_left_alone(kind):
    slow, x = lived_in(kind()), images(size=8)
    fast = accelerate(slow, x, passes=MUCH)
    assert_same(fast, slow, x)
    assert replaced(fast, nn.BatchNorm2d) == 1


class Noisy(Foreign):
    def body(self, x):
        return self.norm(self.conv(x)) + torch.randn(x.shape, generator=generator(self.draws()))

    calls = 0

    def draws(self):
        Noisy.calls += 1
        return Noisy.calls


class Mixing(Foreign):
    """The images of a batch depend on each other."""

    def body(self, x):
        return F.batch_norm(self.conv(x), None, None, training=True).exp()


class View(Foreign):
    """Asks for a memory layout that it does not have when channels are last."""

    def body(self, x):
        return self.norm(self.conv(x)).view(len(x), -1)[:, :, None, None]


class LooksAtItsLayers(Foreign):
    """Wants to know a thing of a layer that is not there any more."""

    def body(self, x):
        return self.norm(self.conv(x)) * self.norm.momentum


@pytest.mark.parametrize("kind", [Noisy, Mixing, View, LooksAtItsLayers])
def test_a_network_that_does_not_stand_it_is_left_as_it_is_and_the_log_says_so(kind, caplog):
    slow, x = lived_in(kind()), images(size=8)
    with caplog.at_level(logging.INFO):
        assert accelerate(slow, x, passes=MUCH) is slow
    assert [record.message for record in caplog.records] == ["attack.not_accelerated"]


def test_a_network_in_train_mode_is_left_as_it_is():
    slow = scorer("small_cnn", size=8).train()
    assert accelerate(slow, images(size=8), passes=MUCH) is slow


def test_little_work_is_not_worth_it():
    slow = scorer("small_cnn", size=8)
    assert accelerate(slow, images(size=8), passes=100) is slow


def test_in_bfloat16_the_last_layer_and_every_logit_are_float32():
    slow, x = scorer("small_cnn", size=8).float(), images(64, size=8).float()
    fast = accelerate(slow, x, passes=MUCH, precision="bfloat16")
    layers = [m for m in fast.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {layer.weight.dtype for layer in layers[:-1]} == {torch.bfloat16}
    assert layers[-1].weight.dtype == torch.float32
    logits, gradient = loss_and_gradient(fast, x)
    own, steepest = loss_and_gradient(slow, x)
    assert logits.dtype == gradient.dtype == torch.float32
    assert len(logits.unique()) == len(x), "rounded logits would be equal now and then"
    torch.testing.assert_close(logits, own, rtol=0, atol=0.02 * float(own.abs().max()))
    assert nn.functional.cosine_similarity(gradient.flatten(1), steepest.flatten(1)).min() > 0.98


class Strict(Foreign):
    """Its gradient is multiplied by a matrix of float32, as nothing else is foreseen."""

    def body(self, x):
        return self.norm(self.conv(OnlyFloat32.apply(x)))


class OnlyFloat32(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return torch.mm(upstream.flatten(1), torch.eye(upstream[0].numel())).view_as(upstream)


def test_a_network_that_does_not_stand_bfloat16_is_left_as_it_is_with_a_warning(caplog):
    slow, x = lived_in(Strict()).float(), images(size=8).float()
    assert isinstance(accelerate(slow, x, passes=MUCH), Accelerated)
    with caplog.at_level(logging.WARNING):
        assert accelerate(slow, x, passes=MUCH, precision="bfloat16") is slow
    assert [record.message for record in caplog.records] == ["attack.not_accelerated"]


# --- in an attack ---------------------------------------------------------------------------------


def test_the_scorer_itself_is_not_touched():
    slow, x = scorer("small_cnn", size=8), images(size=8)
    before = {name: tensor.clone() for name, tensor in slow.state_dict().items()}
    fast = accelerate(slow, x, passes=MUCH)
    assert not {id(tensor) for tensor in fast.parameters()} & {id(t) for t in slow.parameters()}
    torch.testing.assert_close(slow.state_dict(), before, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in slow.modules())


def test_a_copy_is_gone_as_soon_as_nobody_holds_it():
    slow, x = scorer("small_cnn", size=8).float(), images(size=8).float()
    gc.disable()
    try:
        for precision in ("float32", "bfloat16"):
            fast = accelerate(slow, x, passes=MUCH, precision=precision)
            loss_and_gradient(fast, x)
            copied = weakref.ref(fast.network)
            del fast
            assert copied() is None, precision
    finally:
        gc.enable()


def test_a_network_without_gradient_stays_so():
    network = lived_in(nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten(0)))
    flat = nn.Sequential(network, Round())
    fast = accelerate(flat, images(size=8), passes=MUCH)
    loss, gradient = loss_and_gradient(fast, images(size=8))
    torch.testing.assert_close(loss, flat(images(size=8)))
    assert gradient.count_nonzero() == 0


class Round(nn.Module):
    def forward(self, x):
        return (x * 1000).detach().round()


@pytest.mark.slow
def test_an_attack_ends_where_it_does_on_the_scorer_itself():
    slow, x = scorer("resnet18"), images()
    threat_model = ThreatModel("l2", 0.5)  # no sign, which would turn rounding into steps
    with attacking(slow):
        fast = accelerate(slow, x, passes=MUCH)
        ends = [
            PGD(5, 0.2).perturb(network, x, threat_model=threat_model, generator=generator())
            for network in (fast, slow)
        ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-8)
