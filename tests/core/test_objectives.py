"""The judges: reference gradients, autograd through the paper's formulas, finite differences.

Everything is float64 unless a test is about float32.
"""

import json
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config import methods as config
from adap.core.objectives.estimators import APEstimator, ListwiseEstimator
from adap.core.objectives.registry import OBJECTIVES, build_objective
from adap.core.objectives.surrogates import (
    bernoulli_kl,
    cross_entropy,
    half_squared_shift,
    negative_margin,
    squared_hinge,
    wrongness,
)

METHODS = {cls.model_fields["name"].default: cls for cls in get_args(get_args(config.Method)[0])}
ADVERSARIAL = [name for name, cls in OBJECTIVES.items() if cls.needs_adversarial]
WITH_AP = [name for name, cls in OBJECTIVES.items() if cls.needs_positives]

EXAMPLES = 16
MARGIN = 0.6


def objective_for(name, *, examples=EXAMPLES, classes=None, **parameters):
    """An objective with those of the parameters that its method has."""
    fields = METHODS[name].model_fields
    known = {field.alias or key for key, field in fields.items()}
    method = METHODS[name](**{k: v for k, v in parameters.items() if k in known})
    return build_objective(method, examples=examples, classes=classes).double()


def batch(seed, *, size=8):
    """Clean and adversarial logits, targets (three positives) and distinct indices."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(size, generator=generator, dtype=torch.float64)
    adv = clean + torch.randn(size, generator=generator, dtype=torch.float64)
    targets = (torch.arange(EXAMPLES) % 3 == 0).double()
    index = torch.randperm(EXAMPLES, generator=generator)[:size]
    return clean, adv, targets[index], index


def update(objective, clean, adv, targets, index):
    """One update; the gradients in the clean and the adversarial logits, None where unused."""
    clean = clean.clone().requires_grad_() if objective.needs_clean else None
    adv = adv.clone().requires_grad_() if objective.needs_adversarial else None
    loss = objective(clean, adv, targets, index)
    assert loss.shape == ()
    loss.backward()
    return tuple(None if logits is None else logits.grad for logits in (clean, adv))


def inner_gradient(objective, clean, adv, targets, index):
    adv = adv.clone().requires_grad_()
    loss = objective.inner_loss(clean if objective.inner_needs_clean else None, adv, targets, index)
    assert loss.shape == adv.shape
    (gradient,) = torch.autograd.grad(loss.sum(), adv)
    return gradient


def assert_equal_gradients(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a, b)


# --- against the reference ------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_three_consecutive_updates_give_the_reference_gradients(name, shared):
    entries = json.loads((shared / "golden" / "objectives.json").read_text())
    (entry,) = [entry for entry in entries if entry["objective"] == name]
    parameters = {key: entry[key] for key in ("margin", "gamma1", "gamma2", "lambda")}
    objective = objective_for(name, examples=entry["dataset_size"], **parameters)
    for step in entry["steps"]:
        tensors = [
            torch.tensor(step[key], dtype=torch.float64)
            for key in ("clean_logits", "adversarial_logits", "labels")
        ]
        gradients = update(objective, *tensors, torch.tensor(step["index"]))
        expected = step["grad_clean_logits"], step["grad_adversarial_logits"]
        for actual, reference in zip(gradients, expected, strict=True):
            if reference is None:
                assert actual is None
            else:
                torch.testing.assert_close(
                    actual, torch.tensor(reference, dtype=torch.float64), rtol=1e-9, atol=0
                )


def test_every_method_has_an_objective_and_no_other_has():
    assert set(OBJECTIVES) == set(METHODS)


def exact_surrogate_ap(logits, targets):
    """-P(w) of eq. (1), written as in the paper with loops over the examples."""
    h = torch.sigmoid(logits)
    precisions = []
    for i in range(len(h)):
        if targets[i]:
            losses = torch.stack(
                [(MARGIN - (h[i] - h[s])).clamp_min(0) ** 2 for s in range(len(h))]
            )
            precisions.append((targets * losses).sum() / losses.sum())
    return torch.stack(precisions).mean()


def exact_listwise(clean, adv):
    """R of eq. (8): KL between the top-one probabilities, on tanh."""
    p, q = (torch.log_softmax(torch.tanh(logits), dim=0) for logits in (clean, adv))
    return (p.exp() * (p - q)).sum()


def full_batch(seed):
    clean, adv, targets, index = batch(seed, size=EXAMPLES)
    return clean.requires_grad_(), adv.requires_grad_(), targets, index


def exact_loss(name, clean, adv, targets, *, weight):
    """What each method minimises, over the whole training set."""
    p, q = (torch.distributions.Bernoulli(logits=logits) for logits in (clean, adv))
    kl = torch.distributions.kl_divergence(p, q)
    ap = -exact_surrogate_ap(adv if name == "adap_mm" else clean, targets)
    return {
        "ce": lambda: -p.log_prob(targets).mean(),
        "pgd": lambda: -q.log_prob(targets).mean(),
        "trades": lambda: (weight * kl - p.log_prob(targets)).mean(),
        "mart": lambda: (weight * kl * (targets - p.probs).abs() - q.log_prob(targets)).mean(),
        "ap": lambda: ap,
        "adap_mm": lambda: ap,
        "adap_pz": lambda: ap + weight * kl.mean(),
        "adap_lz": lambda: ap + weight * exact_listwise(clean, adv),
        "adap_ln": lambda: ap + weight * exact_listwise(clean, adv),
        "adap_lpn": lambda: ap + weight * (exact_listwise(clean, adv) + kl.mean()),
    }[name]()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_gamma_1_and_the_full_batch_the_gradient_is_that_of_the_exact_objective(name):
    objective = objective_for(name, margin=MARGIN, gamma1=1.0, gamma2=1.0, **{"lambda": 0.7})
    for seed in (1, 2):  # the second update shows that nothing of the first is left
        clean, adv, targets, index = full_batch(seed)
        loss = exact_loss(name, clean, adv, targets, weight=0.7)
        expected = torch.autograd.grad(loss, (clean, adv), allow_unused=True)
        gradients = update(objective, clean.detach(), adv.detach(), targets, index)
        for actual, reference in zip(gradients, expected, strict=True):
            if reference is None:
                assert actual is None
            else:
                torch.testing.assert_close(actual, reference, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", ["adap_ln", "adap_lpn"])
def test_with_an_anchor_the_attacked_ranking_is_compared_with_its(name):
    objective = objective_for(
        name, margin=MARGIN, gamma1=1.0, gamma2=1.0, anchor="ema", **{"lambda": 0.7}
    )
    assert objective.needs_anchor
    clean, adv, targets, index = full_batch(1)
    anchor = batch(2, size=EXAMPLES)[0]
    loss = objective(clean, adv, targets, index, anchor)
    actual = torch.autograd.grad(loss, (clean, adv))
    kl = torch.distributions.kl_divergence(
        *(torch.distributions.Bernoulli(logits=logits) for logits in (clean, adv))
    )
    expected = -exact_surrogate_ap(clean, targets) + 0.7 * exact_listwise(anchor, adv)
    expected = expected + 0.7 * kl.mean() if name == "adap_lpn" else expected
    for ours, reference in zip(actual, torch.autograd.grad(expected, (clean, adv)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_gamma_1_and_the_full_batch_finite_differences_agree(name):
    objective = objective_for(name, margin=MARGIN, gamma1=1.0, gamma2=1.0, **{"lambda": 0.7})
    clean, adv, targets, index = (tensor.detach() for tensor in full_batch(3))

    def exact(*logits):
        return exact_loss(name, *logits, targets, weight=0.7)

    step = 1e-6
    differences = [
        torch.stack(
            [
                (exact(clean + step * dc, adv + step * da))
                - (exact(clean - step * dc, adv - step * da))
                for dc, da in directions
            ]
        )
        / (2 * step)
        for directions in (
            [(e, 0 * e) for e in torch.eye(EXAMPLES)],
            [(0 * e, e) for e in torch.eye(EXAMPLES)],
        )
    ]
    gradients = update(objective, clean, adv, targets, index)
    for gradient, difference in zip(gradients, differences, strict=True):
        if gradient is None:
            assert not difference.any()
        else:
            torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=1e-9)  # O(step^2)


def test_the_surrogate_ap_is_that_of_eq_1():
    objective = objective_for("ap", margin=MARGIN, gamma1=1.0)
    clean, _, targets, index = full_batch(4)
    objective(clean, None, targets, index)
    expected = exact_surrogate_ap(clean, targets).item()
    assert objective.metrics() == {"surrogate_ap": pytest.approx(expected, rel=1e-12)}


# --- a task a class -------------------------------------------------------------------------------

CLASSES = 3
VARIANTS = [{}, {"gamma1": 1.0, "gamma2": 1.0}, {"gamma1": 0.1, "first_visit": "batch"}]


def class_batch(seed, *, classes=CLASSES, size=8):
    """As `batch`, with a column of logits and of targets for each class; images of any number of
    classes, none included, and an example that comes twice."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, classes)
    clean = torch.randn(shape, generator=generator, dtype=torch.float64)
    adv = clean + torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.Generator().manual_seed(0)
    targets = (torch.rand((EXAMPLES, classes), generator=labels) < 0.4).double()
    index = torch.randperm(EXAMPLES, generator=generator)[:size]
    index[-1] = index[0]
    return clean, adv, targets[index], index


