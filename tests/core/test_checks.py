"""The judges: honest networks, which must pass, and networks made to fool attacks, which must not.

Every fooling network is an honest one behind a disguise, and each test names the checks that have
to see through it. Handwritten digits of scikit-learn, 8x8: 3, 5 and 8 against the others.
"""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional as F

from adap import rounding
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.checks.check import check_audit, planned_passes
from adap.core.audit.checks.judging import status_of
from adap.core.audit.checks.verdicts import merge
from adap.core.config.attacks import (
    PRESETS,
    APGDAttack,
    FGSMAttack,
    NoiseAttack,
    PGDAttack,
    SquareAttack,
    TransferAttack,
)
from adap.core.config.threats import Threat
from adap.core.figures.ranking import floor_ap
from adap.core.report import Check
from tests.conftest import REPOSITORY

EPSILON = 0.1
THREAT = Threat(epsilon=EPSILON)
CPU = torch.device("cpu")
NAMES = [
    "units",
    "converged",
    "restarts",
    "reaches_floor",
    "noise_weaker",
    "black_box_weaker",
    "monotone",
    "gradients",
    "gradient_predicts",
    "repeatable",
    "batch_independent",
    "eight_bit",
]


@cache
def digits():
    """(1797, 1, 8, 8) uint8 and (1797,) targets; the first 1200 are for training."""
    data = load_digits()
    images = (data.images * 15).round().astype(np.uint8)[:, None]
    return images, np.isin(data.target, (3, 5, 8)).astype(np.int64)


def held_out():
    images, targets = digits()
    return images[1200:], targets[1200:]


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 1),
        nn.Flatten(0),
    )


