"""Access rules of every operation of the OpenAPI: a new route is tested once it exists.

The judge is the OpenAPI alone: what takes an id, and what says that it needs no key.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from adap.api.main import create_app
from adap.store import jobs, keys
from adap.store.ids import new_id
from adap.store.settings import Settings
from adap.store.tables import DeliveryRow, JobKind, SweepRow, UploadRow, WebhookRow
from tests.api.conftest import Api

Check = Callable[..., dict[str, Any]]

OPEN = {
    "GET /livez",
    "GET /readyz",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
}
ADMINS = {
    "POST /v1/api-keys",
    "GET /v1/api-keys",
    "DELETE /v1/api-keys/{key_id}",
    "GET /v1/queues",
    "PUT /v1/queues/{queue}",
    "GET /metrics",
}
SAFE = {"GET"}
BODIES: dict[str, dict[str, Any]] = {  # of routes with an id, such that nothing but the id is wrong
    "POST /v1/models/{model_id}/scores": {"json": {"images": [{"data": "aGVsbG8="}]}},
    "POST /v1/models/{model_id}/smallest-change": {
        "files": {"image": ("i.png", b"png")},
        "data": {"below": "0"},
    },
    "POST /v2/models/{model_id}/infer": {
        "json": {
            "inputs": [{"name": "x", "shape": [1, 1, 1, 1], "datatype": "FP32", "data": [0.0]}]
        }
    },
    "GET /v1/rankings/{job_id}/place": {"params": {"score": 0}},
    "GET /v1/audits/{job_id}/place": {"params": {"score": 0}},
    "PATCH /v1/datasets/{dataset_id}": {"json": {"note": "theirs"}},
    "PATCH /v1/models/{model_id}": {"json": {"note": "theirs"}},
    "PUT /v1/uploads/{upload_id}/parts/{number}": {"content": b"0123456789"},
    "POST /v1/uploads/{upload_id}/complete": {"json": {"sha256": "0" * 64}},
}


def operations() -> list[str]:
    schema = create_app(Settings()).app.openapi()
    return [
        f"{method.upper()} {path}"
        for path, methods in schema["paths"].items()
        for method in methods
    ]


ALL = operations()
GUARDED = [operation for operation in ALL if operation not in OPEN]
WITH_ID = [operation for operation in GUARDED if "{" in operation and operation not in ADMINS]


def own(api: Api) -> dict[str, str]:
    """Something of the tenant `local` for every id that a path can have, but for keys."""
    dataset_id, model_id = api.dataset(), api.model()
    training = {"dataset_id": dataset_id, "task": {"positive": ["cat"]}}
    search = {"kind": "grid", "parameters": {"seed": [0, 1]}}
    with api.database.writing() as session:
        job_id, ranking_id = (
            jobs.enqueue(
                session,
                kind,
                tenant="local",
                request={},
                dataset_id=dataset_id,
                model_id=model_id,
            ).id
            for kind in (JobKind.AUDIT, JobKind.RANK)
        )
        made = {
            "sweep_id": SweepRow(
                id=new_id("swp"),
                tenant="local",
                request={"training": training, "search": search},
                dataset_id=dataset_id,
                planned=2,
            ),
            "upload_id": UploadRow(
                id=new_id("upl"),
                tenant="local",
                file_name="a.zip",
                size=10,
                part_bytes=10,
                expires_at=4e9,
            ),
            "webhook_id": WebhookRow(
                id=new_id("whk"), tenant="local", url="https://a.example", events=[], key="k"
            ),
        }
        session.add_all(made.values())
        session.flush()
        delivery = DeliveryRow(
            id=new_id("msg"),
            webhook_id=made["webhook_id"].id,
            job_id=job_id,
            event="job.failed",
            payload="{}",
            next_at=4e9,
        )
        session.add(delivery)
        found = {name: row.id for name, row in made.items()}
        return {
            **found,
            "dataset_id": dataset_id,
            "model_id": model_id,
            "job_id": job_id,
            "ranking_id": ranking_id,
            "delivery_id": delivery.id,
            "number": "1",
            "index": "0",
            "queue": "compute",
        }


@pytest.fixture
def ids(api: Api) -> dict[str, str]:
    """As above, with a key too, so that keys are needed from here on."""
    with api.database.writing() as session:
        row, _ = keys.create(session, name="mine", scopes=["read", "write"])
        key_id = row.id
    return {**own(api), "key_id": key_id}


def ask(api: Api, operation: str, ids: dict[str, str], key: str | None) -> httpx.Response:
    method, path = operation.split()
    path = path.replace("rankings/{job_id}", "rankings/{ranking_id}")
    filled = path.format(**ids)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return api.http.request(method, filled, headers=headers, **BODIES.get(operation, {}))


def key_of(api: Api, **fields: Any) -> str:
    with api.database.writing() as session:
        return keys.create(session, **{"name": "k", "scopes": ["read"], **fields})[1]


def test_what_needs_no_key_is_a_short_list() -> None:
    assert len(ALL) > 50
    assert set(ALL) >= OPEN
    assert set(ALL) >= ADMINS


@pytest.mark.parametrize("operation", GUARDED)
def test_without_a_good_key_every_operation_is_refused(
    api: Api, problem: Check, ids: dict[str, str], operation: str
) -> None:
    good = key_of(api, scopes=["read", "write", "admin"])
    wrong = [
        None,
        "adap_" + "0" * 43,
        good[:-1],
        good.swapcase(),
        key_of(api, expires_in_s=-1.0),
    ]
    for key in wrong:
        problem(ask(api, operation, ids, key), 401, "unauthorized")


@pytest.mark.parametrize("operation", GUARDED)
def test_a_key_does_only_what_its_scopes_say(
    api: Api, problem: Check, ids: dict[str, str], operation: str
) -> None:
    reader, writer = key_of(api), key_of(api, scopes=["write"])
    editor, admin = key_of(api, scopes=["read", "write"]), key_of(api, scopes=["admin"])
    if operation in ADMINS:
        refused = [reader, writer, editor]
    elif operation.split()[0] in SAFE:
        refused = [writer, admin]
    else:
        refused = [reader, admin]
    for key in refused:
        problem(ask(api, operation, ids, key), 403, "forbidden")


def told(response: httpx.Response, ids: dict[str, str]) -> tuple[int, str]:
    """An answer without what differs between any two requests."""
    text = response.text.replace(response.headers["x-request-id"], "REQUEST")
    for value in ids.values():
        if len(value) > 1:
            text = text.replace(value, "ID")
    return response.status_code, text


@pytest.mark.parametrize("operation", WITH_ID)
def test_what_another_tenant_owns_is_answered_as_if_it_were_not_there(
    api: Api, problem: Check, ids: dict[str, str], operation: str
) -> None:
    other = key_of(api, tenant="other", scopes=["read", "write"])
    nobody = {
        name: value if name in ("number", "index") else new_id(value.split("_")[0])
        for name, value in ids.items()
    }
    seen = ask(api, operation, ids, other)
    problem(seen, 404, "not_found")
    assert told(seen, ids) == told(ask(api, operation, nobody, other), nobody)
    owner = key_of(api, scopes=["read", "write"])
    assert ask(api, operation, ids, owner).status_code not in (404, 500), (
        "so the id was the only fault"
    )


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is asked of databases by requests meanwhile."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        # the key is looked for once a second, in a transaction of its own
        of_a_key = statement.startswith("BEGIN") or "FROM api_keys" in statement
        of_a_wait = statement.startswith("PRAGMA busy_timeout")  # of whoever writes meanwhile
        if not of_a_key and not of_a_wait and threading.current_thread().name != "deliveries":
            asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("operation", WITH_ID)
def test_what_another_tenant_owns_is_looked_for_like_what_is_not_there(
    api: Api, ids: dict[str, str], operation: str
) -> None:
    other = key_of(api, tenant="other", scopes=["read", "write"])
    nobody = {
        name: value if name in ("number", "index") else new_id(value.split("_")[0])
        for name, value in ids.items()
    }
    asked = []
    for named in (ids, nobody):
        with statements() as those:
            assert ask(api, operation, named, other).status_code == 404
        asked.append(list(those))
    # so neither takes the longer way, by which the one could be told from the other
    assert asked[0] == asked[1]
    assert asked[0]


def naming(ids: dict[str, str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Requests that name things elsewhere than in the path."""
    both = {"dataset_id": ids["dataset_id"], "model_id": ids["model_id"]}
    training = {"dataset_id": ids["dataset_id"], "task": {"positive": ["cat"]}}
    search = {"kind": "grid", "parameters": {"seed": [0, 1]}}
    yield "POST", "/v1/training-jobs", {"json": training}
    yield "POST", "/v1/sweeps", {"json": {"training": training, "search": search}}
    yield "POST", "/v1/audits", {"json": both}
    yield "POST", "/v1/audits/estimate", {"json": both}
    yield "POST", "/v1/training-jobs/estimate", {"json": training}
    yield "POST", "/v1/rankings", {"json": both}
    yield "POST", "/v1/datasets", {"data": {"upload_id": ids["upload_id"]}}
    yield "POST", "/v1/models", {"data": {"upload_id": ids["upload_id"]}}
    yield "GET", "/v1/leaderboard", {"params": {"dataset_id": ids["dataset_id"]}}


