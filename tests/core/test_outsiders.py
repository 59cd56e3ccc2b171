"""Honest networks that look odd, which must pass, and new disguises, which must be named.

Networks and images are those of `test_checks`; the sample is half of what quick checks look at.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adap.core.audit.checks.judging import Judged
from adap.core.audit.checks.searches import restarts
from adap.core.config.attacks import APGDAttack
from tests.core.test_checks import Disguised, audit, failed, held_out, small_cnn, trained, verdict

Disguise = Callable[[nn.Module, Tensor], Tensor]


def few() -> tuple[Any, Any]:
    images, targets = held_out()
    rows = np.concatenate([np.flatnonzero(targets == side)[:24] for side in (0, 1)])
    return images[rows], targets[rows]


def second() -> nn.Module:
    return trained(small_cnn, seed=1)


def hard_gate(network: nn.Module, x: Tensor) -> Tensor:
    """Each image is scored by one of two experts, which its brightness chooses."""
    return torch.where(x.mean((1, 2, 3)) > 0.3, network(x), second()(x))


def standardised(network: nn.Module, x: Tensor) -> Tensor:
    """Each image by its own mean and deviation, as medical pipelines do."""
    mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
    return network(0.3 + 0.3 * (x - mean) / (std + 1e-3))


def top_features(network: nn.Module, x: Tensor) -> Tensor:
    features = network[:4](x).flatten(1)  # type: ignore[index]
    return network(x) + features.topk(20, dim=1).values.mean(1)


def widened(network: nn.Module, x: Tensor) -> Tensor:
    """Only the largest of each 3x3 pixels has a gradient, and flat ground is full of ties."""
    return network(F.max_pool2d(x, 3, stride=1, padding=1))


HONEST: dict[str, Disguise] = {
    "a maximum of neighbours": widened,
    "a temperature of 10,000": lambda network, x: network(x) / 1e4,
    "standardised image by image": standardised,
    "the mean of the largest features": top_features,
    "images clamped to where they are": lambda network, x: network(x.clamp(0, 1)),
    "logits clipped out of reach": lambda network, x: network(x).clamp(-60, 60),
    "a soft maximum of two networks": lambda network, x: torch.stack(
        [network(x), second()(x)]
    ).logsumexp(0),
    # Its gradient is cut and nothing is lost by it: APGD-20 leaves 0.259 of 200 images, and 0.390
    # by the whole gradient, which loses its way where the gate saturates.
    "a gate that no attack needs": lambda network, x: (
        network(x) * torch.sigmoid(2 * second()(x)).detach()
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("disguise", HONEST.values(), ids=HONEST)
def test_an_honest_network_of_an_odd_kind_is_trustworthy(disguise: Disguise) -> None:
    assert verdict(audit(Disguised(disguise), few())) == "trustworthy"


def test_a_network_that_jumps_between_two_experts_is_a_caution_at_most() -> None:
    found = audit(Disguised(hard_gate), few())
    assert verdict(found) != "not trustworthy"
    assert found["gradient_predicts"].figures["correlation"] > 0.99  # only far steps cross the gate


class WrongBackward(torch.autograd.Function):
    """A step in NumPy whose backward pass somebody wrote, and got wrong."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sqrt(x.detach().numpy() + np.float32(1e-3)))

    @staticmethod
    def backward(_ctx: Any, upstream: Tensor) -> Tensor:
        return 0.5 * upstream.flip(-1)


class WholeOnStoredPixels(torch.autograd.Function):
    """Nothing to the image; its gradient passes where every pixel is one of 256 levels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        levels = 255 * ctx.saved_tensors[0]
        stored = ((levels - levels.round()).abs() < 1e-3).flatten(1).all(1)
        return upstream * stored.view(-1, 1, 1, 1)


def one_random_member(network: nn.Module, x: Tensor) -> Tensor:
    return 0.9 * network(x) + 0.1 * second()(F.dropout(x, 0.5, training=True))


def coarse_logit(network: nn.Module, x: Tensor) -> Tensor:
    """In whole fours, beside a smooth ranker: no near step meets a jump."""
    return 4 * (network(x) / 4).round().detach() + 0.3 * second()(x)


class TurnedInAColumn(torch.autograd.Function):
    """Nothing to the image; the gradient of one of its columns has the wrong sign."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, upstream: Tensor) -> Tensor:
        return torch.cat([upstream[..., :7], -upstream[..., 7:]], -1)


