"""Limits of a request and quotas of a tenant: each is a setting, and named where it is exceeded."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from adap.api.errors import ApiError
from adap.api.limits import LIMITS
from adap.api.quotas import Rates
from adap.core.config.attacks import PGDAttack, SquareAttack
from adap.core.config.training import TrainingAttack, TrainingRequest
from adap.store import freed, jobs, keys, results
from adap.store.settings import Settings
from adap.store.tables import FreedRow, JobKind, JobRow
from tests.api.conftest import Api, running
from tests.conftest import REPOSITORY

Check = Callable[..., dict[str, Any]]


@contextmanager
def limited(api: Api, **limits: Any) -> Iterator[Api]:
    """A second server on the same database, with other settings."""
    settings = api.settings.model_copy(update=limits)
    with running(settings) as url, httpx.Client(base_url=url, timeout=30) as http:
        yield Api(http, api.database, settings, api.folder)


@pytest.mark.parametrize(
    ("setting", "path", "change", "pointer"),
    [
        ("max_epochs", "/v1/training-jobs", {"epochs": 6}, "/body/epochs"),
        ("max_attack_steps", "/v1/training-jobs", {"attack": {"steps": 6}}, "/body/attack/steps"),
        ("max_attack_steps", "/v1/audits", {"attacks": [{"name": "pgd", "steps": 6}]}, "steps"),
        ("max_attack_queries", "/v1/audits", {"attacks": [{"name": "square", "queries": 6}]}, ""),
        ("max_attack_restarts", "/v1/audits", {"attacks": [{"name": "pgd", "restarts": 6}]}, ""),
        ("max_attack_steps", "/v1/audits", {"preset": "standard"}, "/body/attacks/0/steps"),
    ],
)
def test_a_request_over_a_limit_is_refused_and_the_setting_is_named(
    api: Api, problem: Check, setting: str, path: str, change: dict[str, Any], pointer: str
) -> None:
    request: dict[str, Any] = {"dataset_id": api.dataset()}
    if path == "/v1/audits":
        request["model_id"] = api.model()
    else:
        request |= {"task": {"positive": ["cat"]}, "epochs": 1, "attack": {"steps": 1}}
    with limited(api, **{setting: 5}) as strict:
        answer = strict.http.post(path, json={**request, **change})
        body = problem(answer, 422, "limit_exceeded")
    assert f"expected at most 5 (ADAP_{setting.upper()}), got " in body["detail"]
    assert body["errors"][0]["pointer"].endswith(pointer)
    assert api.http.get("/v1/jobs").json()["data"] == []
    assert api.http.post(path, json={**request, **change}).status_code == 201


def test_every_limited_field_is_in_a_request_and_every_limit_is_a_setting() -> None:
    fields = {
        field
        for config in (TrainingRequest, TrainingAttack, PGDAttack, SquareAttack)
        for field in config.model_fields
    }
    assert set(LIMITS) <= fields
    assert set(LIMITS.values()) <= set(Settings.model_fields)


@pytest.mark.parametrize("page", ["limits-and-metrics.md", "problems.md", "webhooks.md"])
def test_every_setting_in_the_documentation_exists(page: str) -> None:
    text = (REPOSITORY / "docs" / page).read_text()
    named = {name.lower() for name in re.findall(r"ADAP_([A-Z0-9_]+)", text)} - {"api_key"}
    assert named
    assert named <= set(Settings.model_fields)


def test_every_limit_and_quota_is_in_the_documentation_with_its_default() -> None:
    page = (REPOSITORY / "docs" / "limits-and-metrics.md").read_text()
    rows = dict(re.findall(r"^\| `ADAP_(MAX_\w+)` \| .+? \| (.+?) \|$", page, re.MULTILINE))
    limits = {name for name in Settings.model_fields if name.startswith("max_")}
    assert {name.lower() for name in rows} == limits - {"max_lost_attempts", "max_storage_attempts"}
    for name, shown in rows.items():
        default = Settings.model_fields[name.lower()].default
        units = {"GiB": 2**30, "MiB": 2**20}
        number, _, unit = shown.partition(" ")
        value = int(number) * units[unit] if unit in units else shown.replace(" ", "")
        assert str(value) in (str(default), f"unset:{str(default).lower()}"), name


def test_jobs_over_the_quota_wait_until_another_has_ended(api: Api, problem: Check) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    with limited(api, max_tenant_jobs=2) as strict:
        first = strict.http.post("/v1/rankings", json=request).json()
        assert strict.http.post("/v1/rankings", json=request).status_code == 201
        answer = strict.http.post("/v1/rankings", json=request)
        body = problem(answer, 429, "too_many_jobs")
        assert "ADAP_MAX_TENANT_JOBS" in body["detail"]
        assert int(answer.headers["retry-after"]) > 0
        files = {"file": ("d.zip", b"d")}
        problem(strict.http.post("/v1/datasets", files=files), 429, "too_many_jobs")
        assert strict.http.get("/v1/datasets").json()["data"][1:] == []

        assert strict.http.post(f"/v1/jobs/{first['id']}/cancel").status_code == 200
        assert strict.http.post("/v1/rankings", json=request).status_code == 201


def test_bytes_over_the_quota_are_refused_until_some_are_removed(api: Api, problem: Check) -> None:
    def upload(http: httpx.Client, size: int) -> httpx.Response:
        return http.post("/v1/datasets", files={"file": ("d.zip", b"x" * size)})

    with limited(api, max_tenant_bytes=1000) as strict:
        first = upload(strict.http, 600).json()
        answer = upload(strict.http, 401)
        body = problem(answer, 429, "storage_full")
        assert "got 401 more than the 600 there are" in body["detail"]
        assert int(answer.headers["retry-after"]) > 0
        assert upload(strict.http, 400).status_code == 201
        strict.http.post(f"/v1/jobs/{first['job_id']}/cancel")  # rejects the upload
        assert upload(strict.http, 600).status_code == 201


def test_who_sends_and_removes_in_a_loop_fills_no_disk(api: Api, problem: Check) -> None:
    """What went counts as long as its garbage may lie there; another tenant has room meanwhile."""

    def upload(http: httpx.Client) -> httpx.Response:
        return http.post("/v1/datasets", files={"file": ("d.zip", b"x" * 900)})

    with limited(api, max_tenant_bytes=1000, blob_grace_s=3600) as strict:
        first = upload(strict.http).json()
        strict.http.post(f"/v1/jobs/{first['job_id']}/cancel")  # rejects the upload
        assert strict.http.delete(f"/v1/datasets/{first['id']}").status_code == 204
        second = upload(strict.http).json()
        strict.http.post(f"/v1/jobs/{second['job_id']}/cancel")
        body = problem(upload(strict.http), 429, "storage_full")
        assert "at most 2000 bytes" in body["detail"]
        assert "0 there are and the 1800 removed within 4 hours" in body["detail"]
        with api.database.writing() as session:
            session.execute(update(FreedRow).values(tenant="other"))
        assert upload(strict.http).status_code == 201
        with api.database.writing() as session:
            session.execute(update(FreedRow).values(tenant="local", since=time.time() - 5 * 3600))
        third = strict.http.get("/v1/datasets").json()["data"][0]
        strict.http.post(f"/v1/jobs/{third['job_id']}/cancel")
        assert upload(strict.http).status_code == 201
        with api.database.writing() as session:
            freed.forget(session, grace_s=3600)
            (left,) = session.scalars(select(FreedRow.size)).all()
        assert left == 900


@pytest.mark.parametrize(
    ("asked", "path"), [("/v1/audits", "/v1/audits/{}/report"), ("/v1/rankings", "/v1/rankings/{}")]
)
def test_what_jobs_make_counts_until_it_is_removed(
    api: Api, problem: Check, asked: str, path: str
) -> None:
    def upload(http: httpx.Client, size: int) -> httpx.Response:
        return http.post("/v1/datasets", files={"file": ("d.zip", b"x" * size)})

    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    job = api.http.post(asked, json=request).json()
    path = path.format(job["id"])
    problem(api.http.delete(path), 409, "not_ready")
    with api.database.writing() as session:
        row = session.get_one(JobRow, job["id"])
        shard = jobs.enqueue(
            session, JobKind.AUDIT_SHARD, tenant="local", parent_id=row.id, shard=0, request={}
        )
        for made in (shard, row):
            claim = jobs.claim(session, made.id, worker="w", lease_s=30)
            assert claim is not None
            jobs.succeed(session, claim, {"summary": {"n": 1}, "blobs": {"report": "a" * 64}})
            results.note_size(session, made, 600)
    with limited(api, max_tenant_bytes=1000) as strict:
        body = problem(upload(strict.http, 401), 429, "storage_full")
        assert "got 401 more than the 600 there are" in body["detail"]
        assert strict.http.delete(path).status_code == 204
        assert upload(strict.http, 401).status_code == 201
    removed = problem(api.http.get(path), 404, "not_found")
    assert "were removed" in removed["detail"]
    problem(api.http.delete(path), 404, "not_found")
    shown = api.http.get(f"/v1/jobs/{job['id']}").json()
    assert shown["result"] == {"summary": {"n": 1}}
    assert not {"report", "scores", "ranking"} & shown["links"].keys()
    board = api.http.get("/v1/leaderboard", params={"dataset_id": request["dataset_id"]}).json()
    assert board["contenders"] == []
    with api.database.reading() as session:
        stored = set(session.scalars(select(JobRow.result["blobs"].as_string())))
    assert stored == {None}, "nothing refers to the files, so they are garbage"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that rates go by, which stands still until it is changed."""
    at = [100.0]
    monkeypatch.setattr("adap.api.quotas.time", SimpleNamespace(monotonic=lambda: at[0]))
    return at