@cache
@torch.enable_grad()  # a disguise may ask for it while it is scored
def trained(build, *, robust=False, seed=0):
    """Cross-entropy, on clean images or on those of a few steps of PGD."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build()
    generator = torch.Generator().manual_seed(seed)
    images, targets = digits()
    pixels, labels = torch.tensor(images[:1200]).float() / 255, torch.tensor(targets[:1200])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(10):
        for rows in torch.randperm(1200, generator=generator).split(64):
            x, y = pixels[rows], labels[rows].float()
            if robust:
                x = attacked(network, x, y, generator=generator)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(x), y).backward()
            optimizer.step()
    return network.eval()


def attacked(network, x, y, *, generator):
    with attacking(network):
        return PGD(3, EPSILON / 2, iterate="last").perturb(
            lambda x: (1 - 2 * y) * network(x),
            x,
            threat_model=ThreatModel("linf", EPSILON),
            generator=generator,
        )


class Disguised(nn.Module):
    """An honest network behind a function of it and the image."""

    def __init__(self, disguise, network=None):
        super().__init__()
        self.network = trained(small_cnn) if network is None else network
        self.disguise = disguise

    def forward(self, x):
        return self.disguise(self.network, x)


def audit(scorer, data=None, **changes):
    images, targets = held_out() if data is None else data
    settings = {
        "threat": THREAT,
        "attacks": PRESETS["quick"],
        "level": "quick",
        "surrogate": None,
        "seed": 0,
        "batch_size": 128,
        "device": CPU,
        "on_progress": lambda done: None,
    } | changes
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # behind the networks that draw random numbers
        found = check_audit(scorer, images, targets, **settings)
    assert [check.name for check in found] == NAMES
    assert all(np.isfinite(value) for check in found for value in check.figures.values())
    return {check.name: check for check in found}


def verdict(found):
    return merge({"truck": list(found.values())}).verdict


def failed(found):
    return {name for name, check in found.items() if check.status == "fail"}


# --- honest networks ------------------------------------------------------------------------------


def assert_all_pass(found):
    assert {check.status for check in found.values()} == {"pass"}, found
    assert verdict(found) == "trustworthy"


@pytest.mark.slow
@pytest.mark.parametrize("threat", [THREAT, Threat(norm="l2", epsilon=0.5)], ids=["linf", "l2"])
@pytest.mark.parametrize(
    ("build", "robust"), [(linear, False), (small_cnn, False), (small_cnn, True)]
)
def test_honest_networks_are_trustworthy(build, robust, threat):
    surrogate = trained(small_cnn, seed=1)
    assert_all_pass(audit(trained(build, robust=robust), threat=threat, surrogate=surrogate))


@pytest.mark.slow
@pytest.mark.parametrize(("build", "robust"), [(linear, False), (small_cnn, True)])
def test_honest_networks_are_trustworthy_to_a_closer_look(build, robust):
    network = trained(build, robust=robust)
    assert_all_pass(audit(network, attacks=PRESETS["standard"], level="full"))


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [2 / 255, 8 / 255, 0.25])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e30])
def test_neither_the_size_of_the_budget_nor_the_unit_of_the_logits_matters(epsilon, scale):
    network = Disguised(lambda network, x: scale * network(x))
    assert verdict(audit(network, threat=Threat(epsilon=epsilon))) == "trustworthy"


@pytest.mark.slow
def test_the_paper_preset_is_trustworthy_on_an_honest_network():
    found = audit(
        trained(small_cnn, robust=True),
        threat=Threat(),
        attacks=PRESETS["paper"],
        surrogate=trained(small_cnn),
    )
    assert verdict(found) == "trustworthy"


def test_a_probability_that_does_not_saturate_is_as_good_as_a_logit():
    assert verdict(audit(Disguised(lambda network, x: network(x).sigmoid()))) == "trustworthy"


def test_the_figures_are_those_of_scikit_learn_and_of_the_closed_form():
    network = trained(linear)
    images, targets = held_out()
    # Up to 128 of each class: all 171 positives and 426 negatives are more than that.
    found = audit(network, attacks=[APGDAttack(steps=20)], level="full")
    rows = np.sort(
        np.concatenate(
            [
                np.flatnonzero(targets == y)[
                    np.linspace(0, (targets == y).sum() - 1, 128).round().astype(int)
                ]
                for y in (0, 1)
            ]
        )
    )
    x, y = torch.tensor(images[rows]).float() / 255, targets[rows]
    w = network[1].weight.detach().view(1, 1, 8, 8)
    signs = torch.tensor(1 - 2 * y).view(-1, 1, 1, 1)
    worst = (x + EPSILON * signs * w.sign()).clamp(0, 1)  # exact: every pixel to its end
    with torch.no_grad():
        clean, exact = network(x).numpy(), network(worst).numpy()
    figures = found["converged"].figures
    assert figures["ap"] == pytest.approx(average_precision_score(y, exact), abs=1e-3)
    drop = ((2 * y - 1) * (clean - exact)).mean()
    assert figures["margin_drop"] == pytest.approx(drop, rel=1e-5)
    assert found["monotone"].figures["ap_clean"] == pytest.approx(average_precision_score(y, clean))
    assert found["reaches_floor"].figures["floor"] == pytest.approx(floor_ap(128, 256))
    assert found["reaches_floor"].figures["ap"] == pytest.approx(floor_ap(128, 256))


@pytest.mark.parametrize("positives", [2, 5])
def test_few_positives_are_reason_for_caution(positives):
    images, targets = held_out()
    kept = np.sort(
        np.concatenate([np.flatnonzero(targets == 0), np.flatnonzero(targets)[:positives]])
    )
    found = audit(trained(small_cnn), (images[kept], targets[kept]))
    assert verdict(found) == "caution"
    assert f"with {positives} positives" in found["converged"].message


# --- networks made to fool attacks ----------------------------------------------------------------


def resized(network, x):
    """Xie et al. (2018): each batch is shrunk by a random factor and padded."""
    side = int(torch.randint(6, 9, ()))
    small = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return network(F.pad(small, (0, 8 - side, 0, 8 - side)))


def batch_normalised(network, x):
    features = network[:2](x)
    return network[2:](F.batch_norm(features, None, None, training=True))


def blind_to_bright_borders(network, x):
    """Digits have black borders: once they are bright, no gradient gets through."""
    bright = x[..., [0, -1]].amax(dim=(1, 2, 3)) > 0.7 * EPSILON
    return network(torch.where(bright.view(-1, 1, 1, 1), x.detach(), x))


def sensitive_off_the_grid(network, x):
    """Between two levels of a pixel, every image looks like its opposite."""
    logits = network(x)
    off = (torch.pi * 255 * x).sin().square().mean(dim=(1, 2, 3))
    return logits - 10 * off * logits.sign()


def stepped(h):
    """Rounded down to eighths by a remainder, whose gradient cancels that of h."""
    return h - h.fmod(torch.tensor(1 / 8))


class Remembers(nn.Module):
    """Every call moves the scores a little further."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return trained(small_cnn)(x) * (1 + 0.1 * self.calls)


