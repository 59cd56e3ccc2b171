"""The client to be awaited, its twin that waits, what is tried again, and the examples."""

import asyncio
import contextlib
import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from adap.client import values
from adap.client.aio import AsyncClient
from adap.client.aio.generate import TARGET, generate
from adap.client.client import Client, JobFailedError, ProblemError
from tests.client.conftest import TINY
from tests.client.test_client import http_answer, server
from tests.conftest import REPOSITORY


def test_the_client_that_waits_is_made_from_the_one_to_be_awaited(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    generate(tmp_path / "client.py")
    assert (tmp_path / "client.py").read_text() == TARGET.read_text(), (
        "expected `python -m adap.client.aio.generate` to have been run"
    )


def test_every_value_has_the_fields_that_the_service_answers(service: str) -> None:
    schemas = httpx.get(f"{service}/openapi.json", trust_env=False).json()["components"]["schemas"]
    checked = 0
    for name, value in vars(values).items():
        if isinstance(value, type) and issubclass(value, BaseModel) and name in schemas:
            known = schemas[name]["properties"].keys()
            assert set(value.model_fields) <= known, name
            checked += 1
    assert checked == 12
    for whole in ("Job", "Progress", "Dataset", "Model"):
        assert set(getattr(values, whole).model_fields) == set(schemas[whole]["properties"])


def test_the_examples_of_the_documentation_run(
    service: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (REPOSITORY / "docs" / "client.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(blocks)
    assert "http://127.0.0.1:8000" in code
    shutil.make_archive(str(tmp_path / "photos"), "zip", images)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:8000", service), names)
    names["client"].http.close()

    shown = capsys.readouterr().out
    assert re.search(r"clean \d\.\d{3}, attacked \d\.\d{3}, chance 0\.5\d\d", shown)
    assert "invalid_request /body/threat/epsilon" in shown
    assert "dataset_rejected" in shown
    assert (tmp_path / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")


def test_progress_is_told_while_a_run_is_awaited(service: str, dataset: str) -> None:
    seen: list[values.Progress] = []

    async def train() -> values.Model:
        async with AsyncClient(service) as client:
            run = await client.trainings.create(dataset_id=dataset, positive=["cat"], **TINY)
            assert run.job.status in ("queued", "running")
            await run.wait(on_progress=seen.append)
            assert run.job.done
            events = [event async for event in client.jobs.events(run.id)]
            assert [event.type for event in events if event.seq][-1] == "succeeded"
            return await run.model()

    model = asyncio.run(train())
    assert model.status == "ready"
    assert seen
    assert all(progress.completed <= progress.total for progress in seen)


def test_what_fails_says_the_same_to_both(service: str, tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"no zip")

    async def fail() -> list[str]:
        said = []
        async with AsyncClient(service) as client:
            with pytest.raises(JobFailedError) as failed:
                await client.datasets.create(tmp_path / "broken.zip")
            said.append(failed.value.job["error"]["message"])
            with pytest.raises(ProblemError) as problem:
                await client.audits.create(model_id="mdl_" + "0" * 26, dataset_id="ds_" + "0" * 26)
            said.append(problem.value.detail)
        return said

    with Client(service) as client:
        with pytest.raises(JobFailedError) as failed:
            client.datasets.create(tmp_path / "broken.zip")
        with pytest.raises(ProblemError) as problem:
            client.audits.create(model_id="mdl_" + "0" * 26, dataset_id="ds_" + "0" * 26)
    said = [failed.value.job["error"]["message"], problem.value.detail]
    assert asyncio.run(fail()) == said


def test_a_run_can_be_cancelled(service: str, dataset: str) -> None:
    with Client(service) as client:
        run = client.trainings.create(
            dataset_id=dataset, positive=["cat"], epochs=1000, batch_size=2
        )
        assert run.cancel().job.status in ("cancelled", "cancelling")
        with pytest.raises(JobFailedError, match="was cancelled"):
            run.wait()
        assert run.refresh().job.status == "cancelled"


# --- what is tried again --------------------------------------------------------------------------


def read_request(connection: socket.socket) -> tuple[dict[str, str], bytes]:
    """Headers by lower-case name, and the body."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += connection.recv(65536)
    head, _, body = text.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return headers, body


def test_a_post_is_sent_again_whole_with_the_same_key(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "d.zip").write_bytes(content)
    requests: list[tuple[dict[str, str], bytes]] = []

    def hang_up_once(connection: socket.socket, number: int) -> None:
        requests.append(read_request(connection))
        if number == 1:
            connection.sendall(http_answer(b'{"id": "ds_1"}', status="201 Created"))

    counted: list[int] = []
    with server(hang_up_once) as url, Client(url) as client:
        added = client.datasets.add(tmp_path / "d.zip", on_bytes=counted.append)
    assert added == {"id": "ds_1"}
    assert len(requests) == 2
    assert len({headers["idempotency-key"] for headers, _ in requests}) == 1
    assert all(content in body for _, body in requests)
    assert sum(counted) == len(content)


@pytest.mark.parametrize(
    ("code", "status", "asked"),
    [
        ("rate_limited", "429 Too Many Requests", 3),
        ("storage_unavailable", "503 Service Unavailable", 3),
        ("too_many_jobs", "429 Too Many Requests", 1),
        ("invalid_request", "422 Unprocessable Content", 1),
    ],
)
def test_only_what_passes_by_itself_is_asked_again(code: str, status: str, asked: int) -> None:
    problem = {"status": int(status[:3]), "code": code, "detail": "No."}
    keys: list[str] = []

    def refuse(connection: socket.socket, _: int) -> None:
        keys.append(read_request(connection)[0]["idempotency-key"])
        connection.sendall(http_answer(json.dumps(problem).encode(), status=status))

    with server(refuse) as url, Client(url) as client:
        with pytest.raises(ProblemError) as caught:
            client.train({})
        assert caught.value.code == code
        assert len(keys) == asked
        assert len(set(keys)) == 1
        with contextlib.suppress(ProblemError):
            client.train({})
        assert len(set(keys)) == 2  # another request, another key
