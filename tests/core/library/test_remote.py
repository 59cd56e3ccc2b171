"""A ranker behind HTTP, asked through a real server that fails and says when to come again."""

import gzip
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import adap
from adap.core.rendering.card import card

ANSWER = tuple[int, dict[str, str], bytes]


def brightness(body: bytes) -> float:
    """What the server ranks by: the mean level, of which higher is positive."""
    return float(np.asarray(Image.open(io.BytesIO(body))).mean())


def good(body: bytes) -> ANSWER:
    return 200, {}, json.dumps({"score": brightness(body)}).encode()


@dataclass
class Server:
    """A server whose next answers can be set; it notes when each request came and ended."""

    url: str
    faults: list[ANSWER] = field(default_factory=list)
    came: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            own.came.append(time.monotonic())
            body = self.rfile.read(int(self.headers["content-length"]))
            own.bodies.append(body)
            own.keys.add(self.headers.get("x-key"))
            status, headers, content = own.faults.pop(0) if own.faults else good(body)
            own.ended.append(time.monotonic())
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    own = Server(f"http://127.0.0.1:{listening.server_address[1]}/score")
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield own
    listening.shutdown()
    listening.server_close()
    thread.join()


def ranker(server: Server, **options: Any) -> adap.HTTPRanker:
    return adap.HTTPRanker(server.url, **{"per_second": 1000.0, **options})


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).random((12, 3, 4, 4), np.float32)


def test_a_server_that_limits_and_fails_is_asked_again_when_it_says(server, images) -> None:
    server.faults = [(429, {"retry-after": "1"}, b""), (503, {}, b""), (500, {}, b"")]
    ask = ranker(server, headers={"x-key": "secret"})
    scores = ask(images)
    assert scores == pytest.approx([brightness(adap_png(image)) for image in images])
    assert len(server.came) == 12 + 3
    assert ask.left == 10_000 - 15
    assert server.keys == {"secret"}
    assert server.came[1] - server.ended[0] >= 1, "what Retry-After says"


def adap_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    levels = np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_never_more_than_so_many_a_second_and_longer_waits_after_each_failure(
    server, images
) -> None:
    clock = Clock()
    ask = ranker(server, per_second=4, clock=lambda: clock.now, sleep=clock.sleep)
    ask(images)
    assert clock.slept == [0.25] * 11
    clock.slept.clear()
    server.faults = [(503, {}, b"")] * 4
    ask(images[:1] / 2)
    waits = [seconds for seconds in clock.slept if seconds != 0.25]
    assert waits == [0.5, 1, 2, 4]


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({}, b" " * 2**20 + b"1.5", "at most 1048576 bytes"),
        ({"content-encoding": "gzip"}, gzip.compress(bytes(2**24)), "at most 1048576 bytes"),
        ({}, b"[" * 200_000 + b"]" * 200_000, "an answer with a number"),
        ({}, b"1" + b"0" * 400, "an answer with a number"),
        ({}, b'{"score": 1e999}', "a finite score"),
        ({"content-encoding": "gzip"}, b"no gzip at all", "an answer within 1 tries"),
    ],
)
def test_a_hostile_answer_is_refused_in_a_sentence_and_never_read_whole(
    server: Server, images: np.ndarray, headers: dict[str, str], body: bytes, said: str
) -> None:
    server.faults = [(200, headers, body)]
    with pytest.raises(adap.ModelError, match=said):
        ranker(server, tries=1)(images[:1])
    packed = gzip.compress(b'{"score": 2.5}')
    server.faults = [(200, {"content-encoding": "gzip"}, packed)]
    assert ranker(server)(images[:1]).tolist() == [2.5]


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ([(503, {}, b"")] * 6, "an answer within 6 tries, and it answers 503"),
        ([(404, {}, b"nothing here")], "expected a score, got 404: 'nothing here'"),
        ([(200, {}, b'{"result": 1}')], "an answer with a number, got '{\"result\": 1}'"),
        ([(200, {}, b"<html>")], "an answer with a number, got '<html>'"),
        ([(200, {}, b'{"score": NaN}')], "expected a finite score"),
        ([(429, {"retry-after": "86400"}, b"")], "come again after 86400 s"),
    ],
)
def test_a_server_that_keeps_failing_is_given_up_in_a_sentence(
    server, images, faults: list[ANSWER], said: str
) -> None:
    server.faults = list(faults)
    clock = Clock()
    ask = ranker(server, clock=lambda: clock.now, sleep=clock.sleep)
    with pytest.raises(adap.ModelError) as refused:
        ask(images[:1])
    assert said in str(refused.value)
    assert len(server.came) == len(faults)


@pytest.mark.slow
def test_an_audit_within_a_budget_goes_on_in_its_folder_and_asks_nothing_twice(
    server, images, tmp_path: Path
) -> None:
    labels = (images.mean((1, 2, 3)) > np.median(images.mean((1, 2, 3)))).astype(int)
    labels[0] = 1 - labels[0]

    def audit(folder: Path, queries: int) -> adap.Audit:
        return adap.audit(
            ranker(server, queries=queries, folder=folder),
            images,
            labels,
            epsilon=16 / 255,
            attacks=[adap.Square(queries=5), "noise"],
            checks="off",
            folder=folder,
            progress=False,
        )

    whole = audit(tmp_path / "whole", 10_000)
    asked = len(server.came)
    assert len(set(server.bodies)) == asked, "no picture was sent twice"
    with pytest.raises(adap.ModelError, match="budget of 40 queries, and it is spent"):
        audit(tmp_path / "cut", 40)
    assert len(server.came) == asked + 40
    resumed = audit(tmp_path / "cut", 10_000)
    assert len(server.came) == 2 * asked, "what was answered before is not asked again"
    assert resumed.report.tasks == whole.report.tasks
    assert whole.attacks["square"].ap < whole.clean.ap
    assert "HTTP ranker at 127.0.0.1" in card(whole.report)
    assert server.url not in whole.report.model_dump_json()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: adap.HTTPRanker("ftp://host/x"), "expected an address such as https://host"),
        (lambda: adap.HTTPRanker("https:///x"), "expected an address such as"),
        (lambda: adap.HTTPRanker("http://h/x", per_second=0), "expected per_second of at least"),
        (lambda: adap.HTTPRanker("http://h/x", tries=0), "expected tries of at least 1, got 0"),
        (lambda: adap.HTTPRanker("http://h/x", queries=-1), "expected queries of at least 0"),
    ],
)
def test_options_that_no_request_could_follow_are_refused(
    make: Callable[[], object], said: str
) -> None:
    with pytest.raises(adap.ConfigError) as refused:
        make()
    assert said in str(refused.value)