@pytest.mark.parametrize("parameters", VARIANTS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_of_many_classes_is_the_mean_of_one_objective_for_each(name, parameters):
    objective = objective_for(name, classes=CLASSES, **parameters)
    alone = [objective_for(name, **parameters) for _ in range(CLASSES)]
    for seed in (1, 2, 3):
        clean, adv, targets, index = class_batch(seed)
        if name in ADVERSARIAL:
            actual = inner_gradient(objective, clean, adv, targets, index)
            for k, one in enumerate(alone):
                expected = inner_gradient(one, clean[:, k], adv[:, k], targets[:, k], index)
                torch.testing.assert_close(actual[:, k], expected, rtol=1e-12, atol=1e-15)
        gradients = update(objective, clean, adv, targets, index)
        for k, one in enumerate(alone):
            singles = update(one, clean[:, k], adv[:, k], targets[:, k], index)
            for actual, expected in zip(gradients, singles, strict=True):
                assert (actual is None) == (expected is None)
                if actual is not None:
                    torch.testing.assert_close(
                        actual[:, k], expected / CLASSES, rtol=1e-12, atol=1e-15
                    )
    for key, value in objective.metrics().items():
        singles = [one.metrics()[key] for one in alone]
        assert value == pytest.approx(sum(singles) / CLASSES, rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_class_of_many_is_the_binary_method(name):
    objective, binary = objective_for(name, classes=1), objective_for(name)
    for seed in (1, 2, 3):
        clean, adv, targets, index = batch(seed)
        columns = [tensor[:, None] for tensor in (clean, adv, targets)]
        pairs = zip(
            update(objective, *columns, index),
            update(binary, clean, adv, targets, index),
            strict=True,
        )
        for actual, expected in pairs:
            assert (actual is None) == (expected is None)
            if actual is not None:
                torch.testing.assert_close(actual[:, 0], expected, rtol=1e-12, atol=1e-16)
    for key, value in binary.state_dict().items():
        columns = objective.state_dict()[key]
        torch.testing.assert_close(columns.squeeze(-1), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_the_classes_does_not_matter(name):
    order = torch.tensor([2, 0, 1])
    first, permuted = (objective_for(name, classes=CLASSES) for _ in range(2))
    for seed in (1, 2, 3):
        clean, adv, targets, index = class_batch(seed)
        expected = update(first, clean, adv, targets, index)
        other = update(permuted, clean[:, order], adv[:, order], targets[:, order], index)
        for a, b in zip(expected, other, strict=True):
            if a is not None:
                torch.testing.assert_close(a[:, order], b, rtol=1e-12, atol=1e-16)


def test_with_gamma_1_many_classes_have_the_gradient_of_the_exact_mean():
    objective = objective_for(
        "adap_lpn", classes=CLASSES, margin=MARGIN, gamma1=1.0, gamma2=1.0, **{"lambda": 0.7}
    )
    clean, adv, _, _ = class_batch(1, size=EXAMPLES)
    targets = (torch.arange(EXAMPLES)[:, None] % torch.tensor([2, 3, 5]) == 0).double()
    clean.requires_grad_()
    adv.requires_grad_()
    losses = [
        exact_loss("adap_lpn", clean[:, k], adv[:, k], targets[:, k], weight=0.7)
        for k in range(CLASSES)
    ]
    expected = torch.autograd.grad(torch.stack(losses).mean(), (clean, adv))
    gradients = update(objective, clean.detach(), adv.detach(), targets, torch.randperm(EXAMPLES))
    for actual, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-11, atol=1e-15)


def test_a_class_without_positives_in_the_batch_moves_nothing_of_its_own():
    objective = objective_for("ap", classes=CLASSES)
    clean, adv, targets, index = class_batch(1)
    targets[:, 1] = 0
    gradient, _ = update(objective, clean, adv, targets, index)
    assert gradient[:, [0, 2]].any(dim=0).all()
    assert not gradient[:, 1].any()
    assert not objective.ap.u_all[:, 1].any()
    assert 0 < objective.metrics()["surrogate_ap"] < 1, "the mean over the classes seen"


# --- what every objective keeps -------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_state_survives_a_state_dict_round_trip(name):
    objective, resumed = objective_for(name), objective_for(name)
    for seed in (1, 2):
        update(objective, *batch(seed))
    resumed.load_state_dict(objective.state_dict())
    assert_equal_gradients(update(resumed, *batch(3)), update(objective, *batch(3)))
    assert resumed.metrics() == objective.metrics()


@pytest.mark.parametrize("name", WITH_AP)
def test_an_update_depends_on_the_updates_before_it(name):
    used, fresh = objective_for(name), objective_for(name)
    update(used, *batch(1))
    pairs = zip(update(used, *batch(2)), update(fresh, *batch(2)), strict=True)
    assert any(a is not None and not torch.allclose(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_inner_loss_reads_estimators_and_writes_none(name):
    objective = objective_for(name)
    update(objective, *batch(1))
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    first = inner_gradient(objective, *batch(2))
    assert torch.equal(first, inner_gradient(objective, *batch(2)))
    after = objective.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ADVERSARIAL])
def test_an_objective_on_clean_images_has_no_attack_to_give(name):
    with pytest.raises(NotImplementedError, match="clean images only"):
        inner_gradient(objective_for(name), *batch(1))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_stay_finite_in_float32_at_extreme_logits(name):
    objective = objective_for(name).float()
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).repeat(2, 1)
    clean, adv = (40.0 * signs).unbind(dim=1)
    targets = torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 1])
    index = torch.arange(8)
    for _ in range(2):
        for gradient in update(objective, clean, adv, targets, index):
            assert gradient is None or gradient.isfinite().all()
        if objective.needs_adversarial:
            assert inner_gradient(objective, clean, adv, targets, index).isfinite().all()


