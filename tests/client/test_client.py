"""The Python client: what it does when answers are wrong, late, cut off or missing.

The judges: the service's answers read without our client; servers of a few lines that misbehave in
one known way and count what they are asked; the examples of the server-sent events standard.
"""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from adap.client.client import (
    Client,
    ClientError,
    ConnectionFailedError,
    Event,
    JobFailedError,
    ProblemError,
    read_events,
)
from tests.client.conftest import TINY, torch_classifier

NO_JOB = f"job_{'0' * 26}"


@contextmanager
def server(answer: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A server of one function, which gets each connection and its number; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        for number in range(1000):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                answer(connection, number)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def request_line(connection: socket.socket) -> str:
    """The first line of a request, all of which is read."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += connection.recv(65536)
    return text.split(b"\r\n")[0].decode()


def http_answer(body: bytes, *, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """A whole HTTP answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


# --- answers that are errors ----------------------------------------------------------------------


def test_a_problem_carries_all_that_the_service_said(service: str, client: Client) -> None:
    body = {"dataset_id": "ds_", "epochs": 0}
    said = httpx.post(f"{service}/v1/training-jobs", json=body, trust_env=False).json()
    with pytest.raises(ProblemError) as caught:
        client.train(body)
    error = caught.value
    assert (error.code, error.status, error.detail) == (said["code"], 422, said["detail"])
    assert error.errors == said["errors"]
    assert error.request_id is not None
    assert error.request_id != said["request_id"]
    assert str(error) == said["detail"].removeprefix("/body/")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("502 Bad Gateway", b"<html>a proxy's page</html>"),
        ("404 Not Found", b'{"message": "of something else"}'),
        ("500 Internal Server Error", b"[]"),
        ("301 Moved Permanently", b""),
    ],
)
def test_an_error_of_something_else_says_who_answered(status: str, body: bytes) -> None:
    def answer(connection: socket.socket, _: int) -> None:
        request_line(connection)
        connection.sendall(http_answer(body, status=status))

    with server(answer) as url, Client(url) as client:
        with pytest.raises(ProblemError) as caught:
            client.jobs.list()
        assert caught.value.code == "unexpected_answer"
        assert caught.value.detail == (
            f"Expected an answer of AdAP from {url}/v1/jobs?limit=20, got {status}."
        )


def test_every_error_has_the_same_base() -> None:
    assert {ConnectionFailedError, ProblemError, JobFailedError} <= set(
        ClientError.__subclasses__()
    )


def test_no_service_is_said_in_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            Client(url) as client,
            pytest.raises(ConnectionFailedError, match=f"^No service answers at {url} .*`adap up`"),
        ):
            client.ready()


# --- what is tried again --------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "asked"), [("GET", 3), ("POST", 3), ("DELETE", 1)])
def test_what_may_come_twice_is_tried_again(method: str, asked: int) -> None:
    lines: list[str] = []

    def hang_up_twice(connection: socket.socket, number: int) -> None:
        lines.append(request_line(connection))
        if number == 2:
            connection.sendall(http_answer(b"{}"))

    with server(hang_up_twice) as url, Client(url) as client:
        if asked == 3:
            assert client.request(method, "/").json() == {}
        else:
            with pytest.raises(ConnectionFailedError):
                client.request(method, "/")
    assert lines == [f"{method} / HTTP/1.1"] * asked


def test_a_proxy_does_not_stand_before_this_machine(service: str) -> None:
    code = f"from adap.client.client import Client; print(Client({service!r}).ready()['database'])"
    nowhere = "http://127.0.0.1:9"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"HTTP_PROXY": nowhere, "ALL_PROXY": nowhere, "http_proxy": nowhere},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr) == ("ok\n", "")


# --- files ----------------------------------------------------------------------------------------


