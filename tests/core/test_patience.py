"""The judge: each image alone, attacked without patience, and stopped by hand."""

import pytest
import torch

from adap.core.attacks.apgd import APGD
from adap.core.attacks.base import BESIDE, PerImage
from adap.core.attacks.patience import with_patience
from adap.core.attacks.pgd import PGD
from adap.core.attacks.registry import build_attack
from adap.core.attacks.square import Square
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.attacks import APGDAttack, PGDAttack, SquareAttack
from adap.core.config.threats import Threat
from adap.core.errors import ConfigError

LINF = ThreatModel("linf", 0.1)
COUNT = 7


def generator():
    return torch.Generator().manual_seed(0)


def images():
    return torch.rand(COUNT, 2, 5, 5, dtype=torch.float64, generator=generator())


def bumpy(x, frequency):
    """Many tops, the more the higher the frequency: steps overshoot, and images stall in turn."""
    waves = torch.sin(frequency.view(-1, 1, 1, 1) * (x - 0.3))
    return (waves * torch.linspace(0.5, 1.5, 25, dtype=x.dtype).view(5, 5)).sum(dim=(1, 2, 3))


FREQUENCY = torch.linspace(1, 60, COUNT, dtype=torch.float64)


class Watched:
    """The bumpy loss, and what it was shown."""

    def __init__(self):
        self.shown = []
        self.loss = PerImage(self.look, FREQUENCY)

    def look(self, x, frequency):
        self.shown.append((x.detach().clone(), frequency))
        return bumpy(x, frequency)