# --- estimators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first_visit", ["published", "batch"])
def test_estimators_follow_the_closed_form_of_their_moving_average(first_visit):
    # With g the same at every visit, u = (1 - (1 - gamma)^t) g from 0, and g from the first batch.
    gamma = 0.1
    ap = APEstimator(EXAMPLES, margin=MARGIN, gamma=gamma, first_visit=first_visit).double()
    listwise = ListwiseEstimator(gamma=gamma, first_visit=first_visit).double()
    clean, adv, targets, index = batch(5)
    losses = squared_hinge(clean, margin=MARGIN)
    h, h_adv = clean.tanh(), adv.tanh()
    g = torch.stack([(h.exp() * (h - h_adv)).mean(), h.exp().mean(), h_adv.exp().mean()])
    positive = targets == 1
    for visit in range(1, 4):
        ap.shares(clean, targets, index, commit=True)
        listwise.shares(clean, adv, commit=True)
        factor = 1 - (1 - gamma) ** visit if first_visit == "published" else 1.0
        torch.testing.assert_close(listwise.u, factor * g)
        torch.testing.assert_close(ap.u_all[index[positive]], factor * losses[positive].mean(dim=1))
        torch.testing.assert_close(
            ap.u_pos[index[positive]], factor * (losses[positive] * targets).mean(dim=1)
        )


