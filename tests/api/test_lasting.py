"""Answers that last end soon after the key of whoever asked for them does.

The judge is the client's end of the connection: what came before it was closed.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest
from sqlalchemy import func, select

from adap.api.deps import BRIEF_S
from adap.store import jobs, keys, uploads
from adap.store.artifacts import open_blobs
from adap.store.tables import LOCAL_TENANT, ApiKeyRow, DatasetRow, JobKind, UploadRow
from tests.api.conftest import Api, running_alone, wait_for

LENGTH = 48 * 2**20  # far more than both ends of a connection hold


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_alone(tmp_path_factory.mktemp("lasting")) as (api, _):
        with api.database.writing() as session:
            keys.create(session, name="admin", scopes=["admin"])
        yield api


@pytest.fixture
def job_id(alone: Api) -> str:
    with alone.database.writing() as session:
        return jobs.enqueue(session, JobKind.TRAIN, tenant=LOCAL_TENANT, request={}).id


def new_key(api: Api, scopes: Sequence[keys.Scope] = ("read",)) -> tuple[str, str]:
    with api.database.writing() as session:
        row, key = keys.create(session, name="k", scopes=list(scopes))
        return row.id, key


def revoke(api: Api, key_id: str) -> None:
    with api.database.writing() as session:
        assert keys.revoke(session, key_id)


def expire(api: Api, key_id: str) -> None:
    with api.database.writing() as session:
        session.get_one(ApiKeyRow, key_id).expires_at = time.time() - 1


@pytest.mark.parametrize("end", [revoke, expire])
def test_a_stream_of_events_ends_with_its_key(
    alone: Api, job_id: str, end: Callable[[Api, str], None]
) -> None:
    key_id, key = new_key(alone)
    mine = {"Authorization": f"Bearer {key}", "Accept": "text/event-stream"}
    with (
        httpx.Client(base_url=alone.http.base_url, timeout=60) as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events", headers=mine) as stream,
    ):
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert next(lines) == "event: queued"
        end(alone, key_id)
        for line in lines:  # it never ends of itself: nobody works on the job
            assert "ping" not in line  # many looks at the key later
    assert httpx.get(stream.url, headers=mine).status_code == 401


def test_whoever_waits_for_a_job_sees_nothing_of_it_once_the_key_has_ended(
    alone: Api, job_id: str
) -> None:
    key_id, key = new_key(alone)
    headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=3"}
    answers: list[httpx.Response] = []
    waiting = threading.Thread(
        target=lambda: answers.append(
            httpx.get(
                alone.http.base_url.join(f"/v1/jobs/{job_id}"),
                headers=headers,
                timeout=60,
            )
        )
    )
    waiting.start()
    time.sleep(0.5)  # in which it begins to wait; if not, it is refused all the same
    revoke(alone, key_id)
    waiting.join()
    assert answers[0].status_code == 401
    assert job_id not in answers[0].text


def test_a_download_ends_with_its_key(alone: Api) -> None:
    path = alone.folder / "large"
    with path.open("wb") as file:
        file.truncate(LENGTH)
    dataset_id = alone.dataset(content_sha256=open_blobs(alone.settings).put(path))
    key_id, key = new_key(alone)
    url = httpx.URL(str(alone.http.base_url))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.settimeout(60)
        connection.connect((url.host, url.port))
        connection.sendall(
            f"GET /v1/datasets/{dataset_id}/content HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n"
            f"Authorization: Bearer {key}\r\n\r\n".encode()
        )
        assert b"200 OK" in connection.recv(4096)
        revoke(alone, key_id)
        mine = {"Authorization": f"Bearer {key}"}
        wait_for(
            lambda: alone.http.get("/v1/jobs", headers=mine).status_code == 401,
            because="the key is known to have ended",
        )
        got = 0
        try:
            while data := connection.recv(2**15):  # slowly: it would take half a minute at least
                got += len(data)
                time.sleep(0.02)
        except ConnectionResetError:
            pass
    assert got < LENGTH


FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.npz"\r\n\r\nx\r\n--b--\r\n'
SLOW = {
    "POST /v1/uploads": ("application/json", b'{"file_name": "a", "size": 1}'),
    "PUT /v1/uploads/{upload}/parts/1": ("application/octet-stream", b"x"),
    "POST /v1/datasets": ("multipart/form-data; boundary=b", FORM),
    "POST /v1/audits": ("multipart/form-data; boundary=b", FORM),
}


@pytest.mark.parametrize("operation", SLOW)
def test_a_body_that_comes_after_the_end_of_its_key_makes_nothing(
    alone: Api, operation: str
) -> None:
    key_id, key = new_key(alone, ["read", "write"])
    mine = {"Authorization": f"Bearer {key}"}
    started = httpx.post(
        alone.http.base_url.join("/v1/uploads"), headers=mine, json={"file_name": "a", "size": 1}
    )
    kind, body = SLOW[operation]
    upload_id = started.json()["id"]
    line = operation.format(upload=upload_id)
    before = made(alone)
    url = alone.http.base_url
    with socket.create_connection((url.host, url.port), timeout=60) as connection:
        connection.sendall(
            f"{line} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 "), "the key was good"
        admitted_by = time.monotonic()
        revoke(alone, key_id)
        wait_for(
            lambda: (
                alone.http.get("/v1/jobs", headers=mine).status_code == 401
                and time.monotonic() - admitted_by > BRIEF_S  # less is not looked at again
            ),
            because="the key is known to have ended",
        )
        connection.sendall(body)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert made(alone) == before
    with alone.database.reading() as session:
        assert uploads.received(session, session.get_one(UploadRow, upload_id)) == {}


def made(api: Api) -> list[int]:
    """How many uploads and data sets there are."""
    with api.database.reading() as session:
        counts = [select(func.count()).select_from(table) for table in (UploadRow, DatasetRow)]
        return [session.scalar(count) or 0 for count in counts]
