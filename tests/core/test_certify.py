"""The judges: closed forms, linear programs over all patterns of active units, grids, attacks."""

import doctest
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import nn

import adap.core.audit.certify.bounds
from adap.core.attacks.apgd import APGD
from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.certify.bounds import certified_bounds, certified_floor_ap
from adap.core.audit.certify.operations import Interval, LogSumExp
from adap.core.errors import ConfigError, DataError, ModelError
from adap.models.architectures import build
from adap.models.header import InputSpec, OutputSpec
from adap.models.wrappers import Scorer

METHODS = ("ibp", "crown_ibp", "crown")
NORMS = ("linf", "l2")
# Bounds are widened by what float32 can add to a perturbation, 2^-23 + 2^-16 epsilon a pixel, and
# the largest slope here is below 100.
SLACK = 1e-4

every_method = pytest.mark.parametrize("method", METHODS)
every_norm = pytest.mark.parametrize("norm", NORMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=4, shape=(1, 4, 4), *, low=0.0, high=1.0, seed=0):
    pixels = torch.rand(count, *shape, dtype=torch.float64, generator=generator(seed))
    return low + (high - low) * pixels


def randomised(network, seed=0):
    """Weights and BatchNorm statistics that are anything but their initial values, in float64."""
    source = generator(seed)
    network = network.double().eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, dtype=tensor.dtype, generator=source)
            fan_in = max(tensor[0].numel(), 1) if tensor.dim() > 1 else 4
            tensor.copy_(noise.abs() + 0.5 if "var" in name else noise / fan_in**0.5)
    return network


def scorer_of(network, shape, *, kind="logit", classes=None, positive=None):
    channels, height, width = shape
    spec = InputSpec(
        channels=channels, height=height, width=width, mean=[0.4] * channels, std=[0.3] * channels
    )
    output = OutputSpec(kind=kind, classes=classes)
    return Scorer(network, spec, output=output, positive=positive).double().eval()


