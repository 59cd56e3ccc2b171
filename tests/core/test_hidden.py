"""Gradients that hide something: the audit searches on, and finds what they hid."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import adap
from adap.core.audit.joining import join
from adap.core.audit.plan import Recovery, ScoresPiece, Subject, make_plan
from adap.core.config.attacks import APGDAttack, SquareAttack
from adap.core.config.audits import AuditConfig
from adap.core.config.data import Task
from adap.core.scores import Scores
from tests.core.test_checks import EPSILON, held_out, small_cnn, trained

COUNT = 30
OWN = ["apgd_averaged", "square_long"]
CALM: dict[str, Any] = {
    "epsilon": EPSILON,
    "certify": "off",
    "checks": "off",
    "epsilons": [],
    "progress": False,
}


def first_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, targets = held_out()
    return images[:COUNT], targets[:COUNT]


class Mixed(nn.Module):
    """Two networks, 9 to 1; the heavy one's gradient is cut where `cut`."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.heavy, self.light = trained(small_cnn), trained(small_cnn, seed=1)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        heavy: Tensor = self.heavy(x.detach() if self.cut else x)
        return 0.9 * heavy + 0.1 * self.light(x)


class Waves(nn.Module):
    """A network and 0.005 sum sin(200 x), far too small to matter, which drowns its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained(small_cnn)
        self.register_buffer(
            "signs", torch.randn(64, generator=torch.Generator().manual_seed(0)).sign()
        )

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.network(x)
        return plain + 0.005 * (200 * x.flatten(1) * self.signs).sin().sum(1)


@pytest.mark.slow
def test_the_audit_searches_on_where_the_gradient_hides_something_and_says_what_won() -> None:
    images, targets = first_images()
    audited = adap.audit(Mixed(cut=True), images, targets, **CALM)
    honest = adap.audit(Mixed(cut=False), images, targets, **CALM)
    task = audited.task
    assert task.searched_on is not None
    assert task.searched_on.attacks == OWN
    assert "part of the network is hidden" in task.searched_on.reason
    assert list(task.attacks) == [*honest.task.attacks, *OWN]
    assert task.attacks["square_long"].attack["queries"] == 1000
    assert task.worst_case.ap <= honest.worst_case.ap + 0.01  # what the whole gradient finds
    assert sum(task.worst_case.won.values()) == COUNT
    (said,) = [text for text in audited.warnings if "the search went on" in text]
    for name, count in task.worst_case.won.items():
        assert name == "clean" or f"{name} on {count}" in said
    assert honest.task.searched_on is None
    assert not [text for text in honest.warnings if "the search went on" in text]


@pytest.mark.slow
def test_gradients_averaged_over_the_ball_see_past_what_is_too_fast_to_follow() -> None:
    images, targets = first_images()
    x, y = torch.tensor(images).float() / 255, torch.tensor(targets)
    network, plain = Waves(), trained(small_cnn)

    def fall(followed: nn.Module, attack: APGDAttack) -> float:
        """Of the mean margin: of 8 positives an AP turns with the arithmetic of a processor."""
        x_adv = adap.attack(followed, x, y, attack, epsilon=EPSILON)
        with torch.no_grad():
            return float(((2 * y - 1) * (network(x) - network(x_adv))).mean())

    whole = fall(plain, APGDAttack(steps=20))  # along the gradient without the term
    assert fall(network, APGDAttack(steps=20)) < 0.95 * whole  # 0.91 to 0.92 measured
    assert fall(network, APGDAttack(steps=20, averaged=16)) > 0.96 * whole  # 0.98 to 0.99


def test_the_budget_of_the_long_search_grows_with_the_image_and_only_standard_has_one() -> None:
    def searched(side: int, **asked: Any) -> list[Any]:
        subject = Subject("us", "m", "d", None, split=None, examples=4, image=(side, side))
        config = AuditConfig.model_validate(asked)
        (piece,) = [
            piece
            for piece in make_plan(config, [Task(positive=["cat"])], subject)
            if isinstance(piece, ScoresPiece)
        ]
        found = [one.measure for one in piece.columns if isinstance(one.measure, Recovery)]
        return found[0].attacks if found else []

    queries = [
        attack.queries
        for side in (8, 32, 64, 224)
        for attack in searched(side)
        if isinstance(attack, SquareAttack)
    ]
    assert queries == [1000, 2048, 8192, 10_000]
    assert searched(32, threat={"norm": "patch", "epsilon": 3.0})
    for asked in (
        {"preset": "quick"},
        {"preset": "paper"},
        {"attacks": ["apgd"]},
        {"threat": {"epsilon": 0.0}},
    ):
        assert searched(32, **asked) == []


def test_shards_of_which_some_searched_on_are_judged_by_what_all_have() -> None:
    def shard(name: str, keys: list[str], hidden: str | None) -> Scores:
        logits = np.array([0.0, 1.0])
        return Scores(
            example_ids=[f"{name}{i}" for i in range(2)],
            targets=np.array([0, 1]),
            clean=logits,
            attacked=dict.fromkeys(keys, logits),
            hidden=hidden,
        )

    shards = [shard("a", ["pgd"], None), shard("b", ["pgd", *OWN], "why")]
    for order in (shards, shards[::-1]):
        joined = join(order)
        assert (list(joined.attacked), joined.hidden) == (["pgd"], None)
    both = join([replace(shards[1], example_ids=["c", "d"]), shards[1]])
    assert (list(both.attacked), both.hidden) == (["pgd", *OWN], "why")
    with pytest.raises(adap.DataError, match="expected shards with scores under"):
        join([shards[0], shard("e", ["fgsm"], None)])