def test_the_published_first_visit_weighs_1_over_gamma_too_much():
    gradients = {}
    for first_visit in ("published", "batch"):
        objective = objective_for("ap", gamma1=0.1, first_visit=first_visit)
        gradients[first_visit], _ = update(objective, *batch(6))
    torch.testing.assert_close(gradients["published"], 10 * gradients["batch"])


def test_a_listwise_estimate_of_exactly_zero_is_not_a_first_visit():
    # adv = clean gives g1 = 0; the next batch must still be averaged with it.
    estimator = ListwiseEstimator(gamma=0.1, first_visit="batch").double()
    clean, adv, _, _ = batch(7)
    estimator.shares(clean, clean, commit=True)
    estimator.shares(clean, adv, commit=True)
    h, h_adv = clean.tanh(), adv.tanh()
    torch.testing.assert_close(estimator.u[0], 0.1 * (h.exp() * (h - h_adv)).mean())


def test_only_the_positives_of_the_batch_are_written():
    objective = objective_for("ap")
    update(objective, *batch(8))
    before = objective.ap.u_all.clone()
    clean, adv, targets, index = batch(9)
    update(objective, clean, adv, targets, index)
    written = (objective.ap.u_all != before).nonzero().flatten().tolist()
    assert written == sorted(index[targets == 1].tolist())