class Residual(nn.Module):
    """A block with a projected shortcut, in-place operations and what a functional style uses."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.right = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 1, bias=False)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, stride=2, padding=1)
        out = self.norm(self.left(x))
        out += self.right(x)
        return self.head(F.relu_(out).mean((2, 3)))[:, 0]


NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)
        ),
        (1, 4, 4),
    ),
    "pools": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.BatchNorm2d(4, affine=False),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=1, padding=1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 1),
        ),
        (2, 8, 8),
    ),
    "residual": (Residual, (2, 7, 7)),
    "small_cnn": (lambda: build("small_cnn", channels=1, seed=0), (1, 4, 4)),
    "thin_cnn": (lambda: build("thin_cnn", channels=1, seed=0), (1, 8, 8)),
    "uneven windows": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((2, 4)),  # of (3, 5), so that windows overlap
            nn.Flatten(),
            nn.Linear(24, 1),
        ),
        (2, 5, 7),
    ),
    "windows of one row": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((1, 3)),  # of (4, 5), neither of which it divides
            nn.Flatten(),
            nn.Linear(9, 1),
        ),
        (1, 4, 5),
    ),
}
CLASSES = ["a", "b", "c", "d"]
TASKS = {  # of a network with a logit for each class
    "one class of four": {"kind": "multiclass", "positive": ["b"]},
    "two classes of four": {"kind": "multiclass", "positive": ["d", "b"]},
    "three classes of four": {"kind": "multiclass", "positive": ["a", "c", "d"]},
    "one of four labels": {"kind": "multilabel", "positive": ["c"]},
}
every_network = pytest.mark.parametrize("name", [*NETWORKS, *TASKS])


def network_of(name):
    if name in TASKS:
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
        return scorer_of(randomised(network), (1, 4, 4), classes=CLASSES, **TASKS[name]), (1, 4, 4)
    make, shape = NETWORKS[name]
    return scorer_of(randomised(make()), shape), shape


def bounds(scorer, x, *, norm="linf", epsilon=0.05, method="crown"):
    return certified_bounds(scorer, x, threat=ThreatModel(norm, epsilon), method=method)


# --- exact answers --------------------------------------------------------------------------------


@every_norm
@every_method
def test_a_linear_scorer_has_the_bounds_of_the_closed_form(norm, method):
    network = randomised(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)))
    scorer, x = scorer_of(network, (1, 4, 4)), images(low=0.3, high=0.7)  # no pixel meets a wall
    lo, hi = bounds(scorer, x, norm=norm, epsilon=0.2, method=method)
    weight = network[1].weight.flatten() / 0.3
    reach = 0.2 * (weight.abs().sum() if norm == "linf" else weight.norm())
    torch.testing.assert_close(lo, scorer(x) - reach, atol=SLACK, rtol=0)
    torch.testing.assert_close(hi, scorer(x) + reach, atol=SLACK, rtol=0)


@every_method
def test_pixels_stay_between_black_and_white(method):
    network = randomised(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)))
    scorer, x = scorer_of(network, (1, 4, 4)), images()
    lo, hi = bounds(scorer, x, epsilon=0.5, method=method)
    weight = network[1].weight.view(1, 1, 4, 4)
    darkest, brightest = (x - 0.5).clamp_min(0), (x + 0.5).clamp_max(1)
    torch.testing.assert_close(
        lo, scorer(torch.where(weight > 0, darkest, brightest)), atol=SLACK, rtol=0
    )
    torch.testing.assert_close(
        hi, scorer(torch.where(weight > 0, brightest, darkest)), atol=SLACK, rtol=0
    )


@every_norm
def test_the_first_layer_knows_an_l2_ball_exactly(norm):
    # one ReLU that stays active: still linear, so the closed form holds even for intervals
    first = nn.Linear(16, 1)
    scorer = scorer_of(
        randomised(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), first, nn.ReLU())), (1, 4, 4)
    )
    first.bias.data.fill_(50.0)
    x = images(low=0.45, high=0.55)
    lo, hi = bounds(scorer, x, norm=norm, epsilon=0.3, method="ibp")
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(scorer(x).sum(), x)
    reach = 0.3 * (gradient.flatten(1).norm(dim=1, p=2 if norm == "l2" else 1))
    torch.testing.assert_close(hi - lo, 2 * reach, atol=SLACK, rtol=0)


def exact_bounds(network, x, epsilon):
    """The lowest and highest logit of Linear-ReLU-...-Linear: one linear program for each pattern
    of active units, which together cover the box."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    box = [(max(0, p - epsilon), min(1, p + epsilon)) for p in x.flatten().tolist()]
    hidden = sum(layer.out_features for layer in layers[:-1])
    found = []
    for pattern in itertools.product((0, 1), repeat=hidden):
        signs = iter(pattern)
        matrix, offset = np.eye(len(box)) / 0.3, np.full(len(box), -0.4 / 0.3)
        rows, limits = [], []
        for layer in layers:
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            matrix, offset = weight @ matrix, weight @ offset + bias
            if layer is layers[-1]:
                break
            on = np.array([next(signs) for _ in offset])
            rows.append((1 - 2 * on)[:, None] * matrix)  # active: -z <= 0, inactive: z <= 0
            limits.append((2 * on - 1) * offset)
            matrix, offset = on[:, None] * matrix, on * offset
        for sign in (1, -1):
            solved = linprog(
                sign * matrix[0], np.concatenate(rows), np.concatenate(limits), bounds=box
            )
            if solved.status == 0:
                found.append(sign * solved.fun + offset[0])
    return min(found), max(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_bounds_contain_the_exact_range_of_a_tiny_network_and_tighten_by_method(seed):
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)
    )
    scorer = scorer_of(randomised(network, seed), (1, 2, 2))
    x = images(2, (1, 2, 2), seed=seed)
    for epsilon in (0.01, 0.1, 0.4):
        exact = [exact_bounds(network, image, epsilon) for image in x]
        lowest, highest = torch.tensor(exact, dtype=torch.float64).T
        widths = []
        for method in METHODS:
            lo, hi = bounds(scorer, x, epsilon=epsilon, method=method)
            assert (lo <= lowest + 1e-9).all()  # what the solver may be off
            assert (hi >= highest - 1e-9).all()
            widths.append(hi - lo)
        assert (widths[0] >= widths[1]).all()
        assert (widths[1] >= widths[2]).all()
        if epsilon == 0.01:  # hardly a unit changes sign: lines are all but exact
            assert (widths[2] <= 1.5 * (highest - lowest) + SLACK).all()