FOOLING = {
    "a saturated sigmoid": (lambda network, x: (50 * network(x)).sigmoid(), {"gradients"}),
    "a step for a sigmoid": (
        lambda network, x: (1e4 * network(x)).tanh(),
        {"gradients", "noise_weaker", "reaches_floor"},
    ),
    "quantised pixels": (
        lambda network, x: network((x * 15).round() / 15),
        {"gradients", "noise_weaker", "black_box_weaker", "reaches_floor"},
    ),
    "a staircase of logits": (
        lambda network, x: (network(x) * 2).round() / 2,
        {"gradients", "noise_weaker", "black_box_weaker", "reaches_floor"},
    ),
    "a staircase that leaks": (
        lambda network, x: (network(x) * 2).round() / 2 + 1e-3 * (1e3 * network(x)).sin(),
        {"converged", "restarts"},
    ),
    "a fast sine": (
        lambda network, x: network(x) + (100 * network(x)).sin(),
        {"converged", "restarts", "eight_bit"},
    ),
    "gradients that point backwards": (
        lambda network, x: 2 * network(x).detach() - network(x),
        {"noise_weaker", "black_box_weaker", "reaches_floor"},
    ),
    "gradients that are NaN": (
        # 0 times the infinite slope of a root of nothing
        lambda network, x: network(x) + 0 * (x - x.detach()).sqrt().sum(dim=(1, 2, 3)),
        {"gradients"},
    ),
    "gradients that end in a larger ball": (blind_to_bright_borders, {"monotone"}),
    "random noise": (lambda network, x: network(x + 0.1 * torch.randn_like(x)), {"repeatable"}),
    "a random resize": (resized, {"repeatable"}),
    "dropout that stays on": (
        lambda network, x: network(F.dropout(x, 0.3, training=True)),
        {"repeatable"},
    ),
    "BatchNorm in train mode": (batch_normalised, {"batch_independent"}),
    "BatchNorm over the logits": (
        lambda network, x: F.batch_norm(network(x)[:, None], None, None, training=True)[:, 0],
        {"batch_independent"},
    ),
    "more than 8 bits": (sensitive_off_the_grid, {"eight_bit"}),
    "a network whose half is detached": (
        lambda network, x: network(x) + trained(small_cnn, seed=1)(x.detach()),
        {"gradient_predicts"},
    ),
    "a network in steps beside a linear one": (
        lambda network, x: network[2:](stepped(network[:2](x))) + trained(linear)(x),
        {"gradient_predicts"},
    ),
    "steps of pixels beside themselves": (
        lambda network, x: network((x + (x * 31).round() / 31) / 2),
        {"gradient_predicts"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("disguise", "named"), FOOLING.values(), ids=FOOLING)
def test_a_network_made_to_fool_attacks_is_caught_by_name(disguise, named):
    found = audit(Disguised(disguise), batch_size=64)
    assert verdict(found) == "not trustworthy"
    assert failed(found) >= named, found


def test_terms_too_fast_to_follow_are_named_though_the_gradient_is_true():
    """Nothing is hidden, but an average of gradients finds what the search by each one does not."""
    signs = torch.randn(64, generator=torch.Generator().manual_seed(0)).sign()

    def waves(network, x):
        return network(x) + 0.005 * ((200 * x.flatten(1)).sin() * signs).sum(dim=1)

    found = audit(Disguised(waves))["gradient_predicts"]
    assert found.status == "fail"
    assert found.figures["correlation"] > 0.99
    assert found.figures["averaged_wins"] > 0.15
    assert "turns faster than a search follows it" in found.message
    patched = audit(Disguised(waves), threat=Threat(norm="patch", epsilon=2))["gradient_predicts"]
    assert patched.status != "pass"
    assert patched.figures["averaged_further"] > 0.1  # 0.17 measured
    plain = audit(trained(small_cnn))["gradient_predicts"]
    assert plain.figures["averaged_wins"] == 0


class Rough(nn.Module):
    """Layer upon layer of absolute values, at random: its gradient turns within a level."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = [torch.randn(64, 64, generator=generator) / 8 for _ in range(8)]

    def forward(self, x):
        h = x.flatten(1) - 0.5
        for layer in self.layers:
            h = (h @ layer).abs()
            h = F.layer_norm(h, (64,))
        return h[:, 0]


def test_a_rough_network_is_no_hidden_one():
    """Steps of a whole level bend, as those of an untrained ResNet-50 do; nearer ones do not."""
    network, epsilon = Rough(), 8 / 255
    images, _ = held_out()
    x = (torch.tensor(images[:96]).float() / 255).clamp(epsilon, 1 - epsilon).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign() / 255
    with torch.no_grad():
        seen = (network(x + d) - network(x - d)) / 2
    foretold = (gradient * d).flatten(1).sum(1)
    assert F.cosine_similarity(foretold, seen, dim=0) < 0.8
    found = audit(network, threat=Threat(epsilon=epsilon))["gradient_predicts"]
    assert found.status == "pass", found


class Stored(nn.Module):
    """Pixels cast to bytes, with a gradient straight through, as networks for chips are trained."""

    def __init__(self, share=1.0):
        super().__init__()
        self.network, self.share = trained(small_cnn), share

    def forward(self, x):
        stored = (x * 255).to(torch.uint8).float() / 255
        return self.network(x + self.share * (stored - x).detach())


class Shortened(torch.autograd.Function):
    """Whose gradient is a tenth of what it should be."""

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient / 10


@pytest.mark.parametrize("epsilon", [2 / 255, EPSILON])
def test_bytes_with_a_gradient_straight_through_are_foretold_by_whole_levels(epsilon):
    found = audit(Stored(), threat=Threat(epsilon=epsilon))["gradient_predicts"]
    assert found.status == "pass", found


@pytest.mark.slow
def test_a_gradient_that_is_too_short_misleads_no_attack_but_that_of_a_branch_does():
    whole = Disguised(lambda network, x: Shortened.apply(network(x)))
    found = audit(whole)
    assert found["gradient_predicts"].status == "pass"
    assert found["gradient_predicts"].figures["slope"] == pytest.approx(0.1, rel=0.05)
    assert verdict(found) == "trustworthy"
    second = trained(small_cnn, seed=1)
    branch = Disguised(lambda network, x: network(x) + Shortened.apply(second(x)))
    assert "gradient_predicts" in failed(audit(branch))


def test_scores_told_apart_by_the_arithmetic_of_float32_alone_are_a_caution():
    """As those of an untrained EfficientNet: all are 0.7, and no gradient foretells their noise."""
    noisy = Disguised(
        lambda network, x: 0.7 + 1e-7 * (1e4 * x.flatten(1).sum(1)).sin() + 0 * network(x)
    )
    found = audit(noisy)["gradient_predicts"]
    assert found.status == "caution"
    assert "to float32, where scores are nearly all alike" in found.message


@pytest.mark.parametrize(
    "rounded",
    [
        lambda network, x: network(x).bfloat16().float(),
        lambda network, x: network(x).half().float(),
        lambda network, x: (network(x) + 1e6) - 1e6,
    ],
    ids=["bfloat16", "float16", "digits lost in float32"],
)
@pytest.mark.parametrize("epsilon", [2 / 255, EPSILON])
def test_a_rounded_output_whose_gradient_is_whole_is_a_caution_at_most(rounded, epsilon):
    found = audit(Disguised(rounded), threat=Threat(epsilon=epsilon))
    assert found["gradients"].status == "caution"
    assert "the output is rounded" in found["gradients"].message
    assert verdict(found) == "caution"


class Stepped(nn.Module):
    """The small network with its first activations in steps, followed straight through."""

    rounds = True

    def __init__(self, step, *, beside=0.0):
        super().__init__()
        self.network, self.step, self.beside = trained(small_cnn), step, beside

    def without_rounding(self):
        return rounding.left_out()

    def forward(self, x):
        first = self.network[1](self.network[0](x))
        whole = self.network[2:](rounding.floor(first / self.step) * self.step)
        return whole + self.beside * self.network(x.detach().flip(3))


@pytest.mark.parametrize(
    ("step", "beside", "status"), [(1 / 8, 0, "pass"), (1.0, 0, "caution"), (1 / 8, 1, "fail")]
)
def test_a_gradient_straight_through_is_judged_by_what_it_is_the_gradient_of(step, beside, status):
    """In steps of an eighth the ranking is that of the network; in whole steps it is another."""
    network = Stepped(step, beside=beside).eval()
    found = audit(network)["gradient_predicts"]
    judged = ("correlation", "slope", "slope_path_high", "unrounded")  # averaged steps: by chance
    assert status_of(found.figures, {of: found.limits[of] for of in judged}) == status
    images, _ = held_out()
    x = torch.tensor(images).float() / 255
    with torch.no_grad():
        exact, smooth = network(x), trained(small_cnn)(x)
    if not beside:
        expected = np.corrcoef(exact, smooth)[0, 1]
        assert abs(found.figures["unrounded"] - expected) < 0.03  # of the sample, not of all
        assert "followed straight through" in found.message
    assert "unrounded" not in audit(trained(small_cnn))["gradient_predicts"].figures


def test_the_figures_of_gradient_predicts_are_those_of_a_slope_known_beforehand():
    # A third of the logit is hidden: two thirds of every change are foretold, all in proportion.
    network = Disguised(lambda network, x: 2 * network(x) + network(x.detach()), trained(linear))
    figures = audit(network)["gradient_predicts"].figures
    assert figures["correlation"] == pytest.approx(1, abs=1e-4)
    assert figures["slope_path"] == pytest.approx(1, abs=1e-4)
    assert figures["slope"] == pytest.approx(2 / 3, abs=1e-4)


def test_one_batch_that_holds_the_whole_sample_hides_nothing():
    # Another order of the same batch changes nothing: only images scored alone tell.
    check = audit(Disguised(batch_normalised), batch_size=128)["batch_independent"]
    assert check.status == "fail"
    assert check.figures["largest_change_shuffled"] < 1e-4 < check.figures["largest_change_alone"]


def test_a_network_that_remembers_is_caught():
    assert "repeatable" in failed(audit(Remembers()))


def test_logits_so_large_that_cross_entropy_saturates_are_caught_where_it_is_ascended():
    network = Disguised(lambda network, x: 1e3 * network(x))
    assert verdict(audit(network, attacks=[APGDAttack()])) == "trustworthy"
    assert "gradients" in failed(audit(network, attacks=[APGDAttack(loss="bce")]))


def test_a_surrogate_gets_past_gradients_that_point_backwards():
    backwards = Disguised(lambda network, x: 2 * network(x).detach() - network(x))
    check = audit(backwards, surrogate=trained(small_cnn, seed=1))["black_box_weaker"]
    assert check.status == "fail"
    assert "`transfer`" in check.message
    assert check.figures["transfer_wins"] > 0.9


def test_a_black_box_that_wins_image_by_image_is_noticed_while_ap_hardly_moves():
    backwards = Disguised(lambda network, x: 2 * network(x).detach() - network(x))
    check = audit(backwards, threat=Threat(epsilon=6 / 255))["black_box_weaker"]
    assert check.figures["ap_white_box"] - check.figures["ap_square"] < 1 / 48  # one positive's
    assert check.status == "fail"  # measured: Square is stronger on 79 % of the images


@pytest.mark.slow
def test_a_search_over_places_is_not_blamed_for_single_images_but_for_hidden_damage():
    # Three pixels of 64: 200 queries come close to trying all that there are.
    threat, attacks = Threat(norm="l0", epsilon=3), [APGDAttack(steps=50)]
    honest = audit(trained(small_cnn), threat=threat, attacks=attacks, level="full")
    averaged = audit(trained(small_cnn), threat=threat)["gradient_predicts"]
    assert averaged.figures["averaged_wins"] > 0.1
    assert averaged.figures["averaged_further"] < 0
    assert averaged.status == "pass"
    check = honest["black_box_weaker"]
    assert check.figures["square_wins"] > 0.05
    assert check.status == "pass"
    assert failed(honest) == set()
    hiding = Disguised(lambda network, x: network((x * 15).round() / 15))
    check = audit(hiding, threat=threat, attacks=attacks)["black_box_weaker"]
    assert check.status == "fail"
    assert check.figures["square_further"] > 0.5


@pytest.mark.slow
def test_a_black_box_too_short_for_the_images_is_a_caution_of_quick_checks_alone():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(64, 192, (24, 3, 32, 32), generator=generator, dtype=torch.uint8).numpy()
    weights = torch.randn(images[0].size, generator=generator) / 10
    network = Disguised(lambda _, x: (x - 0.5).flatten(1) @ weights)
    targets = (images.reshape(24, -1) / 255 - 0.5) @ weights.double().numpy()
    data = images, (targets > np.median(targets)).astype(np.int64)
    # The best step moves a linear logit by epsilon times the sum of the weights' sizes.
    best = EPSILON * weights.abs().sum().item()
    for level, status in (("quick", "caution"), ("full", "pass")):
        check = audit(network, data, level=level)["black_box_weaker"]
        assert check.status == status
        assert check.figures["margin_drop"] == pytest.approx(best, rel=0.01)
        share = check.figures["margin_drop_square"] / best
        assert check.figures["square_share"] == pytest.approx(share, rel=0.01)
        assert share < 0.2
        assert ("too short" in check.message) == (level == "quick")


def test_the_message_says_what_was_found_and_what_to_do():
    found = audit(Disguised(lambda network, x: network((x * 15).round() / 15)))
    assert found["gradients"].message == (
        "The gradients of 100% of the positives are exactly zero, so attacks that follow them see "
        "nothing: audit the network before its sigmoid or its rounding, or trust `square` only."
    )


@pytest.mark.slow
def test_scores_that_do_not_hold_still_make_the_other_figures_fuzzy():
    found = audit(Disguised(lambda network, x: network(x + 0.1 * torch.randn_like(x))))
    assert found["batch_independent"].status == "skipped"
    assert "fuzzy" in found["monotone"].message
    assert "fuzzy" not in found["repeatable"].message + found["units"].message
    assert not any("fuzzy" in check.message for check in audit(trained(small_cnn)).values())


def test_a_little_noise_is_reason_for_caution():
    found = audit(Disguised(lambda network, x: network(x + 0.001 * torch.randn_like(x))))
    assert found["repeatable"].status == "caution"
    assert verdict(found) == "caution"


# --- scores that are no numbers -------------------------------------------------------------------


def test_logits_that_overflow_fail_every_check_that_meets_them():
    found = audit(Disguised(lambda network, x: 1e38 * network(x)))
    assert failed(found) == set(NAMES) - {"units"}
    assert "score NaN or infinity" in found["gradients"].message


def test_nan_under_attack_alone_fails_the_checks_that_see_it():
    def breaks(network, x):
        on_grid = (255 * x - (255 * x).round()).abs().amax(dim=(1, 2, 3)) < 0.01
        return torch.where(on_grid, network(x), torch.nan)

    found = audit(Disguised(breaks))
    assert found["noise_weaker"].figures == {"not_finite": 96.0}
    assert "repeatable" not in failed(found)
    assert verdict(found) == "not trustworthy"


# --- audits that look too little ------------------------------------------------------------------


@pytest.mark.slow
def test_an_audit_that_follows_no_gradient_has_not_looked():
    network = trained(small_cnn)
    blind = audit(network, attacks=[NoiseAttack()])["converged"]
    assert (blind.status, "none that searches at all" in blind.message) == ("fail", True)
    assert audit(network, attacks=[SquareAttack()])["converged"].status == "caution"


def test_too_few_steps_are_noticed():
    timid = PGDAttack(steps=3, step_size=EPSILON / 10)
    check = audit(trained(small_cnn), attacks=[timid])["converged"]
    assert check.status == "fail"
    assert "more steps" in check.message
    # Cut to the steps of quick checks it looks just as timid, but the audit's own goes on.
    patient = PGDAttack(steps=100, step_size=EPSILON / 100)
    check = audit(trained(small_cnn), attacks=[patient])["converged"]
    assert check.status == "caution"
    assert "goes on to pgd with 100 steps" in check.message


def test_a_further_start_of_pgd_is_anywhere_in_the_ball_and_not_beside_the_image():
    still = PGDAttack(steps=1, step_size=1e-6)  # little more than its start
    figures = audit(trained(small_cnn), attacks=[still])["restarts"].figures
    assert figures["ap"] - figures["ap_two_starts"] > 0.005


def test_one_step_is_compared_with_ten():
    found = audit(trained(small_cnn, robust=True), attacks=[FGSMAttack()])
    assert found["restarts"].status == "skipped"
    assert found["converged"].figures["ap_doubled"] < found["converged"].figures["ap"]
    assert "pgd with 10 steps" in found["converged"].message


def test_an_attack_with_patience_is_examined_too():
    found = audit(trained(linear), attacks=[APGDAttack(steps=10, patience=3)])
    assert_all_pass(found)


def test_the_strongest_attack_is_the_one_examined():
    attacks = [FGSMAttack(), PGDAttack(steps=4), APGDAttack(steps=4), SquareAttack()]
    assert "apgd with 4 steps" in audit(trained(linear), attacks=attacks)["converged"].message
    attacks = [APGDAttack(steps=4), PGDAttack(steps=3, restarts=2)]
    assert "pgd with 3 steps" in audit(trained(linear), attacks=attacks)["converged"].message


@pytest.mark.parametrize(
    ("threat", "status", "words"),
    [
        (Threat(norm="l2", epsilon=8.1), "fail", "covers every image"),  # 8x8 pixels: 8 at most
        (Threat(epsilon=0.6), "caution", "plain grey"),
        (Threat(epsilon=0.3), "caution", "76 of 255 levels"),
        (Threat(epsilon=8 / 255 / 255), "caution", "half a level"),
        (Threat(norm="l2", epsilon=1.0), "pass", "plausible"),
    ],
)
def test_units(threat, status, words):
    check = audit(trained(linear), threat=threat)["units"]
    assert check.status == status
    assert words in check.message


@pytest.mark.parametrize("build", [linear, small_cnn])
@pytest.mark.parametrize("levels", [0.25, 0.4])
def test_an_epsilon_below_half_a_level_is_named_by_units_alone(build, levels):
    found = audit(trained(build), threat=Threat(epsilon=levels / 255))
    assert {name: c.status for name, c in found.items() if c.status != "pass"} == {
        "units": "caution",
        "eight_bit": "skipped",
    }


def test_images_stored_as_zero_and_one_are_noticed():
    images, targets = held_out()
    found = audit(trained(linear), ((images > 120).astype(np.uint8), targets))
    assert found["units"].status == "caution"


def test_nothing_is_attacked_where_no_pixel_may_change():
    found = audit(trained(linear), threat=Threat(epsilon=0.0))
    assert {name for name, check in found.items() if check.status == "pass"} == {
        "units",
        "gradients",
        "repeatable",
        "batch_independent",
    }
    skipped = [check for check in found.values() if check.status == "skipped"]
    assert len(skipped) == 8
    assert all("Epsilon is 0" in check.message for check in skipped)
    assert verdict(found) == "trustworthy"


def test_an_image_that_occurs_twice_may_have_one_score():
    images, targets = held_out()
    doubled = np.repeat(images[:40], 2, axis=0), np.repeat(targets[:40], 2)
    figures = audit(trained(small_cnn), doubled)["gradients"].figures
    assert figures["equal_scores"] == 0


# --- the work -------------------------------------------------------------------------------------


class Counted(nn.Module):
    """Counts the images that pass through, and those whose gradient is asked for."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.forward_passes = self.backward_passes = 0

    def forward(self, x):
        self.forward_passes += len(x)
        self.backward_passes += len(x) * x.requires_grad
        return self.network(x)


@pytest.mark.parametrize(
    ("level", "images", "forward_passes", "backward_passes", "surrogate_passes"),
    [("quick", 96, 144, 79, 11), ("full", 256, 498, 265, 21)],
)
def test_the_cost_is_bounded_and_known_beforehand(
    level, images, forward_passes, backward_passes, surrogate_passes
):
    scorer, surrogate = Counted(trained(linear)), Counted(trained(linear, seed=1))
    attacks = [APGDAttack(steps=200, restarts=3), SquareAttack(queries=9_999), TransferAttack()]
    told = []
    settings = {"threat": THREAT, "attacks": attacks, "level": level}
    audit(scorer, surrogate=surrogate, on_progress=told.append, **settings)
    assert scorer.forward_passes == images * forward_passes
    assert scorer.backward_passes == images * backward_passes
    assert surrogate.forward_passes == images * surrogate_passes
    assert told == sorted(set(told))
    planned = planned_passes(held_out()[1], surrogate=True, **settings)
    assert told[-1] == planned == scorer.forward_passes + surrogate.forward_passes


@pytest.mark.parametrize(
    "attack",
    [
        FGSMAttack(),
        PGDAttack(steps=4),
        PGDAttack(steps=4, iterate="last"),
        APGDAttack(steps=4),
        NoiseAttack(),
    ],
)
@pytest.mark.parametrize("epsilon", [0.0, EPSILON])
def test_the_planned_cost_is_right_for_every_attack(attack, epsilon):
    scorer = Counted(trained(linear))
    settings = {"threat": Threat(epsilon=epsilon), "attacks": [attack], "level": "quick"}
    audit(scorer, **settings)
    planned = planned_passes(held_out()[1], surrogate=False, **settings)
    assert scorer.forward_passes == planned


def test_only_the_sample_is_read_and_it_is_spread_over_the_data_set():
    class Watched:
        def __getitem__(self, rows):
            self.rows = rows
            return images[rows]

    images, targets = digits()
    order = np.argsort(targets, kind="stable")  # all negatives first
    images, targets = images[order], targets[order]
    watched = Watched()
    audit(trained(linear), (watched, targets))
    for y in (0, 1):
        rows, of_class = watched.rows[targets[watched.rows] == y], np.flatnonzero(targets == y)
        assert len(rows) == 48
        assert (rows[0], rows[-1]) == (of_class[0], of_class[-1])
        assert np.ptp(np.diff(rows)) <= 1


def test_what_progress_raises_ends_the_work_and_leaves_the_networks_as_they_were():
    def cancel(done):
        if done > 1000:
            raise KeyboardInterrupt

    scorer, surrogate = small_cnn().train(), small_cnn().train()
    with pytest.raises(KeyboardInterrupt):
        audit(scorer, surrogate=surrogate, on_progress=cancel)
    for network in (scorer, surrogate):
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_left_in_train_mode_is_checked_in_eval_mode():
    network = nn.Sequential(nn.Dropout(0.5), trained(linear)).train()
    assert verdict(audit(network)) == "trustworthy"
    assert network[0].training


@pytest.mark.slow
def test_the_same_seed_gives_the_same_checks():
    network = trained(small_cnn, robust=True)
    assert audit(network) == audit(network)
    assert audit(network) != audit(network, seed=1)


# --- the verdict ----------------------------------------------------------------------------------


def check(name, status, message="m"):
    return Check(name=name, status=status, message=message, figures={"x": 1.0})


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["pass", "pass"], "trustworthy"),
        (["pass", "skipped"], "trustworthy"),
        (["pass", "caution", "skipped"], "caution"),
        (["caution", "fail", "pass"], "not trustworthy"),
    ],
)
def test_the_worst_check_decides(statuses, expected):
    trust = merge({"truck": [check(str(i), status) for i, status in enumerate(statuses)]})
    assert trust.verdict == expected
    assert [c.status for c in trust.checks] == statuses
    assert {c.message for c in trust.checks} == {"m"}


def test_of_several_tasks_the_worst_speaks_for_each_check_and_is_named():
    trust = merge(
        {
            "cat": [check("a", "pass", "fine"), check("b", "skipped", "no surrogate")],
            "dog": [check("a", "caution", "hm"), check("b", "pass", "good")],
            "truck": [check("a", "caution", "hm too"), check("b", "skipped")],
        }
    )
    assert trust.verdict == "caution"
    assert [(c.name, c.status, c.message) for c in trust.checks] == [
        ("a", "caution", "dog: hm"),
        ("b", "pass", "dog: good"),
    ]


def test_every_check_of_a_report_has_a_line_in_the_document():
    text = (REPOSITORY / "docs" / "trust.md").read_text()
    assert [name for name in NAMES if f"| `{name}` |" not in text] == []