def test_what_another_tenant_owns_cannot_be_used_either(
    api: Api, problem: Check, ids: dict[str, str]
) -> None:
    other = {
        "Authorization": f"Bearer {key_of(api, tenant='other', scopes=['read', 'write'])}",
    }
    for method, path, content in naming(ids):
        problem(api.http.request(method, path, headers=other, **content), 404, "not_found")


def test_every_list_holds_the_tenants_own_only(api: Api, ids: dict[str, str]) -> None:
    mine = {"Authorization": f"Bearer {key_of(api, scopes=['read', 'write'])}"}
    other = {"Authorization": f"Bearer {key_of(api, tenant='other', scopes=['read', 'write'])}"}
    schema = api.http.get("/openapi.json").json()
    lists = [
        path
        for path, methods in schema["paths"].items()
        if "get" in methods
        and {"limit", "after"} <= {p["name"] for p in methods["get"].get("parameters", [])}
        and "{" not in path
        and f"GET {path}" not in ADMINS
    ]
    # the leaderboard is of one data set, see above
    assert {"/v1/datasets", "/v1/models", "/v1/jobs", "/v1/uploads", "/v1/sweeps"} <= set(lists)
    for path in lists:
        if path == "/v1/leaderboard":
            continue
        assert len(api.http.get(path, headers=mine).json()["data"]) >= 1, path
        assert api.http.get(path, headers=other).json()["data"] == [], path
