"""/metrics, read by Prometheus' own parser, and ids in the log."""

import io
import json
import logging
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select, update

from adap.store import jobs, webhooks
from adap.store.ids import new_id
from adap.store.logs import configure_logging
from adap.store.tables import CondemnedRow, DeliveryRow, JobKind, JobRow, WebhookRow
from tests.api.conftest import Api, Scoring, noise, png, wait_for
from tests.conftest import REPOSITORY

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def told(api: Api, **headers: str) -> str:
    answer = api.http.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


def told_with_scoring(api: Api) -> str:
    """The same once the scoring process has answered as soon as it is expected to."""

    def look() -> str:
        text = told(api)
        return text if samples(text)["adap_scoring_up", labels()] == 1 else ""

    return wait_for(look, because="the scoring process is up")


def samples(text: str) -> Samples:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(api: Api, **headers: str) -> Samples:
    return samples(told(api, **headers))


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def end(api: Api, kind: JobKind, *, took_s: float, request: dict[str, Any]) -> None:
    """A job that took this long and succeeded."""
    with api.database.writing() as session:
        job = jobs.enqueue(session, kind, tenant="local", request=request)
        claim = jobs.claim(session, job.id, worker="w", lease_s=30)
        assert claim is not None
        jobs.succeed(session, claim, {})
        session.execute(
            update(JobRow).where(JobRow.id == job.id).values(started_at=JobRow.finished_at - took_s)
        )


def test_metrics_tell_what_waits_and_how_long_things_took(api: Api) -> None:
    for took_s in (0.3, 2.0, 2.0):
        end(api, JobKind.RANK, took_s=took_s, request={})
    end(api, JobKind.AUDIT_SHARD, took_s=4.0, request={"part": "scores", "images": 600})
    end(api, JobKind.AUDIT_SHARD, took_s=9.0, request={"part": "checks", "images": 1000})
    with api.database.writing() as session:
        for _ in range(2):
            jobs.enqueue(session, JobKind.TRAIN, tenant="local", request={})
        oldest = session.scalars(
            select(JobRow.id).where(JobRow.kind == JobKind.TRAIN).order_by(JobRow.id)
        ).first()
        session.execute(
            update(JobRow).where(JobRow.id == oldest).values(created_at=JobRow.created_at - 100)
        )
    found = scrape(api)
    waiting = labels(kind="train", queue="compute", status="queued")
    assert found["adap_jobs", waiting] == 2
    age = found["adap_oldest_job_age_seconds", labels(queue="compute", status="queued")]
    assert 100 <= age < 130
    done = {"kind": "rank", "status": "succeeded"}
    assert found["adap_job_seconds_count", labels(**done)] == 3
    assert found["adap_job_seconds_sum", labels(**done)] == pytest.approx(4.3, abs=1e-3)
    counts = [found["adap_job_seconds_bucket", labels(**done, le=le)] for le in ("0.1", "0.5", "5")]
    assert counts == [0, 1, 3]
    assert found["adap_attacked_images_total", frozenset()] == 600
    assert found["adap_attacked_images_per_second", frozenset()] == pytest.approx(150, rel=1e-3)
    assert found["adap_workers", labels(queue="compute")] == 0


def test_requests_are_counted_by_route_and_not_by_id(api: Api) -> None:
    dataset_id = api.dataset()
    route = {"method": "GET", "route": "/v1/datasets/{dataset_id}"}
    ok, missing = labels(**route, status="200"), labels(**route, status="404")
    before = scrape(api)
    for _ in range(3):
        api.http.get(f"/v1/datasets/{dataset_id}")
    api.http.get(f"/v1/datasets/ds_{'0' * 26}")
    api.http.get("/nothing/at/all")
    after = scrape(api)
    name = "adap_http_request_seconds_count"
    assert after[name, ok] - before.get((name, ok), 0) == 3
    assert after[name, missing] - before.get((name, missing), 0) == 1
    assert not any(dataset_id in str(labels) or "nothing" in str(labels) for _, labels in after)


def test_metrics_tell_of_the_scoring_process(scoring: Scoring) -> None:
    model = scoring.model()
    images = [("images", (f"{i}.png", png(image))) for i, image in enumerate(noise(3))]
    before = samples(told_with_scoring(scoring.api))
    assert scoring.api.http.post(f"/v1/models/{model}/scores", files=images).status_code == 200
    name = "adap_scoring_batch_images_sum"

    def counted() -> Samples | None:
        told = samples(told_with_scoring(scoring.api))
        return told if told[name, labels()] - before.get((name, labels()), 0) == 3 else None

    after = wait_for(counted, because="what scoring says is asked for anew")  # it is kept a moment
    assert after["adap_scoring_models", labels()] >= 1