@every_method
@every_norm
def test_a_dense_grid_finds_nothing_outside_the_bounds_of_a_max_pool(method, norm):
    network = randomised(
        nn.Sequential(
            nn.Conv2d(1, 2, 1), nn.MaxPool2d((1, 2), stride=1), nn.Flatten(), nn.Linear(4, 1)
        ),
        seed=3,
    )
    scorer = scorer_of(network, (1, 1, 3))
    x = images(3, (1, 1, 3), seed=4)
    lo, hi = bounds(scorer, x, norm=norm, epsilon=0.3, method=method)
    axis = torch.linspace(-0.3, 0.3, 25, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, axis)
    if norm == "l2":
        grid = grid[grid.norm(dim=1) <= 0.3]
    for image, low, high in zip(x, lo, hi, strict=True):
        logits = scorer((image + grid.view(-1, 1, 1, 3)).clamp(0, 1))
        assert low <= logits.min()
        assert logits.max() <= high
        if norm == "linf" and method == "crown":
            assert high - low <= 1.6 * (logits.max() - logits.min())


# --- a logit for each class -----------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.0, 1e-9, 0.1, 3.0, 50.0])
@pytest.mark.parametrize("elements", [2, 5])
def test_the_lines_and_intervals_of_logsumexp_hold_in_the_whole_box(elements, width):
    operation = LogSumExp(inputs=(0,), shape=(), input_shape=(elements,))
    source = generator(elements)
    lo = 10 * torch.randn(50, elements, dtype=torch.float64, generator=source)
    hi = lo + width * torch.rand(50, elements, dtype=torch.float64, generator=source)
    box, rows = Interval(lo, hi), torch.arange(50)
    found = operation.interval(box)
    inside = torch.rand(400, 50, elements, dtype=torch.float64, generator=source)
    inside[:200] = inside[:200].round()  # corners
    x = lo + inside * (hi - lo)
    exact = x.exp().sum(dim=2).log()
    assert (found.lo <= exact).all()
    assert (exact <= found.hi).all()
    for sign in (1.0, -1.0):
        a = torch.full((50,), sign, dtype=torch.float64)
        (coefficients,), constant = operation.backward(a, [box], rows)
        gap = sign * exact - (x * coefficients).sum(dim=2) - constant
        assert (gap >= 0).all()
        if width <= 0.1:  # where hardly curved, a line is all but exact
            assert (gap <= width**2 + 1e-10).all()
        # above: never worse than the highest value by more than 1 - log 2
        highest = (torch.where(coefficients < 0, lo, hi) * -coefficients).sum(dim=1) - constant
        if sign < 0:
            assert (highest <= found.hi + 1 - np.log(2) + 1e-9).all()


@every_method
@pytest.mark.parametrize("task", TASKS)
def test_a_dense_grid_finds_nothing_outside_the_bounds_of_a_task_of_classes(task, method):
    network = randomised(
        nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4)), seed=3
    )
    scorer = scorer_of(network, (1, 1, 3), classes=CLASSES, **TASKS[task])
    x = images(3, (1, 1, 3), seed=4)
    for epsilon in (0.02, 0.3):
        lo, hi = bounds(scorer, x, epsilon=epsilon, method=method)
        axis = torch.linspace(-epsilon, epsilon, 25, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis, axis).view(-1, 1, 1, 3)
        for image, low, high in zip(x, lo, hi, strict=True):
            logits = scorer((image + grid).clamp(0, 1))
            assert low <= logits.min()
            assert logits.max() <= high
            if epsilon == 0.02 and method != "ibp":
                assert high - low <= 1.1 * (logits.max() - logits.min())