def test_an_upload_reports_every_byte_as_it_is_sent(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "noise.zip"
    file.write_bytes(bytes(3_000_000))
    counts: list[int] = []
    added = client.datasets.add(file, name="noise", on_bytes=counts.append)
    assert sum(counts) == 3_000_000
    assert max(counts) <= 100_000  # never the whole file at once
    with pytest.raises(JobFailedError):
        client.jobs.wait(added["job_id"])


def test_a_download_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def half(connection: socket.socket, _: int) -> None:
        request_line(connection)
        connection.sendall(http_answer(bytes(1000))[:-500])

    with server(half) as url, Client(url) as client, pytest.raises(ConnectionFailedError):
        client.models.export("mdl_1", tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_download_and_a_stream_that_break_at_once_are_tried_again(tmp_path: Path) -> None:
    done = b'event: progress\ndata: {"status": "succeeded"}\n\n'
    asked: list[str] = []

    def break_off_once(connection: socket.socket, number: int) -> None:
        asked.append(request_line(connection).split("?")[0])
        kind, body = ("text/event-stream", done) if "events" in asked[-1] else ("a/b", bytes(1000))
        answer = http_answer(body, kind=kind)
        connection.sendall(answer if number % 2 else answer[: -len(body)])

    with server(break_off_once) as url, Client(url) as client:
        client.models.export("mdl_1", tmp_path / "model.safetensors")
        assert [event.type for event in client.jobs.events("job_1")] == ["progress"]
    assert (tmp_path / "model.safetensors").read_bytes() == bytes(1000)
    assert len(asked) == 4


@pytest.mark.parametrize(("code", "asked"), [("overloaded", 2), ("unauthorized", 1)])
def test_a_stream_is_asked_for_again_where_the_service_is_busy(code: str, asked: int) -> None:
    done = b'event: progress\ndata: {"status": "succeeded"}\n\n'
    numbers: list[int] = []

    def refuse_once(connection: socket.socket, number: int) -> None:
        request_line(connection)
        numbers.append(number)
        problem = json.dumps({"status": 503, "code": code, "detail": "Later."}).encode()
        kind = "application/problem+json"
        refusal = http_answer(problem, status="503 Service Unavailable", kind=kind)
        connection.sendall(refusal if number == 0 else http_answer(done, kind="text/event-stream"))

    with server(refuse_once) as url, Client(url) as client:
        if asked == 1:
            with pytest.raises(ProblemError, match="Later"):
                list(client.jobs.events("job_1"))
        else:
            assert [event.type for event in client.jobs.events("job_1")] == ["progress"]
    assert len(numbers) == asked


def test_a_download_is_what_the_service_keeps(
    service: str, client: Client, model: str, tmp_path: Path
) -> None:
    client.models.export(model, tmp_path / "model.safetensors")
    answer = httpx.get(f"{service}/v1/models/{model}/content", trust_env=False)
    assert (tmp_path / "model.safetensors").read_bytes() == answer.content


# --- a logit a class ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "positive"), [("multiclass", ["cow", "cat"]), ("multilabel", ["cat"])]
)
def test_a_model_with_a_logit_a_class_scores_and_ranks_as_pytorch_alone(
    client: Client,
    classifier: Path,
    dataset: str,
    images: Path,
    kind: str,
    positive: list[str],
) -> None:
    import torch

    classes = ["cow", "dog", "cat"]
    added = client.models.add(
        classifier,
        architecture="small_cnn",
        input_spec={"channels": 1, "height": 8, "width": 8, "mean": [0.4], "std": [0.2]},
        output={"kind": kind, "classes": classes},
    )
    client.jobs.wait(added["job_id"])
    model = client.models.show(added["id"])
    assert model["manifest"]["output"] == {"kind": kind, "classes": classes}
    assert (model["findings"]["problems"], model["findings"]["warnings"]) == ([], [])

    files = sorted((images / "test").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file), np.float32) for file in files]) / 255
    with torch.no_grad():
        logits = torch_classifier()((torch.from_numpy(pixels)[:, None] - 0.4) / 0.2).double()
    columns = [classes.index(name) for name in positive]
    odds = torch.logit(logits.softmax(dim=1)[:, columns].sum(dim=1))
    expected = odds if kind == "multiclass" else logits[:, columns[0]]

    scored = client.score(model["id"], files, positive=positive)["scores"]
    assert [item["score"] for item in scored] == pytest.approx(expected.tolist(), abs=1e-5)

    request = {"model_id": model["id"], "dataset_id": dataset, "task": {"positive": ["cat"]}}
    job = client.jobs.wait(client.rank(request)["id"])
    rows = client.ranking(job["id"])["data"]
    of_cat = logits[:, 2] if kind == "multilabel" else torch.logit(logits.softmax(dim=1)[:, 2])
    best = of_cat.sort(descending=True).values.tolist()
    assert [row["score"] for row in rows] == pytest.approx(best, abs=1e-5)

    with pytest.raises(ProblemError, match="a logit for each of cow, dog, cat; got none"):
        client.rank({"model_id": model["id"], "dataset_id": dataset})


# --- lists ----------------------------------------------------------------------------------------


