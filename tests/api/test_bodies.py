"""Bodies that never end and clients that never finish, against the API in a process of its own.

Judges: the kernel's figures for the process, the bytes that a plain socket got rid of, and the
files that are left.
"""

import asyncio
import json
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import httpx
import psutil
import pytest
from starlette.types import Message, Receive, Scope, Send

from adap.api.arriving import CHUNK_BYTES, FREE_CHUNKS
from adap.api.main import create_app
from adap.store.artifacts import open_blobs
from adap.store.settings import Settings
from tests.api.conftest import Api, running_alone, serving, wait_for
from tests.api.test_access import ALL, ask, own

MIB = 2**20
LIMIT = 2 * MIB  # the largest body that any route of this API takes
ENOUGH = 5 * 1024 * MIB  # what is offered to each route
PATIENCE_S = 3.0
BUFFERED = 16 * MIB  # what the kernel may hold between the two ends
MANY_CHUNKS_BYTES = MIB // 2  # of chunks of a byte each: far more than is read at once

STARTS = {
    "application/json": b'{"x": "',
    "application/octet-stream": b"PK\3\4",
    "multipart/form-data": (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n'
        b"Content-Type: application/zip\r\n\r\n"
    ),
}


@dataclass(frozen=True)
class Alone:
    """An API process, its client, something of everything, and where it puts its files."""

    api: Api
    ids: dict[str, str]
    process: psutil.Process
    temporary: Path

    def peak(self) -> int:
        """The most bytes of memory that the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    folder = tmp_path_factory.mktemp("bodies")
    (folder / "tmp").mkdir()
    environment = {
        "ADAP_MAX_UPLOAD_BYTES": str(LIMIT),
        "ADAP_MAX_SCORING_BYTES": str(LIMIT),
        "ADAP_MAX_JSON_BYTES": "100000",
        "ADAP_REQUEST_PATIENCE_S": str(PATIENCE_S),
        "ADAP_MAX_WAITING_REQUESTS": "1000",  # nobody is to be refused because there are many
        "TMPDIR": str(folder / "tmp"),
    }
    with running_alone(folder, **environment) as (api, process):
        yield Alone(api, own(api), process, folder / "tmp")


def taking_bodies() -> list[tuple[str, str]]:
    """Every operation with each kind of body that it takes."""
    paths = create_app(Settings()).app.openapi()["paths"]
    return [
        (operation, kind)
        for operation in ALL
        for method, path in [operation.split()]
        for kind in paths[path][method.lower()].get("requestBody", {}).get("content", {})
    ]


def pour(alone: Alone, operation: str, kind: str) -> tuple[int, int]:
    """Send a body without a length until there is an answer: its status, and the bytes sent."""
    method, path = operation.split()
    path = path.format(**alone.ids)
    url = alone.api.http.base_url
    sent, block = 0, bytes(2**16) if kind != "application/json" else b" " * 2**16
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{url.port}\r\n"
            f"Content-Type: {kind}{'; boundary=b' if 'multipart' in kind else ''}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        start = STARTS[kind]
        connection.sendall(head.encode() + f"{len(start):x}\r\n".encode() + start + b"\r\n")
        chunk = f"{len(block):x}\r\n".encode() + block + b"\r\n"
        try:
            while sent < ENOUGH and not select.select([connection], [], [], 0)[0]:
                connection.sendall(chunk)
                sent += len(block)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has hung up, and its answer may still be there
        answer = connection.recv(4096)
    return int(answer.split(b" ")[1]), sent


@pytest.mark.parametrize(("operation", "kind"), taking_bodies())
def test_a_body_without_length_or_end_is_refused_early_and_costs_no_memory(
    alone: Alone, operation: str, kind: str
) -> None:
    before = alone.peak()
    status, sent = pour(alone, operation, kind)
    # a part has a size of its own, and is refused as another one
    assert status == (422 if operation.startswith("PUT /v1/uploads") else 413)
    assert sent < LIMIT + BUFFERED < ENOUGH
    assert alone.peak() - before < 16 * MIB
    left = [path for path in alone.temporary.rglob("*") if path.is_file()]
    left += list((alone.api.settings.home / "incoming").glob("*"))
    assert left == []


@pytest.mark.parametrize("path", ["/v1/audits", "/v1/nothing"])
def test_a_body_in_very_many_small_chunks_is_ended_before_it_costs_much(
    alone: Alone, path: str
) -> None:
    """Read whole, it would hold the loop for seconds, and whoever has no key may send it."""
    url = alone.api.http.base_url
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{url.port}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks, answer, sent = b"1\r\n \r\n" * FREE_CHUNKS, b"", 0
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)  # little is on its way
        connection.settimeout(60)
        connection.connect((url.host, url.port))
        connection.sendall(head.encode())
        try:
            while sent < MANY_CHUNKS_BYTES:
                if select.select([connection], [], [], 0)[0]:
                    if not (data := connection.recv(4096)):
                        break
                    answer += data
                connection.sendall(chunks)
                sent += len(chunks)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has hung up, and its answer may be lost
    assert sent < MANY_CHUNKS_BYTES, "it hung up before all was sent"
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))


def test_small_chunks_are_taken_in_moderation(alone: Alone) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b" "] * FREE_CHUNKS
        yield from [b" " * CHUNK_BYTES] * FREE_CHUNKS
        yield b"{}"

    headers = {"Content-Type": "application/json"}
    answer = alone.api.http.post("/v1/audits", content=chunks(), headers=headers)
    assert answer.status_code == 422
    many = (b" " for _ in range(FREE_CHUNKS + 10))
    refused = alone.api.http.post("/v1/audits", content=many, headers=headers)
    assert (refused.status_code, refused.text) == (
        400,
        "Expected chunks of at least 64 bytes, got many of fewer.",
    )


def test_a_body_that_goes_wrong_after_its_answer_ends_the_connection_and_no_more(
    alone: Alone,
) -> None:
    """The log of this process must have no traceback, see `running_alone`."""
    url = alone.api.http.base_url
    with socket.create_connection((url.host, url.port), timeout=60) as connection:
        head = "POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"zz\r\n")
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass


def test_what_takes_no_body_reads_none(alone: Alone) -> None:
    before = alone.peak()
    taking = {operation for operation, _ in taking_bodies()}
    for operation in ALL:
        if operation not in taking and not operation.startswith("DELETE"):
            _, sent = pour(alone, operation, "application/octet-stream")
            assert sent < LIMIT + BUFFERED, operation
    assert alone.peak() - before < 16 * MIB


def test_a_hundred_clients_that_never_finish_keep_nobody_waiting(alone: Alone) -> None:
    url = alone.api.http.base_url
    with ExitStack() as stack:
        for n in range(100):
            connection = stack.enter_context(socket.create_connection((url.host, url.port)))
            unfinished = (
                b"POST /v1/training-jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n",
                b"POST /v1/training-jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
            )[n % 2]
            connection.sendall(unfinished)
        times = []
        for _ in range(20):
            started = time.monotonic()
            assert alone.api.http.get("/livez").is_success
            assert ask(alone.api, "GET /v1/jobs/{job_id}", alone.ids, None).status_code == 200
            times.append(time.monotonic() - started)
    assert sorted(times)[10] < 1


def test_clients_that_send_little_at_a_time_are_hung_up_on_and_keep_nobody_waiting(
    alone: Alone,
) -> None:
    url = alone.api.http.base_url
    head = b"POST /v1/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %s\r\nContent-Length: 1000"
    form = b"multipart/form-data; boundary=b"
    ways = (
        b"GET /livez HTTP/1.1\r\nX-Slow: ",  # of this one the head never ends
        head % (b"training-jobs", b"application/json") + b"\r\n\r\n{",
        head % (b"datasets", form) + b"\r\n\r\n" + STARTS["multipart/form-data"],
        head % (b"audits", form) + b"\r\n\r\n" + STARTS["multipart/form-data"],
        # these two are answered at once, and the rest of their bodies goes on coming
        head % (b"nothing", b"application/json") + b"\r\n\r\n{",
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    alone_s = p95([answered_in(alone) for _ in range(100)])
    times, answers = [], dict.fromkeys(ways, b"")
    with ExitStack() as stack:
        open_ = {
            # from five addresses: one has 128 connections before it shows a key
            stack.enter_context(
                socket.create_connection(
                    (url.host, url.port), source_address=(f"127.0.0.{2 + n % 5}", 0)
                )
            ): ways[n % len(ways)]
            for n in range(500)
        }
        for connection, start in open_.items():
            connection.sendall(start)
            connection.setblocking(False)
        deadline = time.monotonic() + 120  # on a machine that others keep busy
        while open_ and time.monotonic() < deadline:
            for connection, way in list(open_.items()):
                try:
                    connection.send(b"1\r\n \r\n" if b"chunked" in way else b" ")
                    while block := connection.recv(4096):
                        answers[way] += block
                    del open_[connection]
                except BlockingIOError:
                    pass
                except (BrokenPipeError, ConnectionResetError):
                    del open_[connection]
            assert alone.api.http.get("/livez").is_success  # behind all that was just sent
            times += [answered_in(alone) for _ in range(9)]
            time.sleep(0.2)
        assert not open_
    never, *slow, unknown, unasked = answers.values()
    assert never == b""
    for answer in slow:
        assert b'"code":"too_slow"' in answer
        assert set(re.findall(rb"HTTP/1.1 (\d+)", answer)) == {b"408"}
    assert set(re.findall(rb"HTTP/1.1 (\d+)", unknown)) == {b"404"}
    assert set(re.findall(rb"HTTP/1.1 (\d+)", unasked)) == {b"200"}
    assert p95(times) < max(0.2, 3 * alone_s), "on a machine that others keep busy, in proportion"


def answered_in(alone: Alone) -> float:
    started = time.monotonic()
    assert alone.api.http.get("/livez").is_success
    return time.monotonic() - started


def p95(times: list[float]) -> float:
    return sorted(times)[int(0.95 * len(times))]


def test_clients_that_read_nothing_are_hung_up_on(alone: Alone) -> None:
    url = alone.api.http.base_url
    large = alone.api.folder / "large"
    with large.open("wb") as file:
        file.truncate(64 * MIB)  # more than the buffers of any kernel
    model_id = alone.api.model(content_sha256=open_blobs(alone.api.settings).put(large))
    ask_for_it = f"GET /v1/models/{model_id}/content HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    started = time.monotonic()
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((url.host, url.port), timeout=30))
            for _ in range(50)
        ]
        ports = {connection.getsockname()[1] for connection in connections}

        def served() -> bool:
            return any(
                found.status == psutil.CONN_ESTABLISHED and found.raddr.port in ports
                for found in alone.process.net_connections("tcp")
            )

        for connection in connections:
            connection.sendall(ask_for_it)
        for connection in connections:
            assert connection.recv(15, socket.MSG_PEEK) == b"HTTP/1.1 200 OK"
        assert alone.api.http.get("/livez").is_success
        wait_for(lambda: not served(), because="they are hung up on")
        assert time.monotonic() - started >= PATIENCE_S
        for connection in connections:  # what the kernel had is still there
            assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_what_came_while_the_api_stood_still_is_not_late(api: Api) -> None:
    """Longer than it waits for anybody; the loop finds both when it goes on."""
    patience_s = 0.1
    app = create_app(api.settings.model_copy(update={"request_patience_s": patience_s}))
    standing, sent = Event(), Event()
    request = json.dumps({"dataset_id": api.dataset(), "model_id": api.model()}).encode()

    def stand_still() -> None:
        standing.set()
        sent.wait(30)
        time.sleep(2 * patience_s)

    async def standing_still(scope: Scope, receive: Receive, send: Send) -> None:
        async def waiting() -> Message:
            if scope["type"] == "http" and not standing.is_set():  # once this waits
                asyncio.get_running_loop().call_soon(stand_still)
            return await receive()

        await app(scope, waiting, send)

    def body() -> Iterator[bytes]:
        standing.wait(30)
        yield request
        sent.set()

    with serving(standing_still) as url:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(request))}
        answer = httpx.post(f"{url}/v1/rankings", content=body(), headers=headers, timeout=60)
    assert answer.status_code == 201, answer.text
