"""The judges: a linear scorer, whose worst case is known, and AP counted out by brute force."""

import math
import re
from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

import adap
from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.registry import ATTACKS as ATTACKS_BY_NAME
from adap.core.audit import joining, measuring
from adap.core.audit.checks.figures import above_chance, positive_class
from adap.core.audit.checks.verdicts import merge
from adap.core.config.attacks import (
    APGDAttack,
    FGSMAttack,
    PGDAttack,
    SquareAttack,
    TransferAttack,
)
from adap.core.config.audits import AuditConfig, Surrogate
from adap.core.config.threats import Threat
from adap.core.errors import ConfigError, DataError, ModelError
from adap.core.figures import report as reports
from adap.core.figures import task as task_figures
from adap.core.figures.worst_case import worst_case
from adap.core.precision import float32_products, formats_of_products
from adap.core.report import DatasetProvenance, ModelProvenance, Provenance
from adap.core.scores import Evidence, Scores, load_scores, save_scores
from tests.core.test_capture import Tape

SHAPE = (3, 4, 4)
EPSILON = 0.05
CPU = torch.device("cpu")
THREAT = Threat(epsilon=EPSILON)
ATTACKS = [PGDAttack(), APGDAttack(steps=10)]


class Linear(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(SHAPE, generator=generator))

    def forward(self, x):
        return (x * self.w).sum(dim=(1, 2, 3))


