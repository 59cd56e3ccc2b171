"""Images in order of score. The judge: every example sorted and chosen in plain Python."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adap.core.datasets import ImageSet
from adap.core.scores import Scores, save_scores
from adap.core.standing import Standing
from adap.store import jobs
from adap.store.artifacts import open_blobs
from adap.store.tables import JobKind
from tests.api.conftest import Api
from tests.api.test_routes import finish

Check = Callable[..., dict[str, Any]]
N = 60


@dataclass(frozen=True)
class Example:
    """One example, as the tests know it."""

    name: str
    label: str
    group: str
    target: int
    logits: dict[str, float]
    place: int


@dataclass(frozen=True)
class Made:
    """A finished job on a data set of which it saw every other image, in an order of its own."""

    path: str
    dataset_id: str
    examples: list[Example]

    def ranked(self, by: str) -> list[Example]:
        return sorted(self.examples, key=lambda it: (-it.logits[by], it.target))

    def ranks(self, by: str) -> dict[str, int]:
        return {it.name: rank for rank, it in enumerate(self.ranked(by), 1)}


def put(api: Api, path: Path) -> str:
    return open_blobs(api.settings).put(path)


def examples_of(dataset: ImageSet) -> list[Example]:
    """Rounded logits, so that some tie; two attacks that take images up and down."""
    rng = np.random.default_rng(5)
    seen = rng.permutation(np.arange(0, len(dataset), 2)).tolist()
    found = []
    for i in seen:
        target = int(dataset.labels[i] == 1)
        clean = round(float(rng.normal() + target), 1)
        fgsm, pgd = (round(clean + float(rng.normal()), 1) for _ in range(2))
        worst = (min if target else max)(clean, fgsm, pgd)
        logits = {"clean": clean, "fgsm": fgsm, "pgd": pgd, "worst_case": worst}
        assert dataset.groups is not None
        found.append(
            Example(
                dataset.example_ids[i], dataset.label_of(i), dataset.groups[i], target, logits, i
            )
        )
    return found


def stored_set(api: Api) -> tuple[ImageSet, str]:
    image_set = ImageSet(
        images=np.random.default_rng(0).integers(0, 256, (N, 1, 4, 4), np.uint8),
        labels=np.arange(N) % 3,
        classes=["cat", "dog", "fox"],
        example_ids=[f"<i>{i}</i>.png" for i in range(N)],
        groups=[("north", "south")[i // 30] for i in range(N)],
    )
    return image_set, api.dataset(content_sha256=api.keep(image_set))


def job_of(api: Api, kind: JobKind, dataset_id: str, result: dict[str, Any] | None) -> str:
    model_id = api.model()
    with api.database.writing() as session:
        job_id = jobs.enqueue(
            session, kind, tenant="local", request={}, dataset_id=dataset_id, model_id=model_id
        ).id
    if result is not None:
        finish(api, job_id, result)
    return job_id


def audit(api: Api, tasks: int = 1) -> Made:
    image_set, dataset_id = stored_set(api)
    examples = examples_of(image_set)
    scores = Scores(
        example_ids=[it.name for it in examples],
        targets=np.array([it.target for it in examples]),
        clean=np.array([it.logits["clean"] for it in examples]),
        attacked={name: np.array([it.logits[name] for it in examples]) for name in ("fgsm", "pgd")},
    )
    path = api.folder / "scores"
    save_scores([scores] * tasks, path)
    told = [{"positive": ["dog"]}, {"positive": ["fox", "cat"]}][:tasks]
    job_id = job_of(
        api,
        JobKind.AUDIT,
        dataset_id,
        {"summary": {"tasks": told}, "blobs": {"scores": put(api, path)}},
    )
    return Made(f"/v1/audits/{job_id}", dataset_id, examples)


def ranking(api: Api, *, task: bool = True) -> Made:
    image_set, dataset_id = stored_set(api)
    made = Made("", dataset_id, examples_of(image_set))
    ordered = made.ranked("clean")
    path = api.folder / "standing"
    Standing(
        np.array([it.place for it in ordered]),
        np.array([it.logits["clean"] for it in ordered]),
        np.array([it.target for it in ordered]) if task else None,
    ).save(path)
    job_id = job_of(
        api, JobKind.RANK, dataset_id, {"summary": {}, "blobs": {"standing": put(api, path)}}
    )
    return Made(f"/v1/rankings/{job_id}", dataset_id, made.examples)


def told(api: Api, path: str, **query: Any) -> list[dict[str, Any]]:
    """The whole list, by its cursors; `total` must be its length."""
    found: list[dict[str, Any]] = []
    while True:
        answer = api.http.get(f"{path}/images", params={"limit": 7, **query})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found += body["data"]
        if not body["has_more"]:
            assert body["next_cursor"] is None
            assert len(found) == body["total"]
            return found
        query["after"] = body["next_cursor"]


@pytest.mark.parametrize("by", ["clean", "fgsm", "pgd", "worst_case"])
def test_images_of_an_audit_come_in_order_of_their_scores(api: Api, by: str) -> None:
    made = audit(api)
    clean, ranked = made.ranks("clean"), made.ranked(by)
    assert len({it.logits[by] for it in ranked}) < len(ranked), "some are equal"
    assert told(api, made.path, by=by) == [
        {
            "rank": rank,
            "index": it.place,
            "example_id": it.name,
            "labels": [it.label],
            "split": None,
            "group": it.group,
            "cluster": None,
            "image": f"/v1/datasets/{made.dataset_id}/images/{it.place}",
            "score": it.logits[by],
            "positive": bool(it.target),
            "clean_rank": None if by == "clean" else clean[it.name],
        }
        for rank, it in enumerate(ranked, 1)
    ]


def test_images_are_chosen_by_label_group_side_and_mistake(api: Api) -> None:
    made = audit(api)
    ranks = made.ranks("pgd")
    positives = sum(it.target for it in made.examples)
    for query, fits in (
        ({"label": "fox"}, lambda it: it.label == "fox"),
        ({"group": "north", "label": "cat"}, lambda it: (it.group, it.label) == ("north", "cat")),
        ({"positive": "true"}, lambda it: it.target),
        ({"positive": "false"}, lambda it: not it.target),
        ({"mistake": "missed"}, lambda it: it.target and ranks[it.name] > positives),
        ({"mistake": "false_alarm"}, lambda it: not it.target and ranks[it.name] <= positives),
        ({"mistake": "missed", "cut": 3}, lambda it: it.target and ranks[it.name] > 3),
        ({"mistake": "false_alarm", "cut": 99}, lambda it: not it.target),
    ):
        expected = [it.name for it in made.ranked("pgd") if fits(it)]
        assert expected, query
        assert [it["example_id"] for it in told(api, made.path, by="pgd", **query)] == expected
    body = api.http.get(f"{made.path}/images").json()
    assert (body["examples"], body["positives"], body["cut"]) == (30, positives, positives)


def test_images_come_by_how_far_an_attack_took_them(api: Api, problem: Check) -> None:
    made = audit(api)
    clean, attacked = made.ranks("clean"), made.ranks("fgsm")
    expected = sorted(made.ranked("fgsm"), key=lambda it: -abs(attacked[it.name] - clean[it.name]))
    shown = told(api, made.path, by="fgsm", order="moved")
    assert [it["example_id"] for it in shown] == [it.name for it in expected]
    assert shown[0]["rank"] - shown[0]["clean_rank"] == (
        attacked[expected[0].name] - clean[expected[0].name]
    )
    refused = api.http.get(f"{made.path}/images", params={"order": "moved"})
    assert "name one as `by`" in problem(refused, 422, "invalid_request")["detail"]


def test_a_part_from_the_middle_is_as_in_the_whole(api: Api, problem: Check) -> None:
    made = ranking(api)
    whole = told(api, made.path)
    part = api.http.get(f"{made.path}/images", params={"start": 11, "limit": 5}).json()
    assert part["data"] == whole[11:16]
    after = {"after": part["next_cursor"], "limit": 5}
    assert api.http.get(f"{made.path}/images", params=after).json()["data"] == whole[16:21]
    assert api.http.get(f"{made.path}/images", params={"start": 900}).json()["data"] == []
    both = {"start": 1, "after": part["next_cursor"]}
    problem(api.http.get(f"{made.path}/images", params=both), 422, "invalid_request")


def test_a_ranking_without_a_task_has_no_positives(api: Api, problem: Check) -> None:
    path = ranking(api, task=False).path
    body = api.http.get(f"{path}/images").json()
    assert (body["positives"], body["cut"], body["data"][0]["positive"]) == (None, None, None)
    for query in ({"positive": "true"}, {"mistake": "missed"}, {"mistake": "missed", "cut": 3}):
        refused = problem(api.http.get(f"{path}/images", params=query), 422, "invalid_request")
        assert "no task" in refused["detail"]
    assert api.http.get(f"{path}/place?score=0").json()["positives_before"] is None


@pytest.mark.parametrize("make", [audit, ranking])
def test_a_score_is_placed_behind_all_that_are_as_high(
    api: Api, make: Callable[[Api], Made], problem: Check
) -> None:
    made = make(api)
    ranked = made.ranked("clean")
    for score in (-50.0, 50.0, ranked[7].logits["clean"], ranked[7].logits["clean"] + 0.01):
        before = [it for it in ranked if it.logits["clean"] >= score]
        place = api.http.get(f"{made.path}/place", params={"score": score}).json()
        assert place["rank"] == len(before) + 1
        assert place["positives_before"] == sum(it.target for it in before)
        assert (place["before"] or {}).get("example_id") == (before[-1].name if before else None)
        behind = ranked[len(before)].name if len(before) < len(ranked) else None
        assert (place["behind"] or {}).get("example_id") == behind
    for wrong in ("", "high", str(math.nan), "inf", "1e400"):
        problem(api.http.get(f"{made.path}/place?score={wrong}"), 422, "invalid_request")


def test_an_audit_of_several_tasks_is_asked_for_one(api: Api, problem: Check) -> None:
    path = audit(api, tasks=2).path
    for ending in ("images", "place?score=1"):
        refused = problem(api.http.get(f"{path}/{ending}"), 422, "invalid_request")
        assert "/query/task: expected one of dog, fox+cat; got none" in refused["detail"]
    for task in ("dog", "fox+cat"):
        assert len(told(api, path, task=task)) == 30
    refused = api.http.get(f"{path}/images", params={"task": "cat"})
    assert "got 'cat'" in problem(refused, 422, "invalid_request")["detail"]


def test_what_is_not_there_is_refused_in_a_sentence(api: Api, problem: Check) -> None:
    made = audit(api)
    for query, expected in (
        ({"by": "apgd"}, "expected one of clean, worst_case, fgsm, pgd; got 'apgd'"),
        ({"label": "wolf"}, "expected one of cat, dog, fox; got 'wolf'"),
        ({"group": "west"}, "expected one of north, south; got 'west'"),
        ({"mistake": "none"}, "missed"),
        ({"cut": 0}, "expected at least 1"),
        ({"start": -1}, "expected at least 0"),
    ):
        body = problem(api.http.get(f"{made.path}/images", params=query), 422, "invalid_request")
        assert expected in body["detail"], body
    waiting = job_of(api, JobKind.AUDIT, made.dataset_id, None)
    problem(api.http.get(f"/v1/audits/{waiting}/images"), 409, "not_ready")
    problem(api.http.get(made.path.replace("audits", "rankings") + "/images"), 404, "not_found")
    api.http.post(f"/v1/jobs/{waiting}/cancel")
    assert api.http.delete(f"/v1/datasets/{made.dataset_id}").status_code == 204
    gone = problem(api.http.get(f"{made.path}/images"), 404, "not_found")
    assert made.dataset_id in gone["detail"]
