"""The judges: linear models, whose worst case has a closed form; counted passes; fractions."""

import doctest
import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

import adap.core.attacks.apgd
from adap.core.attacks.apgd import APGD, checkpoints_of
from adap.core.attacks.base import perturbed
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD
from adap.core.attacks.registry import ATTACKS, build_attack
from adap.core.attacks.square import Square
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config import attacks as config
from adap.core.config.attacks import (
    APGDAttack,
    FGSMAttack,
    NoiseAttack,
    PGDAttack,
    SquareAttack,
    TransferAttack,
)
from adap.core.config.threats import Threat
from adap.core.errors import ConfigError

NORMS = ("linf", "l2")
ENTRIES = get_args(get_args(config.Attack)[0])  # the classes of the discriminated union
CATALOGUE = [entry() for entry in ENTRIES]


def every_attack_but(*kinds):
    entries = [entry for entry in CATALOGUE if not isinstance(entry, kinds)]
    return pytest.mark.parametrize("attack", entries, ids=lambda entry: entry.name)


every_attack = every_attack_but()
every_search = every_attack_but(NoiseAttack)
every_norm = pytest.mark.parametrize("norm", NORMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*, low=0.0, high=1.0, count=6, seed=0):
    """(count, 3, 4, 4) float64 pixels in [low, high]."""
    pixels = torch.rand(count, 3, 4, 4, dtype=torch.float64, generator=generator(seed))
    return low + (high - low) * pixels


class Linear(nn.Module):
    """logit = w . x + bias"""

    def __init__(self, *, seed=1, bias=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 4, dtype=torch.float64, generator=generator(seed)))
        self.bias = bias

    def forward(self, x):
        return (x * self.w).sum(dim=(1, 2, 3)) + self.bias