def test_pages_are_walked_to_the_end(
    service: str, client: Client, model: str, dataset: str, audited: str
) -> None:
    pages = list(client.pages("/v1/jobs", limit=1))
    answer = httpx.get(f"{service}/v1/jobs?limit=100", trust_env=False).json()
    assert len(pages) >= 3
    assert [job["id"] for job in pages] == [job["id"] for job in answer["data"]]
    scores = list(client.audit_scores(audited))
    assert len(scores) == 24
    assert all(set(row["attacks"]) == {"pgd"} for row in scores)


def test_the_catalogue_names_what_can_be_asked_for(client: Client) -> None:
    assert "adap_lpn" in {method["name"] for method in client.methods()}
    assert "apgd" in {attack["name"] for attack in client.attacks()}
    assert "small_cnn" in {architecture["name"] for architecture in client.architectures()}


# --- events ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([": a comment", ""], []),
        (['data: {"type": "a", "data": {}, "seq": 1}', ""], [Event("a", {}, 1)]),
        (['data:{"type": "a",', 'data: "data": {}, "seq": 1}', ""], [Event("a", {}, 1)]),
        (
            ["event: progress", 'data: {"status": "queued"}', "id", "retry: 9", ""],
            [Event("progress", {"status": "queued"}, None)],
        ),
        (["event: progress", 'data: {"status": "cut off'], []),
    ],
)
def test_a_stream_is_read_by_the_standard(lines: list[str], expected: list[Event]) -> None:
    assert list(read_events(iter(lines))) == expected


class CuttingProxy:
    """Passes connections on to the service, and cuts each event stream after some bytes."""

    def __init__(self, service: str, *, cut_after: int) -> None:
        self.target = httpx.URL(service)
        self.cut_after = cut_after
        self.resumed_after: list[int] = []

    def __call__(self, connection: socket.socket, _: int) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        streaming = b"text/event-stream" in request
        if streaming:
            (seen,) = [
                line for line in request.split(b"\r\n") if line.lower().startswith(b"last-event-id")
            ]
            self.resumed_after.append(int(seen.split(b":")[1]))
        left = self.cut_after if streaming else 10_000_000
        request = request.replace(b"Connection: keep-alive", b"Connection: close")
        with socket.create_connection((self.target.host, self.target.port or 0)) as service:
            service.sendall(request)
            while left > 0 and (chunk := service.recv(min(left, 65536))):
                connection.sendall(chunk)
                left -= len(chunk)


def test_an_event_stream_that_is_cut_goes_on_where_it_was(
    service: str, client: Client, dataset: str
) -> None:
    request = {**TINY, "epochs": 10, "dataset_id": dataset, "task": {"positive": ["cat"]}}
    job = client.train(request)
    proxy = CuttingProxy(service, cut_after=1000)  # a few events, however fast they come
    seen: list[Event] = []
    with server(proxy) as url, Client(url) as cut_off:
        ended = cut_off.jobs.wait(job["id"], on_event=seen.append)
    assert ended["status"] == "succeeded"
    assert len(proxy.resumed_after) > 2
    assert proxy.resumed_after == sorted(proxy.resumed_after)

    events = [event for event in seen if event.seq is not None]
    path = f"{service}/v1/jobs/{job['id']}/events?limit=1000"
    kept: list[dict[str, Any]] = httpx.get(path, trust_env=False).json()["data"]
    assert [event.seq for event in events] == list(range(1, len(kept) + 1))
    assert [(event.type, event.data) for event in events] == [
        (event["type"], event["data"]) for event in kept
    ]
    assert [event.type for event in events].count("epoch") == 10
    assert seen[-1].data["status"] == "succeeded"


def test_waiting_for_a_job_that_fails_raises_with_its_reason(
    client: Client, tmp_path: Path
) -> None:
    (tmp_path / "pets.zip").write_text("not a zip")
    added = client.datasets.add(tmp_path / "pets.zip")
    with pytest.raises(JobFailedError) as caught:
        client.jobs.wait(added["job_id"])
    assert caught.value.job["error"]["code"] == "dataset_rejected"
    assert str(caught.value) == (
        f"The job {added['job_id']} failed: {client.datasets.show(added['id'])['reasons'][0]}"
    )


def test_events_of_no_job_are_a_problem_at_once(client: Client) -> None:
    with pytest.raises(ProblemError, match=f"There is no job {NO_JOB}"):
        next(client.jobs.events(NO_JOB))


def test_events_can_be_read_from_the_middle(client: Client, trained: dict[str, Any]) -> None:
    everything = [event for event in client.jobs.events(trained["id"]) if event.seq is not None]
    rest = [event for event in client.jobs.events(trained["id"], after=2) if event.seq is not None]
    assert rest == everything[2:]
    assert json.dumps(everything[-1].data) == "{}"
