"""The API while files cannot be had: named problems, a readiness that says so, all else works."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adap.store.tables import DatasetRow
from tests.api.conftest import Api, running_in, wait_for
from tests.api.test_metrics import labels, scrape
from tests.disk import remount, small_disk
from tests.s3 import Line, bucket_of

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def far(line: Line, s3_endpoint: str, tmp_path: Path) -> Iterator[Api]:
    """An API whose files lie in a bucket at the end of a line."""
    of_bucket = bucket_of(s3_endpoint) | {"ADAP_S3_ENDPOINT": line.endpoint}
    named = {name.removeprefix("ADAP_").lower(): value for name, value in of_bucket.items()}
    with running_in(tmp_path, blobs_limit_s=1, **named) as made:
        yield made


def wait_until_ready_says(api: Api, blobs: str) -> dict[str, Any]:
    """What readiness says, which is remembered for a moment, once it says this of the files."""
    deadline = time.monotonic() + 60
    while (ready := api.http.get("/readyz").json())["blobs"] != blobs:
        assert time.monotonic() < deadline, ready
        time.sleep(0.05)
    told: dict[str, Any] = ready
    return told


def metric(api: Api, name: str, **of: str) -> float:
    return scrape(api)[name, labels(**of)]


def send(api: Api) -> httpx.Response:
    files = {"file": ("photos.zip", os.urandom(1000), "application/zip")}
    return api.http.post("/v1/datasets", data={"name": "photos"}, files=files)


@pytest.mark.parametrize("mode", ["reset", "hang"])
def test_a_store_that_is_away_is_a_503_and_named_by_readiness(
    far: Api, line: Line, problem: Check, mode: str
) -> None:
    dataset = far.dataset()
    wait_until_ready_says(far, "ok")
    assert metric(far, "adap_blobs_up") == 1
    assert metric(far, "adap_storage_errors_total", code="storage_unavailable") == 0
    line.be(mode)
    for answer in (send(far), far.http.get(f"/v1/datasets/{dataset}/content")):
        body = problem(answer, 503, "storage_unavailable")
        assert "blob store" in body["detail"]
        assert int(answer.headers["retry-after"]) > 0
    ready = wait_until_ready_says(far, "unavailable")
    assert ready["status"] == "degraded"
    assert any("store of files" in text for text in ready["problems"])
    wait_for(lambda: metric(far, "adap_blobs_up") == 0, because="a look of a moment ago is old")
    assert metric(far, "adap_storage_errors_total", code="storage_unavailable") == 2
    assert far.http.get(f"/v1/datasets/{dataset}").status_code == 200
    line.be("open")
    wait_until_ready_says(far, "ok")
    assert send(far).status_code == 201


def test_content_that_is_lost_is_a_named_problem_and_all_else_works(
    tmp_path: Path, problem: Check
) -> None:
    with running_in(tmp_path) as api:
        lost, there = api.dataset(), api.dataset()
        with api.database.reading() as session:
            sha256 = session.get_one(DatasetRow, lost).content_sha256
        assert sha256 is not None
        (api.settings.home / "blobs" / sha256[:2] / sha256).unlink()
        body = problem(api.http.get(f"/v1/datasets/{lost}/content"), 503, "content_missing")
        assert sha256 in body["detail"]
        assert api.http.get(f"/v1/datasets/{there}/content").status_code == 200
        assert {row["id"] for row in api.http.get("/v1/datasets").json()["data"]} == {lost, there}
        assert api.http.delete(f"/v1/datasets/{lost}").status_code == 204


def test_a_disk_that_cannot_be_written_is_a_503_and_named_by_readiness(
    tmp_path: Path, problem: Check
) -> None:
    with (
        small_disk(tmp_path / "disk", mib=8) as disk,
        running_in(tmp_path, blobs_url=str(disk)) as api,
    ):
        assert send(api).status_code == 201
        remount(disk, "ro")
        body = problem(send(api), 503, "storage_unavailable")
        assert "Read-only" in body["detail"]
        wait_until_ready_says(api, "unavailable")
        remount(disk, "rw")
        assert send(api).status_code == 201
        wait_until_ready_says(api, "ok")
