"""A real S3 server, and a line to it that can be cut, held or slowed down."""

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from uuid import uuid4

import httpx

from adap.store.settings import Settings


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server without buckets."""
    from moto.server import ThreadedMotoServer  # takes seconds to load

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def bucket_of(endpoint: str) -> dict[str, str]:
    """Settings of a new bucket, as environment variables."""
    bucket = f"b{uuid4().hex}"
    httpx.put(f"{endpoint}/{bucket}", timeout=120).raise_for_status()
    return {
        "ADAP_BLOBS_URL": f"s3://{bucket}/prefix",
        "ADAP_S3_ENDPOINT": endpoint,
        "ADAP_S3_ACCESS_KEY_ID": "test",
        "ADAP_S3_SECRET_ACCESS_KEY": "test",
    }


def with_bucket(settings: Settings, environment: dict[str, str]) -> Settings:
    """Settings with a store of blobs as the environment of a process would say it."""
    found = {name.removeprefix("ADAP_").lower(): value for name, value in environment.items()}
    return Settings.model_validate(settings.model_dump(exclude_unset=True) | found)


class Line:
    """A TCP proxy: `mode` says what becomes of what comes.

    open: it passes. reset: every connection is reset. hang: connections are taken and nothing
    passes, nor is anything closed. slow: a few KiB pass at a time.
    """

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._target = ("127.0.0.1" if host == "0.0.0.0" else host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._live: set[socket.socket] = set()
        self._lock = Lock()
        self.mode = "open"
        self.passed = 0  # bytes
        self.came = 0  # connections
        Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """Where to connect to."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def be(self, mode: str) -> None:
        """Change the mode; a reset breaks what is open too."""
        self.mode = mode
        if mode == "reset":
            with self._lock:
                for connection in self._live:
                    _reset(connection)

    def close(self) -> None:
        """End, with all that is open."""
        self._listening.close()
        self.be("reset")

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listening.accept()
            except OSError:
                return
            self.came += 1
            if self.mode == "reset":
                _reset(ours)
                ours.close()
                continue
            Thread(target=self._carry, args=(ours,), daemon=True).start()

    def _carry(self, ours: socket.socket) -> None:
        with ours, socket.create_connection(self._target) as theirs, suppress(OSError, ValueError):
            with self._lock:
                self._live.add(ours)
            try:
                ends = {ours: theirs, theirs: ours}
                while True:
                    for end in select.select(list(ends), [], [], 0.5)[0]:
                        while self.mode == "hang":
                            time.sleep(0.05)
                        if self.mode == "reset":
                            return
                        slow = self.mode == "slow"
                        data = end.recv(2048 if slow else 1 << 16)
                        if not data:
                            return
                        if slow:
                            time.sleep(0.01)
                        ends[end].sendall(data)
                        self.passed += len(data)
            finally:
                with self._lock:
                    self._live.discard(ours)


def _reset(connection: socket.socket) -> None:
    """Have the kernel send a reset instead of an orderly end."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