def test_one_tenants_quota_is_not_anothers(api: Api, problem: Check, clock: list[float]) -> None:
    with api.database.writing() as session:
        one, two = (
            {"Authorization": f"Bearer {keys.create(session, name='k', **about)[1]}"}
            for about in (
                {"scopes": ["read", "write"], "tenant": "one"},
                {"scopes": ["read", "write"], "tenant": "two"},
            )
        )
    files = {"file": ("d.zip", b"d")}
    with limited(api, max_tenant_jobs=1, max_tenant_requests_per_s=3) as strict:
        assert strict.http.post("/v1/datasets", files=files, headers=one).status_code == 201
        answer = strict.http.post("/v1/datasets", files=files, headers=one)
        problem(answer, 429, "too_many_jobs")
        assert strict.http.post("/v1/datasets", files=files, headers=two).status_code == 201
        clock[0] += 1
        answers = [strict.http.get("/v1/jobs", headers=one) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 3
        problem(answers[3], 429, "rate_limited")
        assert int(answers[3].headers["retry-after"]) >= 1
        assert strict.http.get("/v1/jobs", headers=two).status_code == 200
        clock[0] += float(answers[3].headers["retry-after"])
        assert strict.http.get("/v1/jobs", headers=one).status_code == 200


def test_a_rate_lets_through_what_it_says(clock: list[float]) -> None:
    rates = Rates(50)
    taken = 0
    for _ in range(1000):
        with suppress(ApiError):
            rates.take("t")
            taken += 1
        clock[0] += 0.001
    assert 99 <= taken <= 101  # a full bucket of 50, and a second's refill