def small_network(seed=0):
    """BatchNorm and dropout, which train mode would make depend on the batch and on chance."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(128, 1),
            nn.Flatten(0),
        )
    return network.double()


def run(attack, loss_fn, x, *, norm="linf", epsilon=0.1, seed=0):
    threat = Threat(norm=norm, epsilon=epsilon)
    return build_attack(attack, threat).perturb(
        loss_fn, x, threat_model=ThreatModel(norm, epsilon), generator=generator(seed)
    )


# --- closed forms ---------------------------------------------------------------------------------


def linear_gain(w, x, *, norm, epsilon):
    """(B,) how far w . x can rise within the ball and [0, 1], in numpy.

    Pixels move the way of their weight, each as far as the box lets it. L-inf: by epsilon. L2: by
    t * |w| (the KKT conditions), where bisection finds the t at which the length is epsilon.
    """
    w = np.broadcast_to(w, x.shape).reshape(len(x), -1)
    x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    room, w = np.where(w > 0, 1 - x, x), np.abs(w)
    if norm == "linf":
        return (w * np.minimum(epsilon, room)).sum(axis=1)
    low, high = np.zeros((len(x), 1)), np.full((len(x), 1), 1e9)
    for _ in range(100):
        t = (low + high) / 2
        inside = np.linalg.norm(np.minimum(t * w, room), axis=1, keepdims=True) <= epsilon
        low, high = np.where(inside, t, low), np.where(inside, high, t)
    return (w * np.minimum(low * w, room)).sum(axis=1)


def test_the_closed_form_is_the_dual_norm_where_the_box_does_not_bind():
    w, x = Linear().w.detach().numpy(), images(low=0.3, high=0.7).numpy()
    for norm, dual in (("linf", 1), ("l2", 2)):
        gain = linear_gain(w, x, norm=norm, epsilon=0.1)
        np.testing.assert_allclose(gain, 0.1 * np.linalg.norm(w.ravel(), ord=dual))


searches_that_end = pytest.mark.parametrize(
    "attack",
    # A step of epsilon: shorter ones of PGD leave a trace of the start, 1e-4 in L2 by default.
    [FGSMAttack(), PGDAttack(steps=20, step_size=1.0), APGDAttack(steps=50)],
    ids=lambda entry: entry.name,
)


@every_norm
@searches_that_end
@pytest.mark.parametrize("low", [0.3, 0.0, -0.3], ids=["inside", "some_walls", "black_and_white"])
@pytest.mark.parametrize("epsilon", [0.1, 0.3, 1.0, 2.0])
def test_the_worst_case_of_a_linear_model_is_reached(attack, norm, low, epsilon):
    if norm == "linf":
        epsilon = min(epsilon, 1.0)  # no pixel can move further, so more is refused
    model, x = Linear(), images(low=low, high=1 - low, count=20).clamp(0, 1)
    gain = model(run(attack, model, x, norm=norm, epsilon=epsilon)) - model(x)
    exact = linear_gain(model.w.detach().numpy(), x.numpy(), norm=norm, epsilon=epsilon)
    np.testing.assert_allclose(gain.detach().numpy(), exact, rtol=0, atol=1e-6)


@every_norm
@searches_that_end
def test_in_float32_the_worst_case_is_reached_as_far_as_its_sums_can_tell(attack, norm):
    model, x = Linear(), images(low=-0.3, high=1.3, count=20).clamp(0, 1)
    w = model.w.detach().numpy()
    single = Linear().float()
    x_adv = run(attack, single, x.float(), norm=norm, epsilon=1.0)
    exact = linear_gain(w, x.numpy(), norm=norm, epsilon=1.0)
    # 48 pixels to 6e-8 each, with weights of up to 3: 1e-5 at most.
    gain = model(x_adv.double()) - model(x)
    np.testing.assert_allclose(gain.detach().numpy(), exact, rtol=0, atol=1e-5)


@every_norm
@searches_that_end
def test_the_worst_ap_of_a_linear_ranker_is_reached(attack, norm):
    model, x = Linear(), images(low=-0.3, high=1.3, count=200).clamp(0, 1)
    with torch.no_grad():
        logits = model(x) + torch.randn(200, dtype=x.dtype, generator=generator(3))
    targets = (logits > logits.quantile(0.8)).long()
    signs = 2 * targets - 1
    epsilon = {"linf": 0.02, "l2": 0.15}[norm]
    x_adv = run(attack, lambda x: -signs * model(x), x, norm=norm, epsilon=epsilon)
    w = -signs.view(-1, 1, 1, 1).numpy() * model.w.detach().numpy()  # the way of each image's loss
    gain = linear_gain(w, x.numpy(), norm=norm, epsilon=epsilon)
    clean = model(x).detach().numpy()
    exact = average_precision_score(targets, clean - signs.numpy() * gain)
    assert exact < average_precision_score(targets, clean) - 0.2
    reached = average_precision_score(targets, model(x_adv).detach().numpy())
    assert reached == pytest.approx(exact, abs=1e-6)


def test_the_linf_worst_case_of_a_linear_model_is_reached_without_gradients():
    model, x = Linear(), images()
    gain = model(run(SquareAttack(queries=2000), model, x, epsilon=0.3)) - model(x)
    exact = linear_gain(model.w.detach().numpy(), x.numpy(), norm="linf", epsilon=0.3)
    np.testing.assert_allclose(gain.detach().numpy(), exact, rtol=0, atol=1e-6)


@every_norm
def test_noise_of_the_same_size_is_weaker_than_every_attack_on_a_linear_model(norm):
    model, x = Linear(), images(low=0.3, high=0.7, count=200)
    exact = 0.1 * model.w.flatten().norm(p={"linf": 1, "l2": 2}[norm]).item()
    gain = (model(run(NoiseAttack(), model, x, norm=norm)) - model(x)) / exact
    assert gain.max() < 0.7
    # It rises and falls alike. Uniform in L-inf, its standard deviation is known.
    assert abs(gain.mean()) < 3 * gain.std() / math.sqrt(200)
    if norm == "linf":
        deviation = 0.1 * model.w.flatten().norm().item() / math.sqrt(3) / exact
        assert gain.std().item() == pytest.approx(deviation, rel=0.15)  # three standard errors


@every_search
def test_a_logit_far_beyond_where_a_sigmoid_saturates_is_moved_as_far_as_any(attack):
    model, x = Linear(bias=50.0), images(low=0.3, high=0.7).float()
    model.float()
    with torch.enable_grad():
        probe = x.clone().requires_grad_()
        saturated = -torch.log(torch.sigmoid(model(probe))).sum()
        (gradient,) = torch.autograd.grad(saturated, probe)
    assert gradient.count_nonzero() == 0  # cross-entropy after a sigmoid would leave them alone
    drop = model(x) - model(run(attack, lambda x: -model(x), x))
    torch.testing.assert_close(drop, (0.1 * model.w.abs().sum()).expand(len(x)), rtol=1e-5, atol=0)


# --- contracts of every attack --------------------------------------------------------------------


def test_the_registry_is_the_list_of_attacks_that_can_be_asked_for():
    assert set(ATTACKS) == {entry.model_fields["name"].default for entry in ENTRIES}


@every_attack
@every_norm
def test_what_comes_back_is_an_image_within_epsilon(attack, norm):
    x = images()
    x_adv = run(attack, small_network().eval(), x, norm=norm, epsilon=0.3)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    distance = (x_adv - x).flatten(1).norm(dim=1, p={"linf": math.inf, "l2": 2}[norm])
    assert (distance <= 0.3 + 1e-12).all()
    assert (distance > 0.1).all()
    assert not x_adv.requires_grad


class Beyond:
    """An attack that keeps to no ball: it answers with whatever it was made with."""

    def __init__(self, x_adv):
        self.x_adv = x_adv

    def perturb(self, loss_fn, x, *, threat_model, generator):
        return self.x_adv


def brought_back(x_adv, *, norm="linf", epsilon=0.1):
    return perturbed(
        Beyond(x_adv),
        lambda x: x.sum(dim=(1, 2, 3)),
        images(),
        threat_model=ThreatModel(norm, epsilon),
        generator=torch.Generator(),
    )


def test_what_left_the_ball_or_the_pixels_is_brought_back_before_it_is_scored():
    x = images()
    x_adv = x + torch.linspace(-3, 3, x.numel(), dtype=x.dtype).view(x.shape)
    nearest = np.clip(np.clip(x_adv.numpy(), x.numpy() - 0.1, x.numpy() + 0.1), 0, 1)
    np.testing.assert_array_equal(brought_back(x_adv).numpy(), nearest)
    inside = brought_back(x_adv, norm="l2")
    assert ((inside - x).flatten(1).norm(dim=1) <= 0.1 + 1e-12).all()
    assert inside.min() >= 0
    assert inside.max() <= 1
    assert torch.equal(brought_back(x + 0.0001), (x + 0.0001).clamp(0, 1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pixels_that_are_no_numbers_and_images_of_another_shape_are_refused(value):
    x_adv = images()
    x_adv[1, 0, 0, 0] = value
    with pytest.raises(ConfigError, match=f"Beyond .*, got NaN or infinity in 1 of {len(x_adv)}"):
        brought_back(x_adv)
    with pytest.raises(ConfigError, match="Beyond to return images of shape"):
        brought_back(images()[:1])


@every_attack
@every_norm
def test_epsilon_zero_is_the_clean_image(attack, norm):
    x = images()
    assert torch.equal(run(attack, small_network().eval(), x, norm=norm, epsilon=0.0), x)


@every_search
@every_norm
def test_the_loss_rises(attack, norm):
    network, x = small_network().eval(), images()
    assert (network(run(attack, network, x, norm=norm)) > network(x)).all()


@every_attack_but(FGSMAttack)
def test_the_same_generator_gives_the_same_bits_and_another_one_does_not(attack):
    network, x = small_network().eval(), images()
    first = run(attack, network, x, norm="l2", seed=0)
    assert torch.equal(run(attack, network, x, norm="l2", seed=0), first)
    assert not torch.equal(run(attack, network, x, norm="l2", seed=1), first)


@every_attack
@every_norm
def test_an_image_is_attacked_alike_whatever_else_is_in_the_batch(attack, norm):
    network, x = small_network().eval(), images()
    strangers = torch.cat([x[:1], images(seed=9)[:2]])
    together = run(attack, network, x, norm=norm)[:1]
    apart = run(attack, network, strangers, norm=norm)[:1]
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-9)


@every_attack
@every_norm
def test_nan_on_one_image_leaves_it_an_image_and_the_others_attacked(attack, norm):
    model, x = Linear(), images(low=0.3, high=0.7)
    broken = torch.tensor([math.nan, 1, 1, 1, 1, 1], dtype=torch.float64)
    x_adv = run(attack, lambda x: broken * model(x), x, norm=norm)
    assert x_adv.isfinite().all()
    torch.testing.assert_close(x_adv[1:], run(attack, model, x, norm=norm)[1:])


@every_attack
def test_a_model_that_lets_no_gradient_through_is_not_an_error(attack):
    x = images()
    x_adv = run(attack, lambda x: x.detach().round().sum(dim=(1, 2, 3)), x)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-12


@every_attack
def test_attacks_work_where_gradients_are_switched_off(attack):
    network, x = small_network().eval(), images()
    with torch.no_grad():
        x_adv = run(attack, network, x)
    assert torch.equal(x_adv, run(attack, network, x))


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (PGDAttack(steps=4, iterate="last"), 4, 4),
        (PGDAttack(steps=4, iterate="best"), 5, 4),
        (PGDAttack(steps=4, iterate="last", restarts=3), 15, 12),
        (PGDAttack(steps=4, iterate="best", restarts=3), 15, 12),
        (APGDAttack(steps=4), 5, 4),
        (APGDAttack(steps=10, restarts=2), 22, 20),
        (TransferAttack(steps=4), 5, 4),
        (TransferAttack(steps=4, iterate="last"), 4, 4),
        (FGSMAttack(), 1, 1),
        (SquareAttack(queries=1), 1, 0),
        (SquareAttack(queries=37), 37, 0),
        (NoiseAttack(), 0, 0),
    ],
)
def test_an_attack_costs_as_many_passes_as_it_says(attack, forwards, backwards):
    counted = {"forward": 0, "backward": 0}
    network = small_network()

    def count(which):
        def hook(*_):
            counted[which] += 1

        return hook

    network.register_forward_hook(count("forward"))
    network[0].register_full_backward_hook(count("backward"))
    with attacking(network):
        run(attack, network, images())
    assert counted == {"forward": forwards, "backward": backwards}
    assert all(parameter.grad is None for parameter in network.parameters())


# --- FGSM -----------------------------------------------------------------------------------------


def test_fgsm_draws_nothing_and_is_one_step_of_pgd_from_the_clean_image():
    network, x = small_network().eval(), images()
    source = generator()
    x_adv = build_attack(FGSMAttack(), Threat()).perturb(
        network, x, threat_model=ThreatModel("linf", 0.1), generator=source
    )
    assert torch.equal(source.get_state(), generator().get_state())
    probe = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(probe).sum(), probe)
    assert torch.equal(x_adv, (x + 0.1 * gradient.sign()).clamp(0, 1))


# --- freezing -------------------------------------------------------------------------------------


def test_attacking_freezes_a_network_and_gives_it_back_as_it_was():
    network = small_network().train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    flags = [parameter.requires_grad for parameter in network.parameters()]
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def interrupted():
        with attacking(network):
            assert not any(module.training for module in network.modules())
            assert not any(parameter.requires_grad for parameter in network.parameters())
            run(PGDAttack(), network, images())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


# --- PGD ------------------------------------------------------------------------------------------


def hill(top):
    """A loss with its maximum 0 at `top`, pointed so that a step of fixed size keeps missing it."""
    return lambda x: -(x - top).abs().sum(dim=(1, 2, 3))


def test_the_default_step_size_is_two_and_a_half_epsilon_over_the_steps():
    threat = Threat(epsilon=0.1)
    assert build_attack(PGDAttack(steps=10), threat) == PGD(10, 0.025)
    assert build_attack(PGDAttack(step_size=0.007), threat) == PGD(10, 0.007)


def test_the_best_iterate_beats_a_last_one_that_overshot():
    x = images(low=0.3, high=0.7)
    loss_fn = hill(x + 0.013)
    last = loss_fn(run(PGDAttack(step_size=0.1, iterate="last"), loss_fn, x))
    best = loss_fn(run(PGDAttack(step_size=0.1, iterate="best"), loss_fn, x))
    assert (best >= last).all()
    assert (best > last).any()


@pytest.mark.parametrize("kind", [PGDAttack, APGDAttack])
def test_more_restarts_only_help(kind):
    x = images(low=0.3, high=0.7, count=40)

    def ripples(x):  # full of local maxima, so that the start decides
        return torch.sin(60 * x).sum(dim=(1, 2, 3))

    one, five = (ripples(run(kind(restarts=n), ripples, x, norm="l2")) for n in (1, 5))
    assert (five >= one).all()  # the first restart draws the same start
    assert (five > one).any()


def test_the_normal_start_is_a_thousandth_of_a_standard_normal():
    x = images(low=0.4, high=0.6, count=500)
    start = PGD(1, 0.0, iterate="last", start="normal").perturb(
        Linear(), x, threat_model=ThreatModel("linf", 0.1), generator=generator()
    )
    assert (start - x).std().item() == pytest.approx(0.001, rel=0.02)
    assert (start - x).mean().item() == pytest.approx(0, abs=2e-5)


def test_only_the_first_restart_is_beside_the_image():
    x = images(low=0.4, high=0.6, count=50)

    def distance(x_adv):
        return (x_adv - x).abs().amax(dim=(1, 2, 3))

    for restarts, low, high in ((1, 0.0, 0.01), (2, 0.05, 0.1)):
        x_adv = PGD(1, 0.0, restarts=restarts).perturb(
            distance, x, threat_model=ThreatModel("linf", 0.1), generator=generator()
        )
        assert (distance(x_adv) > low).all()
        assert (distance(x_adv) <= high + 1e-12).all()


# --- Auto-PGD -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 5, 10, 20, 50, 100, 333, 1000])
def test_checkpoints_follow_the_papers_recurrence(steps):
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    expected = {math.ceil(share * steps) for share in p[1:] if share <= 1}
    assert set(checkpoints_of(steps)) == expected


def algorithm_1(f, gradient_of, x, start, *, epsilon, steps):
    """Croce & Hein's Algorithm 1 for one image and L-inf, line by line, in numpy."""

    def project(z):
        return np.clip(z, np.maximum(x - epsilon, 0), np.minimum(x + epsilon, 1))

    eta, etas = 2 * epsilon, [2 * epsilon]
    previous, current = start, project(start + eta * np.sign(gradient_of(start)))
    best = current if f(current) > f(start) else start
    best_at, rises = [f(start)], [f(current) > f(start)]
    checkpoints = [0, *checkpoints_of(steps)]
    for k in range(1, steps):
        if k in checkpoints:
            span = k - checkpoints[checkpoints.index(k) - 1]
            condition_1 = sum(rises[-span:]) < 0.75 * span
            condition_2 = eta == etas[-1] and f(best) == best_at[-1]
            etas, best_at = [*etas, eta], [*best_at, f(best)]
            if condition_1 or condition_2:
                eta, current = eta / 2, best
        z = project(current + eta * np.sign(gradient_of(current)))
        move = 0.75 * (z - current) + 0.25 * (current - previous)
        previous, current = current, project(current + move)
        rises.append(f(current) > f(previous))
        best = current if f(current) > f(best) else best
    return best


