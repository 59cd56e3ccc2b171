"""Readers of a stream of events that stall or trickle: hung up on, and nobody waits for them.

A stream holds more than the system's buffers take, or nobody could tell who reads from who does
not.
"""

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import insert

from adap.api.main import THREADS
from adap.store import jobs
from adap.store.tables import LOCAL_TENANT, JobEventRow, JobKind
from tests.api.conftest import Api, running_alone, wait_for

EVENTS, EVENT_BYTES = 5000, 4096
READERS = THREADS + 1  # more than threads; and there is a place for each of them, and no other


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, psutil.Process]]:
    """One that waits three seconds for a client to read."""
    folder = tmp_path_factory.mktemp("arriving")
    limits = {"ADAP_REQUEST_PATIENCE_S": "3", "ADAP_MAX_TENANT_STREAMS": str(READERS)}
    with running_alone(folder, **limits) as made:
        yield made


@pytest.fixture(scope="module")
def path(alone: tuple[Api, psutil.Process]) -> str:
    """Where the 20 MB of events of a job are streamed."""
    api, _ = alone
    with api.database.writing() as session:
        job = jobs.enqueue(session, JobKind.AUDIT, tenant=LOCAL_TENANT, request={})
        event = {"job_id": job.id, "type": "told", "data": {"text": "x" * EVENT_BYTES}}
        more = range(job.last_event + 1, job.last_event + 1 + EVENTS)
        session.execute(insert(JobEventRow), [{**event, "seq": seq} for seq in more])
        job.last_event = more[-1]
        return f"/v1/jobs/{job.id}/events"


def follow(api: Api, path: str) -> socket.socket:
    """A reader that asked for a stream, and has small buffers."""
    url = httpx.URL(str(api.http.base_url))
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.settimeout(60)
    reader.connect((url.host, url.port))
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    reader.sendall(head.encode())
    return reader


def stall(readers: list[socket.socket]) -> int:
    """Read nothing until each connection has ended."""
    for reader in readers:
        poll = select.poll()
        poll.register(reader, 0)  # tells of the end alone
        assert poll.poll(30_000), "a reader that reads nothing was kept"
    return 0


def trickle(readers: list[socket.socket]) -> int:
    """Read a little now and then until each connection has ended; the bytes that one got."""
    open_, most = dict.fromkeys(readers, 0), 0
    while open_:
        for reader in list(open_):
            try:
                got = len(reader.recv(64))
            except ConnectionResetError:
                got = 0
            open_[reader] += got
            most = max(most, open_[reader])
            if not got:
                del open_[reader]
        time.sleep(0.05)
    return most


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that a process had since it was last asked to begin again."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


@pytest.mark.parametrize("read", [stall, trickle])
def test_a_reader_too_slow_for_its_stream_keeps_no_place_no_thread_and_no_more_memory(
    alone: tuple[Api, psutil.Process], path: str, read: Callable[[list[socket.socket]], int]
) -> None:
    api, process = alone
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins again
    before = peak_bytes(process)
    everything = EVENTS * EVENT_BYTES
    with ExitStack() as stack:
        readers = [stack.enter_context(follow(api, path)) for _ in range(READERS)]
        for reader in readers:
            assert reader.recv(15) == b"HTTP/1.1 200 OK"
        job = httpx.get(f"{api.http.base_url}{path.removesuffix('/events')}", timeout=60)
        assert job.status_code == 200  # though more streams stand still than there are threads
        assert read(readers) < everything  # each was ended in the middle
    assert peak_bytes(process) - before < READERS * everything / 2

    def place_is_free() -> bool:
        with follow(api, path) as reader:
            return reader.recv(15) == b"HTTP/1.1 200 OK"

    wait_for(place_is_free, because="the places of those who were hung up on are free")
