"""More requests than the API lets wait, while another process keeps others from writing."""

import asyncio
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
from anyio import CapacityLimiter

from api.main import THREADS
from api.metrics import Metrics
from api.overload import Overload
from store.ids import new_id
from tests.api.conftest import Api, running_alone, wait_for

WAITING = 4
FULL = THREADS + WAITING
BODY = {"file_name": "x.zip", "size": 100}
Problem = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("overload")
    with running_alone(folder, ADAP_MAX_WAITING_REQUESTS=str(WAITING)) as (made, _):
        yield made


@contextmanager
def crowd(api: Api) -> Iterator[list[Future[httpx.Response]]]:
    """So many writers that some are refused, while nobody may write; they are done at the end."""
    path = api.settings.database.removeprefix("sqlite:///")
    with (
        ThreadPoolExecutor(10 * FULL) as threads,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        posts: list[Future[httpx.Response]] = []

        def one_is_refused() -> bool:
            posts.append(threads.submit(api.http.post, "/v1/uploads", json=BODY))
            return any(post.done() for post in posts)

        wait_for(one_is_refused, because="somebody has been refused")
        yield posts


def test_what_would_wait_too_long_is_refused_at_once_and_the_others_are_served(
    api: Api, problem: Problem
) -> None:
    with ThreadPoolExecutor(1) as follower, crowd(api) as posts:
        follows = follower.submit(api.http.get, f"/v1/jobs/{new_id('job')}/events")
        refused = api.http.get("/v1/jobs?limit=1")
        problem(refused, 503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        problem(api.http.post("/v1/uploads", json=BODY), 503, "overloaded")
        problem(api.http.delete("/v1/models/none"), 503, "overloaded")
        assert api.http.get("/livez").status_code == 200
        assert not all(post.done() for post in posts)
    assert follows.result().status_code == 404
    answers = [post.result() for post in posts]
    accepted = [answer for answer in answers if answer.status_code == 201]
    assert len(accepted) >= FULL
    for answer in answers:
        if answer not in accepted:
            problem(answer, 503, "overloaded")
    assert api.http.get("/v1/jobs?limit=1").status_code == 200
    lines = api.http.get("/metrics").text.splitlines()
    for method in ("GET", "POST", "DELETE"):
        counted = f'adap_http_request_seconds_count{{method="{method}",route="none",status="503"}}'
        assert any(line.startswith(counted) for line in lines), method


def test_of_those_that_come_in_one_turn_of_the_loop_no_more_are_let_through(api: Api) -> None:
    async def scenario() -> list[bool]:
        overload = Overload(WAITING, Metrics(api.database, lease_s=30))
        overload.watch(CapacityLimiter(THREADS))
        for _ in range(10 * FULL):
            assert not overload.refuses("/livez")
            overload.let_through("/livez")
        refused = []
        for _ in range(2 * FULL):
            refused.append(overload.refuses("/v1/jobs"))
            if not refused[-1]:
                overload.let_through("/v1/jobs")
        assert not overload.refuses("/livez")
        await asyncio.sleep(0)  # the loop comes to those that were let through
        assert not overload.refuses("/v1/jobs"), "they asked for no thread"
        return refused

    assert asyncio.run(scenario()) == FULL * [False] + FULL * [True]


def answer_on(connection: socket.socket) -> bytes:
    """One whole answer."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    (length,) = (
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if b"content-length" in line.lower()
    )
    while len(body) < length:
        body += connection.recv(65536)
    return answer


def test_a_connection_goes_on_after_a_refusal_however_its_requests_come(api: Api) -> None:
    url = api.http.base_url
    head = f"GET /v1/jobs HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n\r\n".encode()
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        with crowd(api):
            connection.sendall(head)
            assert answer_on(connection).startswith(b"HTTP/1.1 503 ")
            connection.sendall(head[:9])  # in pieces, the second with the start of the next
            assert api.http.get("/livez").status_code == 200  # so the first was read
            connection.sendall(head[9:] + head[:20])
            assert answer_on(connection).startswith(b"HTTP/1.1 503 ")
            connection.sendall(head[20:])
            assert answer_on(connection).startswith(b"HTTP/1.1 503 ")
        connection.sendall(head)
        assert answer_on(connection).startswith(b"HTTP/1.1 200 ")