def network(seed=0):
    """Not linear, so that starts and steps matter."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(128, 1), nn.Flatten(0)
        )


def examples(count=12, *, every=3):
    """Images far enough from black and white that the box never binds; every third is positive."""
    images = np.random.default_rng(0).integers(60, 200, size=(count, *SHAPE), dtype=np.uint8)
    targets = (np.arange(count) % every == 0).astype(np.int64)
    return images, targets, [f"image-{i:02}.png" for i in range(count)]


def attack(scorer, data=None, **changes):
    images, targets, example_ids = examples() if data is None else data
    settings = {
        "attacks": ATTACKS,
        "threat": THREAT,
        "surrogate": None,
        "seed": 0,
        "shard": 0,
        "batch_size": 5,
        "device": CPU,
        "on_progress": lambda done: None,
    } | changes
    return measuring.attack_shard(scorer, images, targets, example_ids, **settings)


def brute_force_ap(logits, targets):
    """Sorted by Python, negatives first in ties, and the precision counted at each positive."""
    ranked = [y for _, y in sorted(zip(-np.asarray(logits), targets, strict=True))]
    return np.mean([sum(ranked[:k]) / k for k, y in enumerate(ranked, start=1) if y])


def scores(clean, targets, **attacked):
    return Scores(
        example_ids=[f"image-{i}" for i in range(len(targets))],
        targets=np.array(targets),
        clean=np.array(clean, dtype=float),
        attacked={name: np.array(logits, dtype=float) for name, logits in attacked.items()},
    )


class Leap(PGDAttack):
    """A new entry of the catalogue, whose attack leaps a hundred times too far."""

    name: Literal["leap"] = "leap"


class Leaping:
    def perturb(self, loss_fn, x, *, threat_model, generator):
        _, gradient = loss_and_gradient(loss_fn, x)
        return x + 100 * threat_model.epsilon * gradient.sign()


def test_an_attack_that_leaves_the_ball_earns_no_more_than_the_ball_allows(monkeypatch):
    monkeypatch.setitem(ATTACKS_BY_NAME, "leap", lambda attack, threat: Leaping())
    scorer, (_, targets, _) = Linear(), examples()
    found = attack(scorer, attacks=[Leap()])
    # the worst that the ball holds for a linear score, written out
    fall = EPSILON * scorer.w.detach().abs().sum().item()
    expected = found.clean - (2 * targets - 1) * fall
    np.testing.assert_allclose(found.attacked["leap"], expected, atol=1e-4)
    for item in found.evidence:
        assert np.abs(item.attacked - item.clean).max() <= EPSILON + 1e-6


PROVENANCE = Provenance(
    model=ModelProvenance(id="mdl_1", name="m", sha256="0" * 64, architecture="small_cnn"),
    dataset=DatasetProvenance(id="ds_1", name="d", sha256="1" * 64, split=None),
    surrogate=None,
    config={},
    config_sha256="2" * 64,
    scores_sha256="3" * 64,
    seed=0,
    versions={},
    device="cpu",
    created_at="2026-11-01T00:00:00+00:00",
)


def report(found, *, attacks, threat=THREAT, doubts=()):
    config = AuditConfig(
        attacks=attacks,
        threat=threat,
        surrogate=Surrogate(model_id="mdl_" + 26 * "0"),
        budgets=[1],
        thresholds=["worst_case_ap >= 0.4"],
    )
    return reports.build_report(
        [task_figures.figures(found, positive=["truck"], config=config)],
        config=config,
        provenance=PROVENANCE.model_copy(update={"config": config.as_json()}),
        doubts=doubts,
    )


# --- one shard ------------------------------------------------------------------------------------


def test_every_image_of_a_linear_scorer_is_driven_to_its_worst_case():
    scorer = Linear()
    images, targets, example_ids = examples()
    w = scorer.w.detach().numpy().astype(np.float64)
    clean = (images / 255.0 * w).sum(axis=(1, 2, 3))
    # Each logit moves by epsilon * ||w||_1: down for positives, up for negatives.
    exact = clean - (2 * targets - 1) * EPSILON * np.abs(w).sum()

    found = attack(scorer)
    assert found.example_ids == example_ids
    np.testing.assert_array_equal(found.targets, targets)
    np.testing.assert_allclose(found.clean, clean, atol=1e-5)  # float32 sums of 48 pixels
    for logits in found.attacked.values():
        np.testing.assert_allclose(logits, exact, atol=1e-5)
    figures = task_figures.figures(found, positive=["truck"], config=AuditConfig(attacks=ATTACKS))
    assert figures.clean.ap == pytest.approx(brute_force_ap(clean, targets))
    assert figures.worst_case.ap == pytest.approx(brute_force_ap(exact, targets))
    assert figures.attacks["pgd"].mean_margin_drop == pytest.approx(EPSILON * np.abs(w).sum())


def test_transfer_follows_the_surrogate_and_is_judged_by_the_audited_model():
    scorer, surrogate = Linear(0), Linear(1)
    found = attack(scorer, attacks=[TransferAttack()], surrogate=surrogate)
    # The surrogate's worst image is x -+ epsilon * sign(w_s); the audited model sees w of it.
    shift = EPSILON * (scorer.w * surrogate.w.sign()).sum().item()
    expected = found.clean - (2 * found.targets - 1) * shift
    np.testing.assert_allclose(found.attacked["transfer"], expected, atol=1e-5)


def test_a_transfer_attack_without_surrogate_is_refused():
    with pytest.raises(ConfigError, match="needs a surrogate"):
        attack(Linear(), attacks=[TransferAttack()])


def test_the_networks_are_left_as_they_were():
    scorer, surrogate = network(0).train(), network(1).train()
    attack(scorer, attacks=[PGDAttack(), TransferAttack()], surrogate=surrogate)
    for model in (scorer, surrogate):
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_counts_the_clean_pass_and_every_attack_and_may_stop_the_work():
    told = []
    attack(Linear(), on_progress=told.append)
    assert told == sorted(set(told))
    assert told[-1] == 12 * (1 + len(ATTACKS))

    scorer = network().train()

    def cancel(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(scorer, on_progress=cancel)
    assert scorer.training


def test_the_evidence_is_the_positives_whose_logit_fell_most():
    scorer = network()
    found = attack(scorer, data=examples(30), evidence=4)
    lowest = np.minimum(found.attacked["pgd"], found.attacked["apgd"])
    drop = np.where(found.targets == 1, found.clean - lowest, -math.inf)
    worst_first = np.argsort(-drop)[:4]
    assert [item.example_id for item in found.evidence] == [
        found.example_ids[i] for i in worst_first
    ]
    images = examples(30)[0]
    for i, item in zip(worst_first, found.evidence, strict=True):
        np.testing.assert_array_equal(item.clean, images[i].astype(np.float32) / 255)
        assert np.abs(item.attacked - item.clean).max() == pytest.approx(EPSILON, rel=1e-5)
        assert item.attacked_logit == lowest[i] == found.attacked[item.attack][i]
        with torch.no_grad():
            logit = scorer(torch.from_numpy(item.attacked)[None]).item()
        assert logit == pytest.approx(item.attacked_logit, abs=1e-5)


# --- shards ---------------------------------------------------------------------------------------


def cut(data, start, stop):
    return tuple(part[start:stop] for part in data)


def test_shards_give_the_same_scores_whoever_computes_them_and_in_whatever_order():
    data = examples()
    one_worker = [
        attack(network(), data=cut(data, 0, 5), shard=0),
        attack(network(), data=cut(data, 5, 12), shard=1),
    ]
    torch.rand(100)  # another worker's process has another past
    late = attack(network(), data=cut(data, 5, 12), shard=1)
    early = attack(network(), data=cut(data, 0, 5), shard=0)
    first, second = joining.join(one_worker), joining.join([early, late])
    assert first.example_ids == second.example_ids == data[2]
    np.testing.assert_array_equal(first.targets, data[1])
    np.testing.assert_array_equal(first.clean, second.clean)
    for name in first.attacked:
        np.testing.assert_array_equal(first.attacked[name], second.attacked[name])
    assert [item.example_id for item in first.evidence] == [
        item.example_id for item in second.evidence
    ]


@pytest.mark.parametrize("change", [{"seed": 1}, {"shard": 1}])
def test_another_seed_or_shard_draws_other_starts(change):
    attacks = [PGDAttack(steps=1)]
    first = attack(network(), attacks=attacks)
    other = attack(network(), attacks=attacks, **change)
    assert (first.attacked["pgd"] != other.attacked["pgd"]).any()


def test_each_attack_draws_starts_of_its_own():
    # Two attacks that are little more than their starts.
    still = {"steps": 1, "step_size": 1e-9}
    attacks = [PGDAttack(iterate="last", **still), TransferAttack(**still)]
    found = attack(network(), attacks=attacks, surrogate=network())
    assert (found.attacked["pgd"] != found.attacked["transfer"]).all()


def test_an_attack_is_not_changed_by_the_attacks_beside_it():
    alone = attack(network(), attacks=[APGDAttack(steps=10)])
    together = attack(network(), attacks=ATTACKS)
    np.testing.assert_array_equal(alone.attacked["apgd"], together.attacked["apgd"])


def test_the_joined_evidence_is_the_positives_that_lost_most_ranks():
    picture = np.zeros(SHAPE, np.float32)

    def shard(example_ids, targets, clean, attacked):
        return Scores(
            example_ids=example_ids,
            targets=np.array(targets),
            clean=np.array(clean),
            attacked={"pgd": np.array(attacked)},
            evidence=[
                Evidence(name, "pgd", c, a, picture, picture)
                for name, y, c, a in zip(example_ids, targets, clean, attacked, strict=True)
                if y
            ],
        )

    # far falls by 90, but was and stays last; near falls by 2, past three negatives.
    joined = joining.join(
        [
            shard(["far", "n1"], [1, 0], [-10.0, 1.0], [-100.0, 1.0]),
            shard(["near", "n2", "n3"], [1, 0, 0], [2.0, 0.5, 0.4], [0.0, 0.5, 0.4]),
        ],
        evidence=1,
    )
    assert [item.example_id for item in joined.evidence] == ["near"]


def test_shards_that_do_not_belong_together_are_refused():
    first = attack(network(), attacks=[PGDAttack()])
    with pytest.raises(DataError, match="every example once"):
        joining.join([first, first])
    with pytest.raises(DataError, match="expected shards with scores under"):
        joining.join([first, attack(network(), attacks=[APGDAttack(steps=2)])])


def test_saved_scores_come_back_as_they_were(tmp_path):
    # transfer before apgd: not the order of the alphabet, and the order decides ties
    attacks = [PGDAttack(steps=2), TransferAttack(steps=2), APGDAttack(steps=2)]
    kept = attack(network(), attacks=attacks, surrogate=network(1))
    save_scores([kept], tmp_path / "scores.safetensors")
    (loaded,) = load_scores(tmp_path / "scores.safetensors")
    assert loaded.example_ids == kept.example_ids
    assert list(loaded.attacked) == list(kept.attacked)
    pairs = [(loaded.targets, kept.targets), (loaded.clean, kept.clean)]
    pairs += [(loaded.attacked[name], kept.attacked[name]) for name in kept.attacked]
    assert len(loaded.evidence) == len(kept.evidence) == 4
    for ours, theirs in zip(loaded.evidence, kept.evidence, strict=True):
        pairs += [(ours.clean, theirs.clean), (ours.attacked, theirs.attacked)]
        assert (ours.example_id, ours.attack) == (theirs.example_id, theirs.attack)
        assert (ours.clean_logit, ours.attacked_logit) == (
            theirs.clean_logit,
            theirs.attacked_logit,
        )
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


# --- figures --------------------------------------------------------------------------------------


def test_the_worst_case_takes_each_image_where_it_is_hurt_most():
    found = scores(
        clean=[3, 2, 1, 0],
        targets=[1, 1, 0, 0],
        pgd=[1, 2, 1, 4],  # hurts the first positive and the last negative
        apgd=[1, 0, 1, 3],  # and the second positive; the first no more than pgd did
    )
    logits, won = worst_case(found)
    np.testing.assert_array_equal(logits, [1, 0, 1, 4])
    assert won == {"clean": 1, "pgd": 2, "apgd": 1}


def test_the_worst_case_is_never_above_any_attack():
    rng = np.random.default_rng(0)
    for _ in range(50):
        targets = rng.permutation([1, 1, 1, 0, 0, 0, 0, 0])
        drawn = rng.integers(-3, 4, size=(3, 8))  # whole numbers: many ties
        found = scores(drawn[0], targets, pgd=drawn[1], apgd=drawn[2])
        figures = task_figures.figures(
            found, positive=["truck"], config=AuditConfig(attacks=ATTACKS)
        )
        assert sum(figures.worst_case.won.values()) == 8
        for logits, figure in (
            (found.clean, figures.clean),
            (found.attacked["pgd"], figures.attacks["pgd"]),
            (found.attacked["apgd"], figures.attacks["apgd"]),
        ):
            assert figure.ap == pytest.approx(brute_force_ap(logits, targets))
            assert figures.worst_case.ap <= figure.ap
        assert figures.worst_case.ap >= figures.floor


def test_a_report_holds_the_figures_counts_and_settings():
    found = scores([3, 1, 2, 0], [1, 1, 0, 0], pgd=[1, 1, 2, 0.5])
    made = report(found, attacks=[PGDAttack(steps=7)])
    (task,) = made.tasks
    assert (task.examples, task.positives, task.prevalence) == (4, 2, 0.5)
    assert task.chance == pytest.approx(49 / 72)  # the mean over all six orders, by hand
    assert task.clean.ap == pytest.approx((1 + 2 / 3) / 2)
    # Under PGD both positives have 1: the second place is shared, ranks 2 and 3.
    assert task.attacks["pgd"].ap == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert task.attacks["pgd"].mean_margin_drop == pytest.approx((2 + 0 + 0 + 0.5) / 4)
    assert task.attacks["pgd"].attack["steps"] == 7
    assert task.floor == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert made.mean == {
        "clean": task.clean.ap,
        "worst_case": task.worst_case.ap,
        "pgd": task.attacks["pgd"].ap,
    }
    assert type(made).model_validate_json(made.model_dump_json()) == made


def test_figures_refuse_scores_of_other_attacks():
    with pytest.raises(DataError, match="expected scores under"):
        task_figures.figures(
            scores([1, 0], [1, 0], pgd=[1, 0]),
            positive=["truck"],
            config=AuditConfig(attacks=ATTACKS),
        )


def test_a_careful_audit_of_a_good_model_warns_of_nothing():
    rng = np.random.default_rng(0)
    targets = (np.arange(1000) % 10 == 0).astype(np.int64)
    clean = 3 * targets + rng.normal(size=1000)
    hurt = clean - 0.5 * (2 * targets - 1)
    found = scores(clean, targets, pgd=hurt, transfer=hurt + 0.1 * (2 * targets - 1))
    assert report(found, attacks=[PGDAttack(), TransferAttack()]).warnings == []


@pytest.mark.parametrize(
    ("warning", "found", "settings"),
    [
        ("3 files", scores([1, 0], [1, 0], pgd=[1, 0]), {"doubts": ["Lost: 3 files."]}),
        ("equals the clean one", scores([1, 0], [1, 0], pgd=[1, 0]), {"threat": Threat(epsilon=0)}),
        ("No attack lowered", scores([1, 0], [1, 0], pgd=[1, 0]), {}),
        # An inverted ranking is at its floor, (1/5 + 2/6 + 3/7 + 4/8) / 4, and goes no lower.
        (
            r"Only 4 positives.*intervals 0\.\d\d to 1\.00 \(clean\) and 0\.37 to 0\.\d\d \(worst",
            scores(range(8), [0] * 4 + [1] * 4, pgd=range(8, 0, -1)),
            {},
        ),
        ("1 of 2 positives have", scores([2, 1, 1], [1, 1, 0], pgd=[0, 0, 2]), {}),
        ("no better than chance", scores([0, 1], [1, 0], pgd=[0, 1]), {}),
        ("reaches chance", scores([4, 1, 2, 3], [1, 1, 0, 0], pgd=[0, 0, 2, 3]), {}),
        ("50% of the examples", scores([1, 0], [1, 0], pgd=[1, 0]), {}),
        ("inverted the ranking", scores([2, 1, 0], [1, 0, 0], pgd=[-1, 1, 0]), {}),
        (
            "does not see the model.s gradients",
            scores([2, 1, 0], [1, 0, 0], pgd=[2, 1, 0], transfer=[-1, 1, 0]),
            {"attacks": [PGDAttack(), TransferAttack()]},
        ),
    ],
)
def test_what_a_reader_must_know_is_said(warning, found, settings):
    made = report(found, **({"attacks": [PGDAttack()]} | settings))
    assert [text for text in made.warnings if re.search(warning, text)]


@pytest.mark.parametrize(
    ("clean", "targets", "status"),
    [
        ([0, 1], [1, 0], "caution"),
        ([4, 1, 2, 3], [1, 1, 0, 0], "caution"),
        (range(40, 0, -1), [1] * 8 + [0] * 32, "pass"),
    ],
)
def test_a_clean_ap_that_may_be_one_by_chance_is_a_caution(clean, targets, status):
    made = report(scores(clean, targets, pgd=clean), attacks=[PGDAttack()])
    (task,) = made.tasks
    check = above_chance(task)
    assert check.status == status
    assert (task.clean.interval.low <= task.chance) == (status == "caution")
    assert (check.message in made.warnings) == (status == "caution")
    assert merge({"truck": [check]}).verdict == (
        "caution" if status == "caution" else "trustworthy"
    )


def single(positive):
    return ModelProvenance(
        id="mdl_1", name="m", sha256="0", architecture="small_cnn", outputs=1, positive=positive
    )


@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("known", [None, ["truck"], ["dog"]])
def test_a_single_logit_that_may_be_of_the_opposite_class_is_a_caution(upside_down, known):
    clean, targets = np.arange(40.0, 0, -1), np.repeat([1, 0], [8, 32])
    clean = -clean if upside_down else clean
    made = report(scores(clean, targets, pgd=clean), attacks=[PGDAttack()])
    (task,) = made.tasks
    turned = average_precision_score(targets, -clean)
    assert (task.upside_down is not None) == upside_down
    assert task.upside_down is None or task.upside_down.ap == pytest.approx(turned)
    said = [text for text in made.warnings if "may rank the opposite class" in text]
    assert (len(said) == 1) == upside_down
    check = positive_class(task, single(known))
    doubtful = known == ["dog"] or (known is None and upside_down)
    assert check.status == ("caution" if doubtful else "pass")
    assert ("ranks dog first" in check.message) == (known == ["dog"])
    again = reports.build_report(
        made.tasks,
        config=AuditConfig(attacks=[PGDAttack()]),
        provenance=made.provenance.model_copy(update={"model": single(known)}),
    )
    assert (check.message in again.warnings) == doubtful


# --- bad input ------------------------------------------------------------------------------------


class Answers(nn.Module):
    """A scorer that gives what a function makes of the images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