@every_method
def test_the_margin_of_two_classes_is_that_of_the_difference_as_one_logit(method):
    # what moves both logits alike cancels, except for intervals, which look at one at a time
    network = randomised(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    difference = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double()
    with torch.no_grad():
        network[1].weight += 5.0
        difference[1].weight.copy_(network[1].weight[:1] - network[1].weight[1:])
        difference[1].bias.copy_(network[1].bias[:1] - network[1].bias[1:])
    two = scorer_of(network, (1, 4, 4), kind="multiclass", classes=["yes", "no"], positive=["yes"])
    x = images()
    for ours, expected in zip(
        bounds(two, x, method=method), bounds(scorer_of(difference, (1, 4, 4)), x), strict=True
    ):
        gap = (ours - expected).abs().max()
        assert gap > 1 if method == "ibp" else gap < SLACK


# --- against attacks ------------------------------------------------------------------------------


@pytest.mark.slow
@every_norm
@every_network
def test_no_attack_gets_outside_and_each_method_is_at_least_as_tight(name, norm):
    scorer, shape = network_of(name)
    x = images(4, shape)
    for epsilon in (0.003, 0.1):
        threat = ThreatModel(norm, epsilon)
        attacked = []
        for sign, attack in itertools.product(
            (-1, 1), (APGD(steps=20), PGD(steps=20, step_size=epsilon / 4))
        ):
            found = attack.perturb(
                lambda x, sign=sign: sign * scorer(x),
                x,
                threat_model=threat,
                generator=generator(),
            )
            attacked.append(scorer(found).detach())
        lowest, highest = torch.stack(attacked).amin(0), torch.stack(attacked).amax(0)
        widths = []
        for method in METHODS:
            lo, hi = bounds(scorer, x, norm=norm, epsilon=epsilon, method=method)
            assert (lo <= lowest).all()
            assert (highest <= hi).all()
            assert not lo.requires_grad
            widths.append(hi - lo)
        assert (widths[0] >= widths[1]).all()
        assert (widths[1] >= widths[2]).all()
        if epsilon == 0.003:  # a bound that said nothing would pass all of the above
            assert (widths[2] <= 3 * (highest - lowest) + SLACK).all()


@pytest.mark.slow
@every_method
@every_network
def test_epsilon_zero_gives_the_logit_and_a_tiny_one_next_to_it(name, method):
    scorer, shape = network_of(name)
    x = images(3, shape)
    logits = scorer(x).detach()
    for bound in bounds(scorer, x, epsilon=0.0, method=method):
        torch.testing.assert_close(bound, logits, atol=1e-12, rtol=1e-12)
    for bound in bounds(scorer, x, epsilon=1e-7, method=method):
        torch.testing.assert_close(bound, logits, atol=1e-2, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet18_3x3"])
def test_a_resnet_of_torchvision_is_bounded(name):
    scorer = scorer_of(build(name, channels=3, seed=0), (3, 16, 16))
    with torch.no_grad():  # the statistics of a trained network, so that its values stay small
        for module in scorer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        scorer.train()
        scorer(images(16, (3, 16, 16)))
    scorer.eval()
    x = images(1, (3, 16, 16), seed=1)
    far, near = (bounds(scorer, x, epsilon=1e-5, method=name) for name in ("ibp", "crown_ibp"))
    assert far[0] <= near[0] <= scorer(x) <= near[1] <= far[1]
    assert near[1] - near[0] < far[1] - far[0] < torch.inf


@every_method
def test_rounding_is_paid_for_where_large_terms_cancel(method):
    # (x + 1e16) - 1e16 is x, but float64 answers 0: its neighbours of 1e16 are 2 apart
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    network = nn.Sequential(nn.Flatten(), first, second, nn.Flatten(0)).double()
    with torch.no_grad():
        for layer, bias in ((first, 1e16), (second, -1e16)):
            layer.weight.fill_(1.0)
            layer.bias.fill_(bias)
    lo, hi = bounds(network, torch.full((1, 1, 1, 1), 0.1), epsilon=1e-3, method=method)
    assert lo <= 0.1 - 1e-3
    assert hi >= 0.1 + 1e-3
    assert hi - lo < 1000  # some multiples of 2 for each sum


# --- how it behaves -------------------------------------------------------------------------------


def test_the_bounds_of_an_image_depend_on_that_image_alone(monkeypatch):
    scorer, shape = network_of("residual")
    x = images(5, shape)
    together = torch.stack(bounds(scorer, x))
    alone = torch.stack([torch.cat(bounds(scorer, image[None])) for image in x], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=1e-9)
    monkeypatch.setattr("adap.core.audit.certify.bounds.CHUNK_NUMBERS", 1)
    monkeypatch.setattr("adap.core.audit.certify.bounds.ROW_NUMBERS", {"cpu": 1, "cuda": 1})
    torch.testing.assert_close(
        torch.stack(bounds(scorer, x[:2])), together[:, :2], atol=1e-9, rtol=1e-9
    )


def test_the_scorer_is_left_as_it_was():
    scorer, shape = network_of("small_cnn")
    scorer.float().train()
    before = {name: tensor.clone() for name, tensor in scorer.state_dict().items()}
    bounds(scorer, images(2, shape).float())
    assert scorer.training
    assert all(parameter.requires_grad for parameter in scorer.parameters())
    for name, tensor in scorer.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


class Deciding(nn.Module):
    def forward(self, x):
        return x.sum((1, 2, 3)) if x.mean() > 0.5 else x.mean((1, 2, 3))


class AcrossTheBatch(nn.Module):
    def forward(self, x):
        return (x - x.mean(0, keepdim=True)).mean((2, 3)).flatten()


class OutsideTorch(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).flatten() * float(x.detach().numpy().mean())


class Constant(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), dtype=x.dtype)


class AllPixels(nn.Module):
    def forward(self, x):
        return x.logsumexp((1, 2, 3))


REFUSED = {
    "aten.gelu": nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(16, 1), nn.Flatten(0)),
    "aten.sigmoid": nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Sigmoid(), nn.Flatten(0)),
    "ceil_mode": nn.Sequential(nn.MaxPool2d(3, ceil_mode=True), nn.Flatten(), nn.Linear(4, 1)),
    "cannot be recorded": Deciding(),
    "aten.mean.dim": AcrossTheBatch(),
    "repeat": OutsideTorch(),
    "constants": Constant(),
    "one logit an image": nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
    "only over the columns of logits": AllPixels(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_network_that_cannot_be_bounded_is_refused_by_name(reason):
    with pytest.raises(ModelError, match=reason):
        bounds(REFUSED[reason], images(3))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"method": "magic"}, ConfigError),
        ({"x": images() + 0.5}, DataError),
        ({"x": images() * torch.nan}, DataError),
        ({"x": images()[0]}, DataError),
        ({"x": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, DataError),
    ],
)
def test_what_cannot_be_asked_is_refused(change, error):
    with pytest.raises(error, match="expected"):
        bounds(**{"scorer": network_of("mlp")[0], "x": images(), **change})


