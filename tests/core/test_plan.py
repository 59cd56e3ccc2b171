"""The plan of an audit. What its keys must tell apart and must not is written out here."""

import subprocess
import sys

import numpy as np
import pytest
from pydantic import TypeAdapter

from adap.core.audit.plan import (
    ChecksPiece,
    Piece,
    ScoresPiece,
    Subject,
    certified_sample,
    make_plan,
)
from adap.core.config.audits import AuditConfig
from adap.core.config.data import Task

SUBJECT = Subject(
    tenant="us",
    model="m" * 64,
    dataset="d" * 64,
    surrogate=None,
    split="test",
    examples=10,
    image=(8, 8),
)
CAT = Task(positive=["cat"])


def plan(subject: Subject = SUBJECT, task: Task = CAT, **config: object) -> list[Piece]:
    return make_plan(AuditConfig.model_validate({"shard_size": 4, **config}), [task], subject)


def keys(pieces: list[Piece]) -> list[dict[str, str]]:
    """The keys of each piece of scores by the names of the columns."""
    return [
        {column.name: column.key for column in piece.columns}
        for piece in pieces
        if isinstance(piece, ScoresPiece)
    ]


def other(**changed: object) -> Subject:
    return Subject(**{**SUBJECT.__dict__, **changed})


def test_every_example_of_every_task_is_in_one_piece_and_every_task_is_checked() -> None:
    tasks = [CAT, Task(positive=["dog"])]
    pieces = make_plan(AuditConfig(shard_size=4, preset="quick"), tasks, SUBJECT)
    assert [(type(p).__name__, p.task_number) for p in pieces] == [
        ("ChecksPiece", 0),
        *[("ScoresPiece", 0)] * 3,
        ("ChecksPiece", 1),
        *[("ScoresPiece", 1)] * 3,
    ]
    for number in (0, 1):
        own = [p for p in pieces if isinstance(p, ScoresPiece) and p.task_number == number]
        assert [(p.shard, p.start, p.stop) for p in own] == [(0, 0, 4), (1, 4, 8), (2, 8, 10)]
        # clean, pgd, apgd and the bounds count, each once an image
        assert [p.images for p in own] == [16, 16, 8]
    assert not any(isinstance(p, ChecksPiece) for p in plan(checks="off"))


def test_a_plan_is_the_same_after_it_was_written_as_json() -> None:
    read: TypeAdapter[Piece] = TypeAdapter(Piece)
    pieces = plan(threat={"norm": "l2", "epsilon": 0.1}, epsilons=[0.1, 0.3])
    for piece in pieces:
        assert read.validate_json(piece.model_dump_json()) == piece
        assert read.validate_python(piece.as_json()) == piece


def test_columns_stand_in_the_order_of_work() -> None:
    (first, *_) = keys(plan(attacks=["pgd", {"name": "pgd", "label": "curve"}], epsilons=[0.1]))
    assert list(first) == [
        *("clean", "attack.pgd", "attack.curve", "curve.0", "bounds.sample", "bounds")
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant": "them"},
        {"model": "n" * 64},
        {"dataset": "e" * 64},
        {"split": "train"},
        {"split": None},
        {"draws": 2},
    ],
)
def test_scores_of_another_subject_have_other_keys(changed: dict[str, object]) -> None:
    ours, theirs = keys(plan()), keys(plan(other(**changed)))
    assert not {key for piece in ours for key in piece.values()} & {
        key for piece in theirs for key in piece.values()
    }


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"seed": 1}, {"bounds.sample"}),
        ({"batch_size": 5}, {"bounds.sample"}),
        ({"shard_size": 5}, {"bounds.sample"}),
        ({"threat": {"epsilon": 0.25}}, {"clean"}),
        ({"attacks": [{"name": "pgd", "steps": 11}]}, {"clean", "bounds.sample", "bounds"}),
        ({"pipeline": [{"name": "quantise"}]}, set()),
        ({"thresholds": ["clean_ap >= 0.1"], "budgets": [3]}, None),
    ],
)
def test_what_changes_the_scores_of_a_column_changes_its_key_and_nothing_else_does(
    changed: dict[str, object], same: set[str] | None
) -> None:
    before, after = keys(plan(attacks=["pgd"]))[0], keys(plan(**{"attacks": ["pgd"], **changed}))[0]
    equal = {name for name in before if after.get(name) == before[name]}
    assert equal == (set(before) if same is None else same)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"seed": 1}, set()),
        ({"batch_size": 5}, set()),
        ({"shard_size": 5}, {"gradient.sample"}),
        ({"shard_size": 100}, {"gradient.sample"}),
        ({"threat": {"epsilon": 0.25}}, {"smallest"}),
        ({"budgets": [3]}, {"gradient.sample", "smallest", "universal"}),
    ],
)
def test_what_is_of_more_than_one_piece_has_the_key_of_all_that_its_scores_hang_on(
    changed: dict[str, object], same: set[str]
) -> None:
    asked = {"smallest_changes": {"k": 3}, "universal": {}, "preset": "standard"}

    def found(**more: object) -> dict[str, str]:
        whole, first, *_ = keys(plan(**asked, **more))
        return {**whole, "gradient.sample": first["gradient.sample"]}

    before, after = found(), found(**changed)
    assert {name for name in before if after[name] == before[name]} == same