BROKEN = [
    (Answers(lambda x: x.mean(dim=(1, 2, 3))[:, None]), "expected one logit an image"),
    (Answers(lambda x: x.mean()), "expected one logit an image"),
    (Answers(lambda x: x.mean(dim=(1, 2, 3)) * math.nan), "expected finite logits"),
    (Answers(lambda x: x.mean(dim=(1, 2, 3)) / 0), "expected finite logits"),
]


@pytest.mark.parametrize(("scorer", "message"), BROKEN)
def test_outputs_that_cannot_be_ranked_are_refused_before_any_attack(scorer, message):
    images, targets, _ = examples()
    told = []
    with pytest.raises(ModelError, match=message):
        measuring.refuse_unrankable(scorer, images, targets, batch_size=5, device=CPU)
    with pytest.raises(ModelError, match=message):
        attack(scorer, on_progress=told.append)
    assert max(told, default=0) <= 12  # the clean pass alone


def test_a_constant_model_is_refused():
    images, targets, _ = examples()
    constant = Answers(lambda x: 0 * x.mean(dim=(1, 2, 3)) + 7)
    with pytest.raises(ModelError, match="got 7 for every one of 5"):
        measuring.refuse_unrankable(constant, images, targets, batch_size=5, device=CPU)
    with pytest.raises(ModelError, match="got 7 for every one of 12"):
        joining.join([attack(constant)])


