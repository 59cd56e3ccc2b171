"""More requests than the API lets wait, while another process keeps others from writing."""

import asyncio
import json
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from threading import Event
from typing import Any

import httpx
import psutil
import pytest
from anyio import CapacityLimiter

from adap.api.gathered import Gathered
from adap.api.main import THREADS
from adap.api.metrics import Metrics
from adap.api.overload import Overload
from adap.store.ids import new_id
from tests.api.conftest import Api, running_alone, wait_for
from tests.standstill import suspend

WAITING = 4
FULL = THREADS + WAITING
BODY = {"file_name": "x.zip", "size": 100}
Problem = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, psutil.Process]]:
    folder = tmp_path_factory.mktemp("overload")
    with running_alone(folder, ADAP_MAX_WAITING_REQUESTS=str(WAITING)) as made:
        yield made


@pytest.fixture
def api(alone: tuple[Api, psutil.Process]) -> Api:
    return alone[0]


@contextmanager
def crowd(api: Api) -> Iterator[list[Future[list[httpx.Response]]]]:
    """So many writers that who comes now is refused, while nobody may write; done at the end.

    One refusal may have been for others on their way. Five in a row, each asked for after the one
    before, mean that all places are taken.
    """
    path = api.settings.database.removeprefix("sqlite:///")

    def write() -> list[httpx.Response]:
        answers: list[httpx.Response] = []
        while len(answers) < 5 and all(answer.status_code == 503 for answer in answers):
            answers.append(api.http.post("/v1/uploads", json=BODY))
        return answers

    with (
        ThreadPoolExecutor(10 * FULL) as threads,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        writers: list[Future[list[httpx.Response]]] = []

        def one_is_always_refused() -> bool:
            writers.append(threads.submit(write))
            return any(writer.done() for writer in writers)

        wait_for(one_is_always_refused, because="all places are taken")
        yield writers


def test_what_would_wait_too_long_is_refused_at_once_and_the_others_are_served(
    api: Api, problem: Problem
) -> None:
    with ThreadPoolExecutor(1) as follower, crowd(api) as writers:
        follows = follower.submit(api.http.get, f"/v1/jobs/{new_id('job')}/events")
        refused = api.http.get("/v1/jobs?limit=1")
        problem(refused, 503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        problem(api.http.post("/v1/uploads", json=BODY), 503, "overloaded")
        problem(api.http.delete("/v1/models/none"), 503, "overloaded")
        assert api.http.get("/livez").status_code == 200
        assert not all(writer.done() for writer in writers)
    assert follows.result().status_code == 404
    answers = [answer for writer in writers for answer in writer.result()]
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


def test_streams_that_open_all_at_once_keep_nobody_elses_requests_waiting(
    alone: tuple[Api, psutil.Process],
) -> None:
    """They come while the process stands still, so that it meets them together."""
    api, process = alone
    training = {"dataset_id": api.dataset(), "task": {"positive": ["cat"]}}
    job = api.http.post("/v1/training-jobs", json=training).json()
    url = httpx.URL(str(api.http.base_url))
    follow = f"GET /v1/jobs/{job['id']}/events HTTP/1.1\r\nHost: localhost\r\n"
    follow += "Accept: text/event-stream\r\n\r\n"
    with ExitStack() as open_:
        streams = [
            open_.enter_context(socket.create_connection((url.host, url.port or 80), 60))
            for _ in range(3 * FULL)
        ]
        suspend(process)
        try:
            for stream in streams:
                stream.sendall(follow.encode())
        finally:
            process.resume()
        asked = open_.enter_context(ThreadPoolExecutor(WAITING))
        answers = asked.map(api.http.get, ["/v1/jobs?limit=1"] * 10 * WAITING)
        assert {answer.status_code for answer in answers} == {200}
        assert all(stream.recv(4096).startswith(b"HTTP/1.1 200 ") for stream in streams)


def test_of_those_that_come_in_one_turn_of_the_loop_no_more_are_let_through(api: Api) -> None:
    async def scenario() -> list[bool]:
        overload = Overload(WAITING, Metrics(api.database, home=api.settings.home, lease_s=30))
        overload.watch(CapacityLimiter(THREADS), Gathered())
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


def test_those_whom_one_look_is_to_answer_wait_as_those_for_a_thread_do(api: Api) -> None:
    may_go = Event()

    def read(keys: Sequence[int]) -> dict[int, int]:
        assert may_go.wait(60)
        return {key: key for key in keys}

    async def scenario() -> list[bool]:
        overload = Overload(WAITING, Metrics(api.database, home=api.settings.home, lease_s=30))
        gathered: Gathered[int, int] = Gathered()
        overload.watch(CapacityLimiter(THREADS), gathered)
        asked, refused = [], []
        for number in range(FULL + 1):
            refused.append(overload.refuses("/v1/jobs/1"))
            asked.append(asyncio.create_task(gathered.ask(number, read)))
            while gathered.waiting <= number:
                await asyncio.sleep(0)
        may_go.set()
        await asyncio.gather(*asked)
        return [*refused, overload.refuses("/v1/jobs/1")]

    assert asyncio.run(scenario()) == FULL * [False] + [True, False]


def some_of(connection: socket.socket) -> bytes:
    block = connection.recv(65536)
    assert block, "the server hung up"
    return block


def answer_on(connection: socket.socket) -> bytes:
    """One whole answer."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += some_of(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    (length,) = (
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if b"content-length" in line.lower()
    )
    while len(body) < length:
        body += some_of(connection)
    return answer


@pytest.mark.parametrize(
    ("method", "path", "body", "passed"),
    [
        ("POST", "/v1/uploads", json.dumps(BODY), 201),
        ("DELETE", f"/v1/models/{new_id('mdl')}", "", 404),
    ],
    ids=["POST", "DELETE"],
)
def test_of_writes_that_arrive_together_no_more_are_let_through(
    alone: tuple[Api, psutil.Process], method: str, path: str, body: str, passed: int
) -> None:
    api, process = alone
    url = api.http.base_url
    request = (
        f"{method} {path} HTTP/1.1\r\nhost: {url.host}:{url.port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    )
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((url.host, url.port), timeout=30))
            for _ in range(3 * FULL)
        ]
        httpx.get(url.join("/livez"))  # on another connection, so that these were taken before
        suspend(process)
        try:
            for connection in connections:
                connection.sendall(request.encode())
        finally:
            process.resume()
        statuses = Counter(int(answer_on(connection)[9:12]) for connection in connections)
    assert set(statuses) == {passed, 503}
    assert statuses[passed] <= FULL


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
            connection.sendall(head[:9])  # an idle connection would be closed before long
        connection.sendall(head[9:])
        assert answer_on(connection).startswith(b"HTTP/1.1 200 ")
