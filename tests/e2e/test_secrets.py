"""Keys and secrets of a run turn up in the answer that made them, and nowhere else.

Judge: a search of every file that the service leaves and of every other byte that it sent.
"""

import sqlite3
import time
from pathlib import Path
from shutil import make_archive
from typing import Any

import httpx

from tests.client.conftest import TINY, write_image_folder
from tests.conftest import embedded_service


def test_a_whole_run_leaves_no_key_in_logs_events_or_answers(tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    settings = {"ADAP_LOG_LEVEL": "DEBUG", "ADAP_WEBHOOK_HOSTS": "127.0.0.0/8"}
    home = tmp_path / "home"
    with (
        embedded_service(home, **settings) as (url, _),
        httpx.Client(base_url=url, trust_env=False, timeout=30) as http,
    ):
        scopes = ["read", "write", "admin"]
        key = http.post("/v1/api-keys", json={"name": "all", "scopes": scopes}).json()["key"]
        mine = {"Authorization": f"Bearer {key}"}
        asked = {"name": "reader", "scopes": ["read"]}
        once = {**mine, "Idempotency-Key": "once"}
        made = http.post("/v1/api-keys", json=asked, headers=once).json()
        reader = {"Authorization": f"Bearer {made['key']}"}
        hook = http.post("/v1/webhooks", json={"url": "http://127.0.0.1:1/"}, headers=mine).json()
        secrets = [key, made["key"], hook["secret"]]
        assert all(len(secret) > 30 for secret in secrets)

        def ask(method: str, path: str, headers: dict[str, str], **content: Any) -> httpx.Response:
            answers.append(http.request(method, path, headers=headers, **content))
            return answers[-1]

        def ends(job_id: str) -> str:
            deadline = time.monotonic() + 60
            while not (job := ask("GET", f"/v1/jobs/{job_id}", mine).json())["done"]:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            return str(job["status"])

        # work of both workers, some of it in vain, and what is told of it
        write_image_folder(tmp_path / "pets")
        pets = Path(make_archive(str(tmp_path / "pets"), "zip", tmp_path / "pets")).read_bytes()
        dataset = ask("POST", "/v1/datasets", mine, files={"file": ("pets.zip", pets)}).json()
        assert ends(dataset["job_id"]) == "succeeded"
        model = ask("POST", "/v1/models", mine, files={"file": ("x.pt", b"no weights")}).json()
        assert ends(model["job_id"]) == "failed"
        training = {**TINY, "dataset_id": dataset["id"], "task": {"positive": ["cat"]}}
        job = ask("POST", "/v1/training-jobs", mine, json=training).json()
        assert ends(job["id"]) == "succeeded"
        for row in ask("GET", "/v1/jobs", mine).json()["data"]:
            assert ask("GET", f"/v1/jobs/{row['id']}/events", mine).json()["data"]
            ask("POST", f"/v1/jobs/{row['id']}/cancel", mine)
        ask("GET", f"/v1/webhooks/{hook['id']}/deliveries", mine)

        # every kind of refusal, with a key that is good, too weak, wrong, misplaced or revoked
        for headers in (mine, reader, {"Authorization": f"Bearer {key}x"}):
            ask("GET", "/v1/jobs/job_00000000000000000000000000", headers)
            ask("GET", "/v1/models", headers, params={"key": key})
            ask("POST", "/v1/training-jobs", headers, content=b"{")
            ask("POST", "/v1/audits", headers, json={"model_id": 1})
            ask("POST", "/v1/rankings", headers, content=b"x" * 2**21)
            ask("PUT", "/v1/jobs", headers)
        ask("POST", "/v1/api-keys", once, json=asked)
        ask("GET", "/v1/jobs", {"Authorization": f"Basic {key}"})
        ask("GET", "/v1/jobs", {"Authorization": key})
        ask("GET", "/v1/api-keys", mine)
        assert ask("DELETE", f"/v1/api-keys/{made['id']}", mine).status_code == 204
        assert ask("GET", "/v1/jobs", reader).status_code == 401

    statuses = {answer.status_code for answer in answers}
    assert statuses >= {200, 201, 204, 401, 403, 404, 405, 409, 413, 422}
    for answer in answers:
        told = answer.content.decode() + repr(answer.headers)
        assert not [secret for secret in secrets if secret in told], answer.request.url.path

    left = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    logs = b"".join(content for path, content in left.items() if path.suffix == ".log")
    for sign in (b"request.done", b'"level": "debug"', b"/v1/training-jobs", b"job.claimed"):
        assert sign in logs, sign
    assert home / "adap.db" in left
    signs = left[home / "webhook.key"]
    assert len(signs) == 64
    assert (home / "webhook.key").stat().st_mode & 0o777 == 0o600
    for path, content in left.items():
        kept = [secret.removeprefix("adap_").removeprefix("whsec_").encode() for secret in secrets]
        assert not [secret for secret in kept if secret in content], path
        assert (path.name == "webhook.key") == (signs in content), path
    with sqlite3.connect(home / "adap.db") as database:
        events = "".join(map(repr, database.execute("SELECT * FROM job_events")))
        deliveries = "".join(map(repr, database.execute("SELECT * FROM webhook_deliveries")))
    database.close()
    assert "epoch" in events
    assert deliveries
    assert not [secret for secret in secrets if secret in events + deliveries]
