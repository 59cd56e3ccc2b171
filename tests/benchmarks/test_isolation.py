"""The attacker of the benchmark against a real server that counts what it was asked."""

import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from benchmarks.isolation import (
    PARALLEL,
    SPAWN,
    Attack,
    Cheap,
    Counts,
    Signs,
    attack_from,
    processes,
)

pytestmark = pytest.mark.slow  # a process that loads torch


def test_every_answer_is_counted_when_the_attacker_has_ended() -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            self.send_response(429 if len(asked) % 2 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = Thread(target=server.serve_forever)
    serving.start()
    try:
        attack = Attack("own", "/scores", b"x", "text/plain", Cheap(8), [])
        answers = SPAWN.Queue()
        url = f"http://127.0.0.1:{server.server_port}"
        with processes(partial(attack_from, url, {}, attack, answers), count=1) as going:
            assert not asked
            going.set()
            while len(asked) < 5 * PARALLEL:
                time.sleep(0.01)
        counted: Counts = answers.get(timeout=60)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert sum(counted.values()) == len(asked)
    assert counted[429] + counted[200] == len(asked)
    assert counted[429] > 0


def failing(signs: Signs) -> None:
    """Ends by an error once it is told to go."""
    signs.go_on()
    raise KeyError("of no use")


def test_a_process_that_fails_is_told() -> None:
    with (
        pytest.raises(SystemExit, match=r"expected processes to end within .* by 0, got \[1\]"),
        processes(failing, count=1) as going,
    ):
        going.set()