def test_intervals_that_overflow_become_infinite_bounds():
    # two units of equal value, near the largest float64, cancel: the logit is 1 for every image
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 2, bias=False),
        nn.Linear(2, 1),
        nn.Linear(1, 1),
        nn.Flatten(0),
    ).double()
    with torch.no_grad():
        network[1].weight.copy_(
            1.5e307 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(2, 8)
        )
        network[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        network[3].weight.zero_()
        network[3].bias.fill_(1.0)
    lo, hi = bounds(network, images(2), epsilon=1.0, method="crown")
    assert lo.tolist() == [-torch.inf] * 2
    assert hi.tolist() == [torch.inf] * 2


# --- the AP floor ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_floor_is_the_lowest_ap_over_all_logits_within_the_bounds():
    source = generator()
    for _ in range(20):
        lo = torch.randint(0, 4, (5,), generator=source).double()
        hi = lo + torch.randint(0, 3, (5,), generator=source)
        targets = torch.tensor([1, 0, 1, 0, 0])
        found = []
        choices = [torch.arange(low, high + 1).tolist() for low, high in zip(lo, hi, strict=True)]
        for scores in itertools.product(*choices):
            # ties negatives first: a hair off each positive makes the scores distinct
            nudged = np.array(scores) - 1e-3 * np.array([1, 0, 2, 0, 0])
            found.append(average_precision_score(targets, nudged))
        assert certified_floor_ap(lo, hi, targets) == pytest.approx(min(found), abs=1e-12)


def test_the_floor_refuses_shapes_that_do_not_match():
    with pytest.raises(DataError, match="one shape"):
        certified_floor_ap(torch.zeros(3), torch.zeros(3), torch.tensor([1, 0]))


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(adap.core.audit.certify.bounds) == (0, 2)


def interval_logits(network, x, epsilon):
    """IBP written for Linear and ReLU alone, with gradients: what the network is trained on."""
    lo, hi = (x - epsilon).clamp(0, 1).flatten(1), (x + epsilon).clamp(0, 1).flatten(1)
    for layer in network:
        if isinstance(layer, nn.Linear):
            center, radius = layer((lo + hi) / 2), (hi - lo) / 2 @ layer.weight.abs().T
            lo, hi = center - radius, center + radius
        elif isinstance(layer, nn.ReLU):
            lo, hi = lo.relu(), hi.relu()
    return lo.flatten(), hi.flatten()


def trained_on_bounds(network, x, targets, *, epsilon, epochs=30):
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    source = generator()
    for epoch in range(epochs):
        reach = epsilon * min(1, 1.5 * epoch / epochs)  # grown slowly, as Gowal et al. do
        for batch in torch.randperm(len(x), generator=source).split(100):
            lo, hi = interval_logits(network, x[batch], reach)
            y = targets[batch]
            worst = torch.where(y == 1, lo, hi)
            loss = F.binary_cross_entropy_with_logits(
                worst, y.float(), pos_weight=torch.tensor(3.0)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.slow
def test_a_network_trained_on_bounds_has_a_floor_far_above_chance():
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    targets = torch.tensor(digits.target == 0).long()  # zeros against all others
    epsilon = 0.1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )
    trained_on_bounds(network, x[:1200], targets[:1200], epsilon=epsilon)
    spec = InputSpec(channels=1, height=8, width=8, mean=[0.0], std=[1.0])
    scorer, x, targets = Scorer(network, spec).eval(), x[1200:], targets[1200:]

    floors = {}
    for method in METHODS:
        lo, hi = bounds(scorer, x, epsilon=epsilon, method=method)
        floors[method] = certified_floor_ap(lo, hi, targets)
    signs = 1 - 2 * targets
    attacked = APGD(steps=50).perturb(
        lambda x: signs * scorer(x),
        x,
        threat_model=ThreatModel("linf", epsilon),
        generator=generator(),
    )
    with torch.no_grad():
        clean = average_precision_score(targets, scorer(x))
        robust = average_precision_score(targets, scorer(attacked))
    chance = targets.float().mean().item()
    assert chance < 0.11
    assert floors["ibp"] <= floors["crown_ibp"] <= floors["crown"] <= robust <= clean
    assert floors["crown"] > 0.7

    expected = interval_logits(network.double(), x.double(), epsilon)
    for ours, theirs in zip(
        bounds(scorer, x, epsilon=epsilon, method="ibp"), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)  # its slope is some 200