@pytest.mark.parametrize("steps", [2, 10, 37, 100])
def test_auto_pgd_is_the_published_algorithm(steps):
    x = images(low=0.3, high=0.7, count=20)
    w = Linear().w.detach()
    x_adv = run(APGDAttack(steps=steps), lambda x: (w * torch.sin(25 * x)).sum(dim=(1, 2, 3)), x)
    starts = ThreatModel("linf", 0.1).random_start(x, generator=generator())
    w = w.numpy()
    for ours, image, start in zip(x_adv.numpy(), x.numpy(), starts.numpy(), strict=True):
        exact = algorithm_1(
            lambda x: (w * np.sin(25 * x)).sum(),
            lambda x: 25 * w * np.cos(25 * x),
            image,
            start,
            epsilon=0.1,
            steps=steps,
        )
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-9)


@every_norm
def test_halving_the_step_size_comes_closer_to_a_top_than_any_fixed_step(norm):
    x = images(low=0.3, high=0.7)
    loss_fn = hill(x + 0.013)
    apgd = loss_fn(run(APGDAttack(steps=100), loss_fn, x, norm=norm, epsilon=0.2))
    for step_size in (0.4, 0.1, 0.05):
        attack = PGDAttack(steps=100, step_size=step_size)
        pgd = loss_fn(run(attack, loss_fn, x, norm=norm, epsilon=0.2))
        assert (apgd > pgd).all()


def test_each_image_has_a_step_size_of_its_own():
    x = images(low=0.3, high=0.7)
    # The first image's top is at a corner of the ball, the others' are inside it.
    tops = x + 0.013
    tops[0] = x[0] + 0.2
    loss_fn = hill(tops)
    x_adv = run(APGDAttack(steps=100), loss_fn, x, epsilon=0.2)
    torch.testing.assert_close(x_adv[0], tops[0])
    torch.testing.assert_close(x_adv[1:], tops[1:], rtol=0, atol=0.01)


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(adap.core.attacks.apgd) == (0, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PGD(0, 0.1), "at least 1 step"),
        (lambda: PGD(1, 0.1, restarts=0), "1 restart"),
        (lambda: PGD(1, math.nan), "step_size"),
        (lambda: APGD(1), "at least 2 steps"),
        (lambda: Square(0), "at least 1 query"),
    ],
)
def test_settings_that_cannot_run_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
