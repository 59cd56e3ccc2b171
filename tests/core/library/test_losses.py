"""Losses in a loop of one's own: what it hands them is understood, or refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adap
from adap.core.library.losses import LOSSES, Loss

EXAMPLES = 8
CLEAN = torch.tensor([0.3, -0.2, 1.1, 0.4])
ADV = torch.tensor([0.1, 0.2, 0.7, 0.9])
TARGETS = torch.tensor([1, 0, 0, 1])
INDEX = torch.tensor([5, 0, 2, 7])


def state_of(loss: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in loss.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def linear(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).to(dtype)


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_read_for_validation_stays_as_it_is(name: str) -> None:
    loss = LOSSES[name](examples=EXAMPLES)
    loss(CLEAN, ADV, TARGETS, INDEX)
    kept = state_of(loss)
    with torch.no_grad():
        loss(CLEAN.flip(0), ADV, TARGETS, INDEX)
    loss.eval()
    loss(CLEAN.flip(0), ADV, TARGETS, INDEX)
    assert same(kept, state_of(loss))
    loss.train()
    loss(CLEAN.flip(0), ADV, TARGETS, INDEX)
    assert same(kept, state_of(loss)) == (not kept)


def test_a_loss_in_eval_mode_is_trained_by_fit_all_the_same() -> None:
    x, y = images(40), torch.arange(40) % 2
    losses = [adap.AP(examples=32), adap.AP(examples=32).eval()]
    for loss in losses:
        adap.fit(linear(), x, y, loss, epochs=1, batch_size=8)
    assert same(state_of(losses[0]), state_of(losses[1]))
    assert losses[1].state_dict()["objective.ap.u_all"].any()
    assert [loss.training for loss in losses] == [True, False]


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_positives])
def test_an_index_that_changes_sides_is_refused_and_nothing_is_written(name: str) -> None:
    loss = LOSSES[name](examples=EXAMPLES)
    loss(CLEAN, ADV, TARGETS, INDEX)
    kept = state_of(loss)
    for targets, index in ((1 - TARGETS, INDEX), (TARGETS, torch.tensor([1, 3, 3, 3]))):
        with pytest.raises(adap.DataError, match=r"positive in one and negative in another.*index"):
            loss(CLEAN, ADV, targets, index)
    assert same(kept, state_of(loss))
    loss(CLEAN, ADV, TARGETS, torch.tensor([1, 3, 4, 6]))  # what was refused has left no mark
    loss.eval()(CLEAN, ADV, 1 - TARGETS, INDEX)


def test_an_index_that_changes_sides_in_one_class_of_many_is_refused() -> None:
    loss = adap.AP(examples=4, classes=2)
    targets = torch.tensor([[1, 0], [0, 1]])
    loss(torch.randn(2, 2), None, targets, torch.tensor([0, 1]))
    with pytest.raises(adap.DataError, match="1 places"):
        loss(torch.randn(2, 2), None, torch.tensor([[1, 1], [0, 1]]), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_logits_of_any_float_type_give_the_gradient_of_float32(
    name: str, dtype: torch.dtype
) -> None:
    gradients = []
    for kind in (torch.float32, dtype):
        loss = LOSSES[name](examples=EXAMPLES)
        # rounded first, so that both see the same numbers
        clean, adv = (value.to(dtype).to(kind).requires_grad_() for value in (CLEAN, ADV))
        for _ in range(2):
            loss(clean, adv, TARGETS, INDEX).backward()
        gradients.append([None if v.grad is None else v.grad.float() for v in (clean, adv)])
    tolerance = 1e-5 if dtype == torch.float64 else 0.02  # the gradients themselves are rounded
    for expected, found in zip(*gradients, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None and found is not None:
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10)


def test_a_loss_works_inside_autocast() -> None:
    loss, model, x = adap.AdapLPN(examples=EXAMPLES), linear(), images(4)
    generator = adap.attack_generator(seed=0, epoch=1)
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = adap.training_attack(model, loss, x, TARGETS, INDEX, generator=generator)
        loss(model(x), model(x_adv), TARGETS, INDEX).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_model_in_float64_is_attacked_and_trained() -> None:
    x, y = images(40), torch.arange(40) % 2
    moved = [
        adap.training_attack(
            linear(dtype),
            adap.AdapLPN(examples=EXAMPLES),
            x[:4],
            TARGETS,
            INDEX,
            generator=adap.attack_generator(seed=0, epoch=1),
        )
        for dtype in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(*moved)
    fits = [
        adap.fit(linear(dtype), x, y, "adap_lpn", epochs=2, batch_size=8)
        for dtype in (torch.float32, torch.float64)
    ]
    assert fits[0].best.loss == pytest.approx(fits[1].best.loss, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"index": [5, 0, 2, 7]}, "index as a torch tensor, got list"),
        ({"index": INDEX.numpy()}, "index as a torch tensor, got ndarray"),
        ({"index": INDEX.float()}, "int64.*got .* of torch.float32"),
        ({"targets": None}, "targets as a torch tensor, got NoneType"),
        ({"targets": TARGETS.numpy()}, "targets as a torch tensor, got ndarray"),
        ({"targets": torch.tensor(1)}, "targets of at least one image"),
        ({"targets": TARGETS[:0], "index": INDEX[:0]}, "targets of at least one image"),
        ({"clean": CLEAN.numpy()}, "clean logits as a torch tensor"),
        ({"adv": [1.0, 2.0, 3.0, 4.0]}, "attacked logits as a torch tensor, got list"),
        ({"adv": TARGETS}, "attacked logits of a float type, got torch.int64"),
        ({"clean": CLEAN.to("meta")}, "one device, got clean logits on meta"),
    ],
)
def test_what_is_no_tensor_of_its_kind_is_refused_by_name(
    changes: dict[str, Any], said: str
) -> None:
    given = {"clean": CLEAN, "adv": ADV, "targets": TARGETS, "index": INDEX, **changes}
    with pytest.raises(adap.ConfigError, match=said):
        adap.AdapLPN(examples=EXAMPLES)(**given)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"attack": adap.PGD()}, adap.ConfigError, r"adap.TrainingAttack\("),
        ({"attack": "pgd"}, adap.ConfigError, r"adap.TrainingAttack\("),
        ({"generator": 0}, adap.ConfigError, "attack_generator"),
        ({"loss": nn.BCEWithLogitsLoss()}, adap.ConfigError, "got BCEWithLogitsLoss"),
        ({"loss": adap.AdapLPN}, adap.ConfigError, "got the class AdapLPN"),
        ({"model": lambda x: x.mean((1, 2, 3))}, adap.ModelError, "expected an nn.Module"),
        ({"x": images(4).numpy()}, adap.DataError, "as a tensor, got ndarray"),
        ({"x": (images(4) - 0.5) / 0.25}, adap.DataError, "belongs into the model"),
        ({"x": images(4) * np.nan}, adap.DataError, "got nan to nan"),
        ({"x": images(4) * 255}, adap.DataError, r"pixels in \[0, 1\]"),
    ],
)
def test_what_the_training_attack_cannot_run_on_is_refused_by_name(
    changes: dict[str, Any], kind: type[Exception], said: str
) -> None:
    given: dict[str, Any] = {
        "model": linear(),
        "loss": adap.AdapLPN(examples=EXAMPLES),
        "x": images(4),
        "targets": TARGETS,
        "index": INDEX,
        "generator": adap.attack_generator(seed=0, epoch=1),
        **changes,
    }
    attack: Callable[..., Tensor] = adap.training_attack
    with pytest.raises(kind, match=said):
        attack(**given)


EVERY = pytest.mark.parametrize("kind", LOSSES.values(), ids=LOSSES)


@EVERY
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"targets": TARGETS * 2}, adap.DataError, r"targets in \{0, 1\}, got \[2"),
        ({"targets": TARGETS * torch.nan}, adap.DataError, r"targets in \{0, 1\}, got \[nan"),
        ({"targets": TARGETS[:3]}, adap.ConfigError, r"\(3,\).*got \(4,\)"),
        ({"index": INDEX + 1}, adap.DataError, "places from 0 to 7 .* got 1 to 8"),
        ({"index": INDEX - 1}, adap.DataError, "places from 0 to 7 .* got -1 to 6"),
        ({"index": INDEX[:2]}, adap.ConfigError, r"index \(4,\) of int64.*got \(2,\)"),
        ({"clean": None, "adv": None}, adap.ConfigError, "logits of the (clean|attacked) images"),
        ({"clean": CLEAN * torch.nan, "adv": ADV * torch.nan}, adap.DataError, "got 4 that are"),
        (
            {"clean": torch.zeros(4, 2), "adv": torch.zeros(4, 2)},
            adap.ConfigError,
            r"logits \(4,\) or \(4, 1\); a logit for each of K .*\(classes=K\); got \(4, 2\)",
        ),
    ],
)
def test_what_no_step_could_use_is_refused_before_the_state_is_touched(
    kind: type[Loss], change: dict[str, Any], error: type[Exception], said: str
) -> None:
    loss = kind(examples=np.int64(EXAMPLES))
    kept = state_of(loss)
    batch = {"clean": CLEAN, "adv": ADV, "targets": TARGETS, "index": INDEX}
    with pytest.raises(error, match=said):
        loss(**{**batch, **change})
    assert same(kept, state_of(loss))


@EVERY
def test_a_batch_without_positives_is_refused_where_a_mean_over_them_is_taken(
    kind: type[Loss],
) -> None:
    loss, none = kind(examples=EXAMPLES), torch.zeros(4)
    if not loss.needs_positives:
        assert loss(CLEAN, ADV, none, INDEX).isfinite()
        return
    with pytest.raises(adap.DataError, match=f"{kind.__name__} is a mean .*got 0 of 4: adap.batch"):
        loss(CLEAN, ADV, none, INDEX)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"examples": 0}, "examples as a whole number of at least 1, got 0"),
        ({"examples": 3.0}, "examples as a whole number of at least 1, got 3.0"),
        ({"examples": True}, "examples as a whole number of at least 1, got True"),
        ({"examples": 8, "classes": 0}, "classes as a whole number of at least 1, got 0"),
        ({"examples": 8, "margin": -1}, "margin: expected more than 0, got -1"),
        ({"examples": 8, "gamma": 1}, "gamma: no such field; did you mean gamma2"),
    ],
)
def test_an_option_that_no_training_could_honour_is_refused(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(adap.ConfigError, match=said):
        adap.AdapLPN(**options)


def test_an_anchor_is_given_to_a_loss_that_has_one_and_to_no_other() -> None:
    logits, targets, index = torch.randn(4), torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.arange(4)
    anchored, plain = adap.AdapLN(examples=4, anchor="ema"), adap.AdapLN(examples=4)
    before = {name: value.clone() for name, value in anchored.state_dict().items()}
    with pytest.raises(adap.ConfigError, match=r"expected an anchor .* got none for AdapLN"):
        anchored(logits, logits + 1, targets, index)
    assert all(torch.equal(value, before[name]) for name, value in anchored.state_dict().items())
    with pytest.raises(adap.ConfigError, match=r"expected an anchor .* got one for AdapLN"):
        plain(logits, logits + 1, targets, index, logits)
    own = float(plain(logits, logits + 1, targets, index))
    assert float(anchored(logits, logits + 1, targets, index, logits)) == pytest.approx(own)