def test_nan_that_only_an_attack_finds_is_refused_too():
    images = np.full((12, *SHAPE), 128, np.uint8)
    images[:, 0, 0, 0] = np.arange(12)
    brittle = Answers(lambda x: torch.sqrt(0.51 - x[:, 1, 1, 1]) + x.mean(dim=(1, 2, 3)))
    with pytest.raises(ModelError, match="got NaN or infinity on"):
        attack(
            brittle,
            data=(images, *examples()[1:]),
            attacks=[PGDAttack(steps=1, step_size=1.0, iterate="last")],
        )


@pytest.mark.parametrize("positives", [0, 1, 11, 12])
def test_fewer_than_two_positives_or_negatives_are_refused(positives):
    images, _, _ = examples()
    targets = (np.arange(12) < positives).astype(np.int64)
    with pytest.raises(DataError, match=f"got {positives} positives"):
        measuring.refuse_unrankable(Linear(), images, targets, batch_size=5, device=CPU)


def test_a_sound_model_is_accepted_even_on_identical_images():
    images, targets, _ = examples()
    measuring.refuse_unrankable(Linear(), images, targets, batch_size=5, device=CPU)
    measuring.refuse_unrankable(Linear(), images * 0, targets, batch_size=50, device=CPU)


def test_epsilon_zero_gives_the_clean_logits_bit_by_bit():
    found = attack(network(), threat=Threat(epsilon=0))
    for logits in found.attacked.values():
        np.testing.assert_array_equal(logits, found.clean)
    assert list(found.evidence) == []