def test_a_positive_that_occurs_twice_in_a_batch_gets_the_mean_of_both():
    estimator = APEstimator(4, margin=MARGIN, gamma=1.0, first_visit="published").double()
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    targets = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    estimator.shares(logits, targets, torch.tensor([2, 2, 0]), commit=True)
    losses = squared_hinge(logits, margin=MARGIN)
    expected = torch.zeros(4, dtype=torch.float64)
    expected[2] = losses[:2].mean()
    torch.testing.assert_close(estimator.u_all, expected)


@pytest.mark.parametrize("name", WITH_AP)
def test_a_batch_without_positives_moves_nothing_of_ap(name):
    objective = objective_for(name, **{"lambda": 0.0})
    clean, adv, _, index = batch(10)
    for gradient in update(objective, clean, adv, torch.zeros(8, dtype=torch.float64), index):
        assert gradient is None or not gradient.any()
    assert not objective.ap.u_all.any()


# --- what the attacks ascend ----------------------------------------------------------------------

LOGITS = st.floats(-15, 15)


@given(LOGITS, st.sampled_from([0.0, 1.0]))
def test_the_margin_attack_has_the_sign_of_cross_entropys_gradient(logit, target):
    logit = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([target], dtype=torch.float64)
    (published,) = torch.autograd.grad(cross_entropy(logit, target).sum(), logit)
    (ours,) = torch.autograd.grad(negative_margin(logit, target).sum(), logit)
    assert ours.sign() == published.sign() != 0


@given(LOGITS, LOGITS)
def test_the_shift_attack_has_the_sign_of_the_kls_gradient(clean, adv):
    assume(clean == adv or abs(clean - adv) > 1e-6)  # closer, the published gradient is noise
    clean = torch.tensor([clean], dtype=torch.float64)
    adv = torch.tensor([adv], dtype=torch.float64, requires_grad=True)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=clean), torch.distributions.Bernoulli(logits=adv)
    )
    (published,) = torch.autograd.grad(kl.sum(), adv)
    (ours,) = torch.autograd.grad(half_squared_shift(clean, adv).sum(), adv)
    if clean != adv:
        assert ours.sign() == published.sign() != 0
    else:
        assert ours == 0


def test_neither_attack_saturates_where_the_published_losses_do():
    clean = torch.tensor([40.0, -40.0, 40.0])
    targets = torch.tensor([1.0, 0.0, 1.0])
    adv = torch.tensor([30.0, -30.0, 50.0], requires_grad=True)
    (cross,) = torch.autograd.grad(cross_entropy(adv, targets).sum(), adv)
    assert (cross[[0, 2]] == 0).all()
    (margin,) = torch.autograd.grad(negative_margin(adv, targets).sum(), adv)
    (shift,) = torch.autograd.grad(half_squared_shift(clean, adv).sum(), adv)
    assert margin.tolist() == [-1, 1, -1]
    assert shift.tolist() == [-10, 10, 10]


