"""Sweeps without a service: which trials there are, which are refused, which are worth having.

The judges: combinations counted by hand, a Pareto front by exhaustive comparison, and the known
optimum of a function that a search is after.
"""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adap.core.errors import ConfigError
from adap.core.training.search import suggest
from adap.core.training.sweeps import (
    Outcome,
    Range,
    Search,
    SweepRequest,
    best,
    combinations,
    outcome,
    pareto_front,
    refuse_unusable,
    trial,
)

DATASET = f"ds_{'0' * 26}"


def sweep(search: dict[str, Any], **training: Any) -> SweepRequest:
    return SweepRequest.model_validate(
        {"training": {"dataset_id": DATASET, **training}, "search": search}
    )


def grid(parameters: dict[str, list[Any]], **training: Any) -> SweepRequest:
    return sweep({"kind": "grid", "parameters": parameters}, **training)


def search(parameters: dict[str, Any], **fields: Any) -> Search:
    return Search.model_validate({"kind": "tpe", "parameters": parameters, **fields})


# --- grids ----------------------------------------------------------------------------------------


def test_a_grid_is_every_combination() -> None:
    request = grid({"method.lambda": [0.1, 1, 10], "optimizer.lr": [1e-3, 1e-4], "seed": [7]})
    trials = refuse_unusable(request)
    assert request.planned == len(trials) == 6
    assert [(made.method.lambda_, made.optimizer.lr, made.seed) for made in trials] == [  # type: ignore[union-attr]
        (weight, lr, 7) for weight in (0.1, 1, 10) for lr in (1e-3, 1e-4)
    ]
    assert {made.dataset_id for made in trials} == {DATASET}


def test_a_method_and_its_parameter_go_together_in_any_order() -> None:
    for parameters in (
        {"method": ["trades", "mart"], "method.lambda": [2, 4]},
        {"method.lambda": [2, 4], "method": ["trades", {"name": "mart"}]},
    ):
        made = refuse_unusable(grid(parameters))  # type: ignore[arg-type]
        assert sorted((training.method.name, training.method.lambda_) for training in made) == [  # type: ignore[union-attr]
            *(("mart", 2), ("mart", 4), ("trades", 2), ("trades", 4)),
        ]


def test_trials_keep_what_they_have_in_common() -> None:
    request = grid(
        {"optimizer.lr": [0.5, 0.25]}, preset="paper-bdd", name="rain", attack={"steps": 2}
    )
    made = trial(request, {"optimizer.lr": 0.5}, number=4)
    assert made.optimizer.lr == 0.5
    assert made.optimizer.weight_decay == 1e-5, "the preset's"
    assert (made.attack.steps, made.epochs, made.name) == (2, 32, "rain #4")


def test_epochs_are_chosen_by_robust_ap_unless_somebody_says_otherwise() -> None:
    def chosen_by(request: SweepRequest) -> set[str | None]:
        return {made.validation.select_by for made in refuse_unusable(request)}

    assert chosen_by(grid({"method": ["ce", "pgd"]})) == {"robust_ap"}
    assert chosen_by(grid({"seed": [1]}, validation={"select_by": "clean_ap"})) == {"clean_ap"}
    assert chosen_by(grid({"validation.select_by": ["clean_ap", "robust_ap"]})) == {
        "clean_ap",
        "robust_ap",
    }


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"method.lambda": [1], "method": ["adap_lpn", "ce"]}, '"ce".*lambda.*no such field'),
        ({"optimizer.lrr": [1]}, r"optimizer\.lrr: no such field; did you mean lr"),
        ({"epochs": [10, 0]}, r'\{"epochs": 0\}.*expected at least 1'),
        ({"epochs.more": [1]}, "the path of a field"),
        ({"none.such": [1]}, "the path of a field"),
        ({"positives_per_batch": [64, 128]}, "positives_per_batch below batch_size 128"),
    ],
)
def test_a_trial_that_is_no_training_is_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        refuse_unusable(grid(parameters))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "at least 1 item"),
        ({"seed": []}, "at least 1 item"),
        ({"seed": [1, 1]}, "each value of seed once"),
        ({"Seed": [1]}, "match pattern"),
        ({"a..b": [1]}, "match pattern"),
        ({"dataset_id": [DATASET]}, "fields other than dataset_id, task, warm_start, name, preset"),
        ({"task.positive": [["cat"]]}, "fields other than"),
        ({"preset": ["quick"]}, "fields other than"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        grid(parameters)


# --- what became of them --------------------------------------------------------------------------


def points(*pairs: tuple[float | None, float | None]) -> list[Outcome]:
    return [Outcome(number, {}, *pair) for number, pair in enumerate(pairs)]


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto_front(points((0.9, 0.1), (0.8, 0.3), (0.7, 0.2), (0.8, 0.2), (0.5, 0.5))) == [
        *(0, 1, 4),
    ]
    assert pareto_front(points((0.5, 0.5), (0.5, 0.5), (0.4, 0.5))) == [0, 1]
    assert pareto_front(points((None, None), (0.9, None), (0.1, 0.1))) == [2]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(*[st.integers(0, 4).map(lambda n: n / 4)] * 2), max_size=12))
def test_on_the_front_is_who_nobody_dominates(pairs: list[tuple[float, float]]) -> None:
    front = pareto_front(points(*pairs))
    for number, (clean, robust) in enumerate(pairs):
        better_at_clean = any(c > clean and r >= robust for c, r in pairs)
        better_at_robust = any(c >= clean and r > robust for c, r in pairs)
        assert (number in front) == (not better_at_clean and not better_at_robust)