# --- bounds ---------------------------------------------------------------------------------------


def sample(scorer, data=None, *, epsilon=EPSILON):
    images, targets, example_ids = examples() if data is None else data
    return measuring.certify_sample(
        scorer, images, targets, example_ids, threat=Threat(epsilon=epsilon), device=CPU
    )


def test_bounds_of_a_sample_are_its_own_and_the_shards_alike():
    # a linear scorer whose worst case is known, written with operations that can be bounded
    scorer = nn.Sequential(nn.Flatten(), nn.Linear(48, 1), nn.Flatten(0))
    with torch.no_grad():
        scorer[1].weight.copy_(Linear().w.flatten()[None])
        scorer[1].bias.zero_()
    reach = EPSILON * float(Linear().w.detach().abs().sum())
    images, _, example_ids = examples()
    found = sample(scorer)
    shard = measuring.certify_shard(
        scorer,
        attack(scorer, attacks=[]),
        images,
        threat=THREAT,
        method="crown_ibp",
        batch_size=5,
        device=CPU,
        on_progress=lambda done: None,
    )
    # the slack for float32, times slopes that add up to `reach / EPSILON`
    assert shard.bounds == pytest.approx(
        np.stack([shard.clean - reach, shard.clean + reach]), abs=1e-3
    )
    assert found.bounds == pytest.approx(shard.bounds, abs=1e-12)
    assert (found.example_ids, found.no_bounds, shard.no_bounds) == (example_ids, None, None)