def calls_until_dropped(losses, patience):
    """The rule, written out: looked at every quarter of the patience."""
    best, waited = -torch.inf, 0
    for call, loss in enumerate(losses, start=1):
        waited = 0 if loss > best else waited + 1
        best = max(best, loss)
        if call % max(patience // 4, 1) == 0 and waited >= patience:
            return call
    return len(losses)


BUILDERS = {
    "pgd": lambda patience: PGD(30, 0.03, patience=patience),
    "apgd": lambda patience: APGD(30, patience=patience),
    "square": lambda patience: Square(60, patience=patience),
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("patience", [1, 3, 9])
def test_an_image_is_attacked_as_if_alone_and_stops_when_its_loss_has_not_risen(name, patience):
    attack, x = BUILDERS[name], images()
    all_along, patient = Watched(), Watched()
    attack(None).perturb(all_along.loss, x, threat_model=LINF, generator=generator())
    found = attack(patience).perturb(patient.loss, x, threat_model=LINF, generator=generator())

    shown = torch.stack([x_adv for x_adv, _ in all_along.shown])  # (calls, B, C, H, W)
    losses = torch.stack([bumpy(x_adv, FREQUENCY) for x_adv in shown])
    stops = [calls_until_dropped(losses[:, i].tolist(), patience) for i in range(COUNT)]
    assert min(stops) < len(losses)
    for i, stop in enumerate(stops):
        best = shown[losses[:stop, i].argmax(), i]
        torch.testing.assert_close(found[i], best, rtol=0, atol=BESIDE)  # of a wall
        times = sum((frequency == FREQUENCY[i]).any().item() for _, frequency in patient.shown)
        assert times == stop


@pytest.mark.parametrize("name", BUILDERS)
def test_patience_beyond_the_steps_changes_nothing(name):
    x = images()
    ends = [
        BUILDERS[name](patience).perturb(
            Watched().loss, x, threat_model=LINF, generator=generator()
        )
        for patience in (None, 1000)
    ]
    assert torch.equal(*ends)


def test_every_restart_begins_with_all_images():
    x = images()
    for attack in (PGD(20, 0.03, restarts=2, patience=2), APGD(20, restarts=2, patience=2)):
        watched = Watched()
        attack.perturb(watched.loss, x, threat_model=LINF, generator=generator())
        sizes = [len(x_adv) for x_adv, _ in watched.shown]
        starts = [i for i in range(1, len(sizes)) if sizes[i] > sizes[i - 1]]
        assert len(starts) == 1
        assert sizes[starts[0]] == COUNT
        assert min(sizes) < COUNT


def test_the_last_iterate_of_a_dropped_image_is_where_it_stopped():
    x, watched = images(), Watched()
    attack = PGD(30, 0.03, iterate="last", patience=3)
    found = attack.perturb(watched.loss, x, threat_model=LINF, generator=generator())
    for i in range(COUNT):
        last, (frequency,) = [
            (x_adv[frequency == FREQUENCY[i]][0], frequency[frequency == FREQUENCY[i]])
            for x_adv, frequency in watched.shown
            if (frequency == FREQUENCY[i]).any()
        ][-1]
        last.requires_grad_()
        (gradient,) = torch.autograd.grad(bumpy(last[None], frequency).sum(), last)
        one_step_on = LINF.project(last.detach() + 0.03 * gradient.sign(), x[i])
        torch.testing.assert_close(found[i], one_step_on)


def test_the_last_iterates_of_two_restarts_compete_dropped_or_not():
    x, watched = images(), Watched()
    attack = PGD(30, 0.03, restarts=2, iterate="last", patience=3)
    found = attack.perturb(watched.loss, x, threat_model=LINF, generator=generator())
    # Each restart ends with a look at all images, after others at ever fewer.
    sizes = [len(x_adv) for x_adv, _ in watched.shown]
    ends = [
        watched.shown[i][0]
        for i in range(1, len(sizes))
        if sizes[i] == COUNT and sizes[i - 1] < COUNT
    ]
    ends = torch.stack(ends[:1] + ends[-1:])
    losses = torch.stack([bumpy(end, FREQUENCY) for end in ends])
    assert torch.equal(found, ends[losses.argmax(dim=0), torch.arange(COUNT)])


def test_a_loss_that_is_always_nan_is_given_up_on():
    shown = []

    def nan_on_the_first(x, scale):
        shown.append(len(x))
        return scale * x.sum(dim=(1, 2, 3))

    scale = torch.ones(COUNT, dtype=torch.float64)
    scale[0] = torch.nan
    loss_fn = PerImage(nan_on_the_first, scale)
    x_adv = PGD(6, 0.01, patience=2).perturb(
        loss_fn, images(), threat_model=LINF, generator=generator()
    )
    assert x_adv.isfinite().all()
    assert shown == [COUNT] * 2 + [COUNT - 1] * 5


def test_when_no_image_is_left_nothing_is_computed():
    shown = []

    def flat(x, _):
        shown.append(len(x))
        return x.sum(dim=(1, 2, 3)) * 0

    loss_fn = PerImage(flat, torch.zeros(COUNT))
    for attack in (PGD(20, 0.01, patience=2), APGD(20, patience=2), Square(20, patience=2)):
        attack.perturb(loss_fn, images(), threat_model=LINF, generator=generator())
    assert shown == [COUNT] * 9


@pytest.mark.parametrize("name", BUILDERS)
def test_a_loss_that_cannot_be_asked_about_some_images_is_refused(name):
    def loss_fn(x):
        return bumpy(x, FREQUENCY)

    with pytest.raises(ConfigError, match=r"PerImage.*patience, got function"):
        BUILDERS[name](3).perturb(loss_fn, images(), threat_model=LINF, generator=generator())
    assert with_patience(loss_fn, None) is loss_fn


def test_no_patience_at_all_is_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        PGD(5, 0.1, patience=0).perturb(
            Watched().loss, images(), threat_model=LINF, generator=generator()
        )


@pytest.mark.parametrize(
    "attack", [PGDAttack(patience=5), APGDAttack(patience=5), SquareAttack(patience=5)]
)
def test_patience_can_be_asked_for(attack):
    assert build_attack(attack, Threat()).patience == 5
    assert build_attack(attack.model_copy(update={"patience": None}), Threat()).patience is None
