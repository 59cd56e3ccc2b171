"""A disk without room: 507, nothing half-written, and all goes on once there is room."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from adap.store.tables import DatasetRow, JobRow, UploadPartRow
from tests.api.conftest import Api, running_in
from tests.disk import MIB, fill, make_room, small_disk

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=8) as folder:
        yield folder


@pytest.fixture
def cramped(disk: Path) -> Iterator[Api]:
    """An API whose database and blobs lie on a disk of 8 MiB."""
    with running_in(disk) as made:
        yield made


def send(api: Api, size: int) -> httpx.Response:
    files = {"file": ("photos.zip", bytes(size), "application/zip")}
    return api.http.post("/v1/datasets", data={"name": "photos"}, files=files)


def count(api: Api, table: Any) -> int:
    with api.database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_an_upload_that_finds_no_room_is_a_507_and_leaves_nothing(
    cramped: Api, disk: Path, problem: Check
) -> None:
    assert send(cramped, 64 * 1024).status_code == 201
    kept = files(cramped.settings.home / "blobs")
    fill(disk, but=2 * MIB)
    response = send(cramped, 4 * MIB)
    body = problem(response, 507, "disk_full")
    assert "no room" in body["detail"]
    assert response.headers["retry-after"]
    assert files(cramped.settings.home / "blobs") == kept
    assert files(cramped.settings.home / "incoming") == set()
    assert (count(cramped, DatasetRow), count(cramped, JobRow)) == (1, 1)
    assert cramped.http.get("/v1/jobs").status_code == 200
    # what was received is moved, not copied: it needs its room once
    assert send(cramped, 3 * MIB // 2).status_code == 201


def test_a_form_that_finds_no_room_on_the_way_in_is_a_507(
    tmp_path: Path, disk: Path, problem: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forms are received in the system's folder for temporary files, which may be another disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with running_in(tmp_path) as api:
        fill(disk, but=MIB)
        problem(send(api, 4 * MIB), 507, "disk_full")
        assert count(api, DatasetRow) == 0
        make_room(disk)
        assert send(api, 4 * MIB).status_code == 201


def test_parts_that_find_no_room_are_sent_again_when_there_is(
    cramped: Api, disk: Path, problem: Check
) -> None:
    part = bytes(range(256)) * (MIB // 256)
    upload = {"file_name": "photos.zip", "size": 2 * MIB, "part_bytes": MIB}
    path = "/v1/uploads/" + cramped.http.post("/v1/uploads", json=upload).json()["id"]
    assert cramped.http.put(f"{path}/parts/1", content=part).status_code == 204
    fill(disk, but=MIB // 2)
    problem(cramped.http.put(f"{path}/parts/2", content=part), 507, "disk_full")
    assert files(cramped.settings.home / "incoming") == set()
    assert count(cramped, UploadPartRow) == 1
    make_room(disk)
    assert cramped.http.put(f"{path}/parts/2", content=part).status_code == 204
    fill(disk, but=MIB)
    whole = {"sha256": hashlib.sha256(part * 2).hexdigest()}
    problem(cramped.http.post(f"{path}/complete", json=whole), 507, "disk_full")
    blobs = cramped.settings.home / "blobs"
    assert len(files(blobs)) == 2, "the parts wait; nothing of the whole is there"
    make_room(disk)
    assert cramped.http.post(f"{path}/complete", json=whole).status_code == 200
    assert len(files(blobs)) == 1


def test_a_part_is_not_half_kept_where_blobs_have_a_disk_of_their_own(
    tmp_path: Path, disk: Path, problem: Check
) -> None:
    with running_in(tmp_path, blobs_url=str(disk / "blobs")) as api:
        upload = {"file_name": "photos.zip", "size": 2 * MIB, "part_bytes": 2 * MIB}
        path = "/v1/uploads/" + api.http.post("/v1/uploads", json=upload).json()["id"]
        fill(disk, but=MIB)
        problem(api.http.put(f"{path}/parts/1", content=bytes(2 * MIB)), 507, "disk_full")
        assert files(disk / "blobs") == set()
        make_room(disk)
        assert api.http.put(f"{path}/parts/1", content=bytes(2 * MIB)).status_code == 204


def test_a_job_that_the_database_has_no_room_for_is_a_507_and_is_not_there(
    cramped: Api, disk: Path, problem: Check
) -> None:
    dataset = cramped.dataset()
    body = {"dataset_id": dataset, "task": {"positive": ["cat"]}, "name": "x" * 150}
    fill(disk)
    made = 0
    while (response := cramped.http.post("/v1/training-jobs", json=body)).status_code == 201:
        made += 1
        assert made < 2000, "the disk is full"
    problem(response, 507, "disk_full")
    assert count(cramped, JobRow) == made
    assert cramped.http.get("/v1/jobs").status_code == 200
    make_room(disk)
    assert cramped.http.post("/v1/training-jobs", json=body).status_code == 201
    assert count(cramped, JobRow) == made + 1


def test_every_route_that_writes_says_so(api: Api) -> None:
    paths = api.http.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert ("507" in operation["responses"]) == (method != "get"), (method, path)