class Numbered(nn.Module):
    """Fails on what a tracer hands over, with an error of its own."""

    def forward(self, x):
        if type(x) is not torch.Tensor or x.dtype != torch.float32:
            raise KeyError("only plain images")
        return x.flatten(1).sum(dim=1)


def test_whatever_error_a_network_makes_of_the_tracer_is_a_reason_for_no_bounds():
    found = sample(Numbered(), examples(), epsilon=EPSILON)
    assert found.bounds is None
    assert "cannot be bounded: 'only plain images'" in found.no_bounds


@pytest.mark.parametrize(
    ("scorer", "size", "epsilon", "reason"),
    [
        (nn.Flatten(), 65, 0.0, "Images larger than 64x64"),
        (network(), 4, EPSILON, "cannot be bounded: .*aten.silu"),
        (nn.Flatten(), 4, 1.0, "prove the order of no two of 12"),
    ],
)
def test_no_bounds_where_they_cost_too_much_or_prove_nothing(scorer, size, epsilon, reason):
    if isinstance(scorer, nn.Flatten):
        scorer = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 1), nn.Flatten(0))
    images, targets, example_ids = examples()
    images = np.resize(images, (12, 3, size, size))
    found = sample(scorer, (images, targets, example_ids), epsilon=epsilon)
    assert found.bounds is None or found.no_bounds is not None
    assert re.search(reason, found.no_bounds)