def test_what_the_gradient_hides_is_asked_once_for_all_pieces_of_a_task() -> None:
    assert len({piece["gradient.sample"] for piece in keys(plan(preset="standard"))}) == 1


def test_a_pipeline_that_draws_is_scored_by_its_mean() -> None:
    varying = {"name": "jpeg", "least_quality": 50}
    assert {piece.draws for piece in plan(pipeline=[varying])} == {16}
    assert {piece.draws for piece in plan(pipeline=[{"name": "jpeg"}])} == {1}


def test_the_precision_of_a_search_matters_to_what_attacks_find_alone() -> None:
    asked = {"attacks": ["pgd"], "epsilons": [0.01], "corruptions": {"kinds": ["fog"]}}
    exact, rounded = (
        keys(plan(**asked, search_precision=precision)) for precision in ("float32", "bfloat16")
    )
    differ = {name for name in exact[0] if exact[0][name] != rounded[0][name]}
    assert differ == {"attack.pgd", "curve.0"}


def test_what_an_attack_is_called_does_not_change_its_key() -> None:
    named = keys(plan(attacks=[{"name": "pgd", "label": "strong"}]))[0]
    assert named["attack.strong"] == keys(plan(attacks=["pgd"]))[0]["attack.pgd"]


def test_the_surrogate_matters_to_the_transfer_attack_alone() -> None:
    asked = {"attacks": ["pgd", "transfer"], "surrogate": {"model_id": "mdl_" + "0" * 26}}
    first, second = (keys(plan(other(surrogate=s * 64), **asked))[0] for s in "st")
    assert {name for name in first if first[name] != second[name]} == {"attack.transfer"}


def test_a_point_of_the_curve_shares_the_scores_of_the_same_attack_at_that_epsilon() -> None:
    point = keys(plan(attacks=["pgd"], epsilons=[0.2]))[0]["curve.0"]
    attack = {"name": "apgd", "steps": 10}
    assert keys(plan(attacks=[attack], threat={"epsilon": 0.2}))[0]["attack.apgd"] == point


def test_two_epsilons_that_print_alike_have_columns_of_their_own() -> None:
    found = keys(plan(attacks=["pgd"], epsilons=[0.0313725, 8 / 255]))[0]
    assert found["curve.0"] != found["curve.1"]


def test_whether_to_bound_is_one_column_of_all_pieces_of_a_task() -> None:
    name = "bounds.sample"
    assert len({piece[name] for piece in keys(plan())}) == 1
    assert keys(plan(task=Task(positive=["dog"])))[0][name] != keys(plan())[0][name]


def test_the_sample_for_bounds_is_spread_over_both_sides() -> None:
    targets = np.array([1] * 3 + [0] * 71)
    rows = certified_sample(targets)
    assert list(rows[:3]) == [0, 1, 2]
    assert list(rows[3:]) == [3, 13, 23, 33, 43, 53, 63, 73]


def test_the_plan_needs_neither_torch_nor_a_database() -> None:
    asked = "import adap.core.audit.plan, sys; print({'torch', 'sqlalchemy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