def test_metrics_say_that_no_scoring_process_answers(api: Api) -> None:
    assert scrape(api)["adap_scoring_up", labels()] == 0


def test_the_documentation_lists_every_metric(scoring: Scoring) -> None:
    api = scoring.api
    api.http.get("/livez")
    page = (REPOSITORY / "docs" / "limits-and-metrics.md").read_text()
    text = told_with_scoring(api)
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    served = {name for name in kinds if not name.endswith("_created")}
    assert set(re.findall(r"`(adap_\w+)`", page)) == served


def test_metrics_are_for_administrators(api: Api) -> None:
    admin: dict[str, str] = {}
    for scope in ("admin", "read"):
        made = api.http.post("/v1/api-keys", json={"name": "k", "scopes": [scope]}, headers=admin)
        reader = {"Authorization": f"Bearer {made.json()['key']}"}
        admin = admin or reader
    assert api.http.get("/metrics").status_code == 401
    assert api.http.get("/metrics", headers=reader).status_code == 403
    assert scrape(api, **admin)


def test_every_line_of_the_log_names_its_request_and_its_job(api: Api) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        configure_logging(api.settings)
        (handler,) = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(stream)
        request = {"dataset_id": api.dataset(), "model_id": api.model()}
        answer = api.http.post("/v1/rankings", json=request)
        for event in ("doorbell.failed", "request.done"):  # in any order, after the answer
            wait_for(lambda event=event: event in stream.getvalue(), because=f"{event} is logged")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    request_id = answer.headers["x-request-id"]
    mine = {line["event"]: line for line in lines if line.get("request_id") == request_id}
    assert mine["job.queued"]["job_id"] == answer.json()["id"]
    assert mine["doorbell.failed"]["job_id"] == answer.json()["id"]
    assert mine["request.done"]["status"] == 201


def test_what_an_operator_is_woken_by_is_counted(api: Api) -> None:
    before = scrape(api)
    code = ("adap_failed_jobs_total", labels(code="storage_unavailable"))
    with api.database.writing() as session:
        job = jobs.enqueue(session, JobKind.RANK, tenant="local", request={})
        error = jobs.JobError("storage_unavailable", "The disk is gone.", retryable=True)
        for _ in range(2):
            claim = jobs.claim(session, job.id, worker="w", lease_s=30)
            assert claim is not None
            jobs.lose(session, claim, max_lost=2, reason=error, backoff_s=[-1.0])
        session.add(CondemnedRow(name="a"))
    after = scrape(api)

    def grown(name: str) -> float:
        return after[name, labels()] - before[name, labels()]

    assert after[code] - before.get(code, 0) == 1
    assert (grown("adap_lost_attempts_total"), grown("adap_condemned_files")) == (2, 1)
    assert after["adap_disk_free_bytes", labels()] > 0
    with api.database.writing() as session:
        session.delete(session.get_one(CondemnedRow, "a"))


def test_events_that_a_webhook_does_not_take_are_counted_until_it_has(api: Api) -> None:
    hook = WebhookRow(id=new_id("whk"), tenant="local", url="https://a.example", events=[], key="k")
    with api.database.writing() as session:
        session.add(hook)
        job = jobs.enqueue(session, JobKind.RANK, tenant="local", request={})
        event = DeliveryRow(
            id=new_id("msg"), webhook_id=hook.id, job_id=job.id, event="job.failed", payload="{}"
        )
        session.add(event)

    def attempt(answered: int) -> tuple[float, float]:
        """Send it, as far as the database knows: how many events are delayed, and given up."""
        with api.database.writing() as session:
            session.execute(update(DeliveryRow).values(next_at=0.0))
            sending = webhooks.take(session, event.id)
            assert sending is not None
            webhooks.settle(session, sending, answered=answered, error=None)
        told = scrape(api)
        return told["adap_delayed_events", labels()], told["adap_undelivered_events", labels()]

    counts = [attempt(500) for _ in range(len(webhooks.BACKOFF_S) + 1)]
    assert counts == [*[(1, 0)] * len(webhooks.BACKOFF_S), (0, 1)]
    with api.database.writing() as session:
        webhooks.again(session, session.get_one(DeliveryRow, event.id))
    assert attempt(204) == (0, 0)