def test_the_best_is_of_the_highest_robust_ap_or_of_what_is_sought() -> None:
    ended = points((0.9, 0.1), (0.5, 0.4), (0.95, None), (0.4, 0.4))
    assert best(grid({"seed": [1]}), ended) == 1
    request = sweep({"kind": "tpe", "parameters": {"seed": [1, 2]}, "maximise": "clean_ap"})
    assert best(request, ended) == 2
    assert best(request, points((None, None))) is None


def test_of_equal_trials_the_best_is_the_one_on_the_front() -> None:
    request = grid({"seed": [1]})
    ended = points((0.28, 0.14), (None, 0.14), (0.32, 0.14), (0.32, 0.14))
    assert best(request, ended) == 2
    assert 2 in pareto_front(ended)


def test_an_outcome_is_read_from_the_result_of_a_training() -> None:
    result = {"model_id": "m", "summary": {"best": {"clean_ap": 0.5, "robust_ap": None}}}
    assert outcome(3, {"seed": 1}, result) == Outcome(3, {"seed": 1}, 0.5, None)
    assert outcome(3, {"seed": 1}, None) == Outcome(3, {"seed": 1}, None, None)


# --- searches -------------------------------------------------------------------------------------

SPACE = {
    "method.lambda": {"low": 0.1, "high": 10, "log": True},
    "epochs": {"low": 3, "high": 9},
    "method": ["adap_ln", {"name": "adap_lpn"}],
}


def run(asked: Search, figures: Any, *, trials: int) -> list[Outcome]:
    """What a search tries, one trial at a time."""
    seen: list[Outcome] = []
    for number in range(trials):
        parameters = suggest(asked, number=number, seen=seen)
        seen.append(Outcome(number, parameters, *figures(parameters)))
    return seen


def test_a_search_stays_in_its_space_and_makes_trainings() -> None:
    request = sweep({"kind": "tpe", "parameters": SPACE, "trials": 30})
    assert request.planned == 30
    refuse_unusable(request)
    assert isinstance(request.search, Search)
    for seen in run(request.search, lambda _: (0.5, 0.5), trials=30):
        assert 0.1 <= seen.parameters["method.lambda"] <= 10  # type: ignore[operator]
        assert seen.parameters["epochs"] in range(3, 10)
        assert seen.parameters["method"] in ("adap_ln", {"name": "adap_lpn"})
        trial(request, json.loads(json.dumps(seen.parameters)), number=seen.number)


def test_a_search_repeats_itself_and_another_seed_does_not() -> None:
    def tried(seed: int) -> list[Outcome]:
        return run(search(SPACE, seed=seed), lambda p: (0.5, p["epochs"] / 10), trials=14)

    assert tried(1) == tried(1)
    assert tried(1) != tried(2)


def test_a_search_learns_from_what_has_ended() -> None:
    """Robust AP falls with the distance from lambda 2: the trials after the first come nearer."""

    def figures(parameters: dict[str, Any]) -> tuple[float, float]:
        return 0.5, 1 - abs(math.log(parameters["method.lambda"] / 2)) / 5

    asked = search({"method.lambda": SPACE["method.lambda"]}, maximise="robust_ap")
    seen = run(asked, figures, trials=60)
    robust = [trial.robust_ap for trial in seen]
    assert sum(robust[40:]) / 20 > sum(robust[:10]) / 10 + 0.05  # type: ignore[arg-type]
    assert max(robust) > 0.98  # type: ignore[type-var]


def test_trials_without_figures_teach_nothing() -> None:
    asked = search(SPACE)
    failed = [Outcome(n, {"seed": "gone"}, None, None) for n in range(5)]
    half = [Outcome(9, {"seed": "gone"}, 0.5, None)]
    assert suggest(asked, number=9, seen=[*failed, *half]) == suggest(asked, number=9, seen=[])


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"low": 1, "high": 1}, "expected low below high, got 1 and 1"),
        ({"low": 0, "high": 1, "log": True}, "expected low above 0 where log is true, got 0"),
        ({"low": "a", "high": 1}, "low"),
    ],
)
def test_a_range_that_is_none_is_refused(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        search({"optimizer.lr": space})


def test_a_space_that_reaches_beyond_a_field_is_refused() -> None:
    def asked(parameters: dict[str, Any], **training: Any) -> SweepRequest:
        return sweep({"kind": "tpe", "parameters": parameters}, **training)

    with pytest.raises(ConfigError, match=r'"epochs": 2000.*expected at most 1000'):
        refuse_unusable(asked({"epochs": {"low": 10, "high": 2000}}))
    with pytest.raises(ConfigError, match="whole number"):
        refuse_unusable(asked({"epochs": {"low": 10, "high": 20.5}}))
    with pytest.raises(ConfigError, match="below batch_size"):
        refuse_unusable(asked({"batch_size": {"low": 16, "high": 64}}, positives_per_batch=32))
    with pytest.raises(ConfigError, match=r"10,000 combinations .* got 1,000,000"):
        refuse_unusable(
            asked({name: list(range(100)) for name in ("seed", "epochs", "batch_size")})
        )


def test_a_stored_sweep_is_read_as_it_was() -> None:
    for request in (
        grid({"method": ["ce", {"name": "ap"}], "optimizer.lr": [1, 0.5]}, preset="quick"),
        sweep({"kind": "tpe", "parameters": SPACE, "trials": 3}),
    ):
        stored = json.loads(json.dumps(request.as_json()))
        again = SweepRequest.model_validate(stored)
        assert again == request
        if isinstance(again.search, Search):
            whole = again.search.parameters["epochs"]
            assert isinstance(whole, Range)
            assert whole.whole, "whole numbers stay whole"
        else:
            assert list(combinations(again.search)) == list(combinations(request.search))  # type: ignore[arg-type]