# --- how a search computes ------------------------------------------------------------------------

SEARCHES = [
    FGSMAttack(),
    PGDAttack(steps=8, restarts=2),
    APGDAttack(steps=20, patience=3),
    SquareAttack(queries=40),
]


def convolutions():
    """With BatchNorm to fold, and statistics that it did not begin with."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(32, 1)
        )
        made[1].running_mean += 0.1
        return nn.Sequential(made, nn.Flatten(0)).eval()


class Asking(nn.Module):
    """Looks at its pixels on the host, which no graph can."""

    def __init__(self):
        super().__init__()
        self.network = convolutions()

    def forward(self, x):
        return self.network(x) * (2 if x.amax().item() > 2 else 1)


@pytest.mark.usefixtures("one_thread")
def test_an_audit_whose_passes_are_captured_ends_in_the_same_bits():
    tape = Tape()
    options = {"data": examples(150), "attacks": SEARCHES, "batch_size": 64}
    captured, plain = (
        attack(convolutions(), **options, recorder=recorder) for recorder in (tape, None)
    )
    assert tape.replays > 30
    assert captured.clean.tolist() == plain.clean.tolist()
    for name, logits in plain.attacked.items():
        assert captured.attacked[name].tolist() == logits.tolist(), name
        assert (logits != plain.clean).any(), name
    for ours, theirs in zip(captured.evidence, plain.evidence, strict=True):
        assert ours.attack == theirs.attack
        assert (ours.attacked == theirs.attacked).all()


@pytest.mark.usefixtures("one_thread")
def test_passes_that_cannot_be_captured_run_as_they_are_and_the_log_says_so(caplog):
    tape = Tape()
    options = {"data": examples(60), "attacks": [PGDAttack(steps=20)], "batch_size": 30}
    captured, plain = (attack(Asking(), **options, recorder=recorder) for recorder in (tape, None))
    assert captured.attacked["pgd"].tolist() == plain.attacked["pgd"].tolist()
    (said,) = [r for r in caplog.records if r.message == "graph.not_captured"]
    assert said.levelname == "WARNING"
    assert "_local_scalar_dense" in said.reason
    assert tape.replays == 0


def test_a_search_in_bfloat16_is_scored_in_float32():
    much = SEARCHES[1:]  # for little work, such as one step, no copy is made
    options = {"data": examples(60), "attacks": much, "batch_size": 30, "evidence": 20}
    options["threat"] = Threat(norm="l2", epsilon=0.5)  # no sign that is the same for both
    scorer = convolutions()
    rounded, exact = (
        attack(scorer, **options, precision=precision) for precision in ("bfloat16", "float32")
    )
    assert rounded.clean.tolist() == exact.clean.tolist()
    _, targets, _ = examples(60)
    for name, logits in exact.attacked.items():
        assert (rounded.attacked[name] != logits).any(), f"{name} searched in float32"
        fall, expected = (
            ((1 - 2 * targets) * (found - exact.clean)).mean()
            for found in (rounded.attacked[name], logits)
        )
        assert fall > 0.9 * expected > 0, name
    assert len(rounded.evidence) == 20
    for found in rounded.evidence:
        # the network written out in float64: bfloat16 would be off by some thousandths
        logit = scorer.double()(torch.from_numpy(found.attacked)[None].double()).item()
        assert found.attacked_logit == pytest.approx(logit, abs=2e-6)


def test_tf32_is_no_format_of_a_score():
    seen = []

    class Noting(Linear):
        def forward(self, x):
            seen.append(formats_of_products())
            return super().forward(x)

    images, targets, _ = examples(24)
    with float32_products("tf32"):
        adap.audit(Noting(), images, targets, attacks=["fgsm"], certify="off", checks="off")
        assert set(formats_of_products()) == {"tf32"}
    assert set(seen[-1]) == {"ieee"}


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_what_asks_torch_for_its_older_flags_is_answered_while_products_are_exact(precision):
    before = torch.backends.cudnn.allow_tf32
    with float32_products(precision):
        assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        with torch.backends.cudnn.flags(enabled=False):
            pass
    assert torch.backends.cudnn.allow_tf32 == before