class CutAtTheEdge(torch.autograd.Function):
    """Nothing to the image; two of its columns have no gradient."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, upstream: Tensor) -> Tensor:
        return F.pad(upstream[..., 2:], (2, 0))


def saturated(network: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([torch.zeros(len(x)), 1e4 * network(x)], 1).softmax(1)[:, 1]


DISHONEST: dict[str, tuple[Disguise, str]] = {
    "logits clipped to 2": (lambda network, x: network(x).clamp(-2, 2), "gradients"),
    "a softmax that saturates": (saturated, "gradients"),
    "pixels rounded at random": (
        lambda network, x: network((16 * x + torch.rand_like(x)).floor() / 16),
        "repeatable",
    ),
    "one random member of two": (one_random_member, "repeatable"),
    "a backward pass that is wrong": (
        lambda network, x: network(WrongBackward.apply(x)),
        "gradient_predicts",
    ),
    "a logit in coarse steps": (coarse_logit, "gradient_predicts"),
    "two columns without gradient": (
        lambda network, x: network(CutAtTheEdge.apply(x)),
        "gradient_predicts",
    ),
    # APGD-10 leaves AP 0.295 of 300 images, and 0.238 by the gradient whose sign is right.
    "a column whose sign is turned": (
        lambda network, x: network(TurnedInAColumn.apply(x)),
        "gradient_predicts",
    ),
    "whole on stored pixels alone": (
        lambda network, x: network(WholeOnStoredPixels.apply(x)),
        "gradient_predicts",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("disguise", "named"), DISHONEST.values(), ids=DISHONEST)
def test_a_disguise_of_a_new_kind_is_named(disguise: Disguise, named: str) -> None:
    found = audit(Disguised(disguise), few())
    assert verdict(found) == "not trustworthy"
    assert named in failed(found)


class NoisyGradient(torch.autograd.Function):
    """Nothing to the image; noise of a share of its deviation to every gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        deviation = upstream.flatten(1).std(1).view(-1, 1, 1, 1)
        return upstream + ctx.share * deviation * torch.randn(upstream.shape), None


def noisy(share: float) -> nn.Module:
    return Disguised(lambda network, x: network(NoisyGradient.apply(x, share)))


@pytest.mark.parametrize(("share", "expected"), [(0.3, "caution"), (0.5, "not trustworthy")])
def test_a_gradient_that_is_another_one_when_asked_twice_is_named(
    share: float, expected: str
) -> None:
    """The scores hold still. With noise of 0.3 APGD-10 leaves AP 0.248 for 0.238."""
    found = audit(noisy(share), few())
    assert (verdict(found), found["repeatable"].status) == (expected, "pass")
    assert "asked twice" in found["gradient_predicts"].message


@pytest.mark.slow
def test_a_search_led_astray_by_a_noisy_gradient_is_told_by_what_the_others_find() -> None:
    found = audit(noisy(0.5))["converged"]
    plain = audit(trained(small_cnn))["converged"]
    assert (found.status, plain.status) == ("caution", "pass")
    assert found.figures["ap_left"] > 0.0125 > 5 * plain.figures["ap_left"]


@pytest.mark.parametrize(("height", "slope"), [(4.0, 0.05), (6.0, 0.2)])
def test_a_true_gradient_that_leads_into_a_dead_end_is_told_by_what_helped_elsewhere(
    height: float, slope: float
) -> None:
    """A clipped logit, beyond which a small slope leads away: APGD-10 leaves AP 0.467 and 0.310
    of 300 images, and 0.236 and 0.238 along the gradient of the network without the clip.
    """
    found = audit(
        Disguised(lambda network, x: network(x).clamp(-height, height) - slope * network(x))
    )["restarts"]
    plain = audit(trained(small_cnn))["restarts"]
    assert found.status != "pass"
    assert found.figures["borrowed_ap_lower"] > 0.0125 > 5 * plain.figures["borrowed_ap_lower"]
    assert "dead end" in found.message


@pytest.mark.parametrize(("lower", "stronger"), [(0.1, False), (1.0, True)])
def test_a_borrowed_start_counts_where_it_is_far_stronger(lower: float, stronger: bool) -> None:
    """Clean logits have deviation 1; an AP turns by far less where scores are close together."""
    targets = np.arange(20) % 2
    signs = 2.0 * targets - 1
    runs = {"white_box": 0.05 * signs, "restart": 0.05 * signs, "borrowed": (0.05 - lower) * signs}
    found = restarts(Judged(targets, signs, runs), [APGDAttack()])
    behind_ten = np.mean([k / (10 + k) for k in range(1, 11)])  # precision at each positive
    lost = (1 - behind_ten) * stronger
    assert found.status == ("fail" if stronger else "pass")
    assert found.figures["borrowed_ap_lower"] == pytest.approx(lost)
    assert found.figures["borrowed_wins"] == float(stronger)
    said = f"on 100% of the images, which makes AP {lost:.3f} lower"
    assert (said in found.message) == ("far stronger" in found.message) == stronger


def files_apart(network: nn.Module, x: Tensor) -> Tensor:
    """Files as the network, what lies between their levels half as a robust one: what searches."""
    levels = 255 * x
    stored = ((levels - levels.round()).abs() < 1e-3).flatten(1).all(1)
    between = (network(x) + trained(small_cnn, robust=True)(x)) / 2
    return torch.where(stored, network(x), between)


def test_a_network_that_scores_files_otherwise_than_what_lies_between_them_is_named() -> None:
    found = audit(Disguised(files_apart), few())
    assert verdict(found) == "caution"
    assert found["eight_bit"].status == "caution"
    assert "files are scored otherwise" in found["eight_bit"].message
