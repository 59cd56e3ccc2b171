"""A POST that is sent again, with its Idempotency-Key: one effect, one answer."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from adap.store import idempotency
from adap.store.tables import IdempotencyRow, JobRow
from tests.api.conftest import Api

Check = Callable[..., dict[str, Any]]
ARTEFACTS = {"model": ("m.safetensors", b"m"), "dataset": ("d.zip", b"d")}
REPEATABLE = {  # make nothing
    "/v1/models/{model_id}/scores",
    "/v1/models/{model_id}/smallest-change",
    "/v2/models/{model_id}/infer",
    "/v1/audits/estimate",
    "/v1/training-jobs/estimate",
    "/v1/sweeps/estimate",
}


def count(api: Api) -> int:
    """How many jobs there are."""
    with api.database.reading() as session:
        return session.scalar(select(func.count()).select_from(JobRow)) or 0


def posts(api: Api) -> dict[str, dict[str, Any]]:
    """What to send to each path that takes a POST."""
    ids = {"dataset_id": api.dataset(), "model_id": api.model()}
    train = {"dataset_id": ids["dataset_id"], "task": {"positive": ["cat"]}, "epochs": 2}
    queued, ended = (api.http.post("/v1/training-jobs", json=train).json()["id"] for _ in range(2))
    api.http.post(f"/v1/jobs/{ended}/cancel")
    upload = {"file_name": "d.zip", "size": 1}
    started = api.http.post("/v1/uploads", json=upload).json()["id"]
    api.http.put(f"/v1/uploads/{started}/parts/1", content=b"d")
    sweep = {"training": train, "search": {"kind": "grid", "parameters": {"seed": [0, 1]}}}
    swept = api.http.post("/v1/sweeps", json=sweep).json()["id"]
    return {
        "/v1/uploads": {"json": upload},
        f"/v1/uploads/{started}/complete": {"json": {"sha256": sha256(b"d").hexdigest()}},
        "/v1/datasets": {"files": {"file": ("d.zip", b"d")}},
        "/v1/models": {"files": {"file": ("m.safetensors", b"m")}},
        "/v1/training-jobs": {"json": train},
        "/v1/audits": {"json": ids},
        "/v1/rankings": {"json": ids},
        "/v1/sweeps": {"json": sweep},
        f"/v1/sweeps/{swept}/cancel": {},
        f"/v1/jobs/{queued}/cancel": {},
        f"/v1/jobs/{ended}/retry": {},
    }


def test_every_post_takes_an_idempotency_key(api: Api) -> None:
    paths = api.http.get("/openapi.json").json()["paths"]
    without = {
        path
        for path, operations in paths.items()
        if "post" in operations
        and "Idempotency-Key"
        not in {parameter["name"].title() for parameter in operations["post"].get("parameters", [])}
    }
    assert without == REPEATABLE


def test_the_same_request_again_is_answered_as_before_and_makes_nothing_new(api: Api) -> None:
    for number, (path, content) in enumerate(posts(api).items()):
        key = {"Idempotency-Key": f"key-{number}"}
        first = api.http.post(path, headers=key, **content)
        assert first.is_success, first.text
        assert "idempotency-replayed" not in first.headers
        made = count(api)
        again = api.http.post(path, headers=key, **content)
        assert again.headers["idempotency-replayed"] == "true", path
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert again.headers.get("location") == first.headers.get("location")
        assert count(api) == made, path
        if path not in ("/v1/datasets", "/v1/models") and not path.endswith(
            ("/cancel", "/complete")
        ):
            other = api.http.post(path, headers={"Idempotency-Key": "other"}, **content)
            assert other.json()["id"] != first.json()["id"]
            with api.database.writing() as session:
                session.execute(IdempotencyRow.__table__.delete())


def test_files_again_with_a_key_make_one_audit(api: Api) -> None:
    key = {"Idempotency-Key": "files"}
    first = api.http.post("/v1/audits", files=ARTEFACTS, headers=key)
    again = api.http.post("/v1/audits", files=ARTEFACTS, headers=key)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert count(api) == 3  # two checks and the audit


@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/training-jobs", "/v1/rankings"])
def test_a_key_of_another_request_is_refused(api: Api, problem: Check, path: str) -> None:
    key = {"Idempotency-Key": "mine"}
    ids = {"dataset_id": api.dataset(), "model_id": api.model()}
    assert api.http.post("/v1/rankings", json=ids, headers=key).status_code == 201
    other: dict[str, Any] = {
        "/v1/datasets": {"files": {"file": ("d.zip", b"other")}},
        "/v1/training-jobs": {
            "json": {"dataset_id": ids["dataset_id"], "task": {"positive": ["cat"]}}
        },
        "/v1/rankings": {"json": {**ids, "split": "test"}},
    }[path]
    body = problem(api.http.post(path, headers=key, **other), 422, "idempotency_key_reused")
    assert "'mine'" in body["detail"]
    assert count(api) == 1


def test_a_refused_request_leaves_its_key_free(api: Api, problem: Check) -> None:
    key = {"Idempotency-Key": "again"}
    request = {"dataset_id": api.dataset(), "model_id": api.model(), "split": "validation"}
    problem(api.http.post("/v1/rankings", json=request, headers=key), 422, "invalid_config")
    request["split"] = "test"
    assert api.http.post("/v1/rankings", json=request, headers=key).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "\x7f"])
def test_a_key_of_another_form_is_refused(api: Api, problem: Check, key: str) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    answer = api.http.post("/v1/rankings", json=request, headers={"Idempotency-Key": key})
    body = problem(answer, 422, "invalid_request")
    assert body["errors"][0]["pointer"].lower() == "/header/idempotency-key"


def test_fifty_at_once_make_one_job(api: Api) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    start = threading.Barrier(50)

    def post(_: int) -> httpx.Response:
        start.wait()
        return httpx.post(
            api.http.base_url.join("/v1/rankings"),
            json=request,
            headers={"Idempotency-Key": "once"},
            timeout=60,
            trust_env=False,
        )

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 49
    assert count(api) == 1


def test_an_api_key_is_not_shown_again(api: Api, problem: Check) -> None:
    request, key = {"name": "me", "scopes": ["admin"]}, {"Idempotency-Key": "k"}
    made = api.http.post("/v1/api-keys", json=request, headers=key).json()
    headers = {"Authorization": f"Bearer {made['key']}", **key}
    again = api.http.post("/v1/api-keys", json=request, headers=headers)
    assert made["id"] in problem(again, 409, "shown_once")["detail"]
    listed = api.http.get("/v1/api-keys", headers=headers).json()["data"]
    assert [row["id"] for row in listed] == [made["id"]]
    with api.database.reading() as session:
        (row,) = session.scalars(select(IdempotencyRow))
    assert made["key"] not in str(row.body)


def test_two_tenants_may_use_the_same_key(api: Api) -> None:
    from adap.store import keys

    with api.database.writing() as session:
        one, two = (
            keys.create(session, name="k", scopes=["read", "write"], tenant=tenant)[1]
            for tenant in ("one", "two")
        )
    made = [
        api.http.post(
            "/v1/datasets",
            files={"file": ("d.zip", b"d")},
            headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "same"},
        ).json()["id"]
        for key in (one, two)
    ]
    assert made[0] != made[1]


def test_answers_are_forgotten_after_a_while(api: Api) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    for key in ("old", "new"):
        api.http.post("/v1/rankings", json=request, headers={"Idempotency-Key": key})
    with api.database.writing() as session:
        session.execute(
            update(IdempotencyRow)
            .where(IdempotencyRow.key == "old")
            .values(created_at=IdempotencyRow.created_at - 100)
        )
        idempotency.forget(session, older_s=60)
    with api.database.reading() as session:
        assert session.scalars(select(IdempotencyRow.key)).all() == ["new"]