@pytest.mark.parametrize("name", ["pgd", "trades"])
def test_the_stand_in_losses_find_the_same_images_as_the_published_ones(name):
    torch_seed = torch.Generator().manual_seed(0)
    weights = torch.randn(12, 16, generator=torch_seed, dtype=torch.float64) / 4
    last = torch.randn(12, generator=torch_seed, dtype=torch.float64)
    x = torch.rand(6, 1, 4, 4, generator=torch_seed, dtype=torch.float64)
    targets = torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64)

    def network(x):
        return torch.tanh(x.flatten(1) @ weights.T) @ last

    clean = network(x)

    def published(x):
        if name == "pgd":
            return F.binary_cross_entropy(network(x).sigmoid(), targets, reduction="none")
        return bernoulli_kl(clean, network(x))

    objective = objective_for(name)
    attack = PGD(steps=6, step_size=0.01, iterate="last", start="normal")
    found = [
        attack.perturb(
            loss,
            x,
            threat_model=ThreatModel("linf", 8 / 255),
            generator=torch.Generator().manual_seed(1),
        )
        for loss in (published, lambda x: objective.inner_loss(clean, network(x), targets, None))
    ]
    assert torch.equal(*found)
    assert (found[0] - x).abs().amax(dim=(1, 2, 3)).min() > 0.03


def test_adap_mm_ascends_the_ap_surrogate_as_in_eqs_15_and_16():
    gamma = 0.3
    objective = objective_for("adap_mm", margin=MARGIN, gamma1=gamma)
    update(objective, *batch(11))
    clean, adv, targets, index = batch(12)
    adv = adv.requires_grad_()
    h = torch.sigmoid(adv)
    expected = torch.zeros(8, dtype=torch.float64)
    positives = targets.nonzero().flatten().tolist()
    for i in positives:
        losses = torch.stack([(MARGIN - (h[i] - h[j])).clamp_min(0) ** 2 for j in range(8)])
        u1 = (1 - gamma) * objective.ap.u_pos[index[i]] + gamma * (targets * losses).mean().item()
        u2 = (1 - gamma) * objective.ap.u_all[index[i]] + gamma * losses.mean().item()
        for j in range(8):
            (slope,) = torch.autograd.grad(losses[j], adv, retain_graph=True)
            expected += (u1 - u2 * targets[j]) * slope / (len(positives) * 8 * u2**2)
    actual = inner_gradient(objective, clean, adv.detach(), targets, index)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-15)


def test_adap_lz_ascends_the_listwise_regulariser_as_in_eqs_11_and_19():
    gamma = 0.3
    objective = objective_for("adap_lz", gamma2=gamma)
    update(objective, *batch(11))
    clean, adv, targets, index = batch(12)
    adv = adv.requires_grad_()
    h, h_adv = clean.tanh(), adv.tanh()
    g = [(h.exp() * (h - h_adv)).mean(), h.exp().mean(), h_adv.exp().mean()]
    u1, u2, u3 = (
        (1 - gamma) * u + gamma * value.item()
        for u, value in zip(objective.listwise.u, g, strict=True)
    )
    first, third = (torch.autograd.grad(g[k], adv, retain_graph=True)[0] for k in (0, 2))
    actual = inner_gradient(objective, clean, adv.detach(), targets, index)
    torch.testing.assert_close(actual, first / u2 + third / u3, rtol=1e-11, atol=1e-15)
    assert u1 != 0  # its coefficient meets only g2, which does not depend on the attack


# --- the pieces -----------------------------------------------------------------------------------


def test_finite_differences_agree_with_the_gradients_of_the_pieces():
    clean, adv, targets, _ = full_batch(13)
    assert torch.autograd.gradcheck(lambda z: squared_hinge(z, margin=MARGIN), clean)
    assert torch.autograd.gradcheck(bernoulli_kl, (clean, adv))
    assert torch.autograd.gradcheck(lambda z: wrongness(z, targets), clean)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, targets), clean)


@given(LOGITS, LOGITS, st.sampled_from([0.0, 1.0]))
def test_the_pieces_are_their_textbook_formulas(clean, adv, target):
    clean, adv, target = (torch.tensor([v], dtype=torch.float64) for v in (clean, adv, target))
    p, q = (torch.distributions.Bernoulli(logits=logits) for logits in (clean, adv))
    torch.testing.assert_close(
        bernoulli_kl(clean, adv), torch.distributions.kl_divergence(p, q), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(wrongness(clean, target), (target - p.probs).abs())
    torch.testing.assert_close(cross_entropy(clean, target), -p.log_prob(target))
