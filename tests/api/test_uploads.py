"""Files in parts: any order, twice, at once, cut off; and complete only if every byte is right.

Judges: hashlib over what was sent, the files that are in the blob store, and the database's rows.
"""

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from adap.store import keys, uploads
from adap.store.artifacts import open_blobs
from adap.store.garbage import collect
from adap.store.tables import DatasetRow, ModelRow, UploadPartRow, UploadRow
from tests.api.conftest import Api, wait_for
from tests.api.test_quotas import limited

Check = Callable[..., dict[str, Any]]

PART = 2**16
CONTENT = os.urandom(2 * PART + 1000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def start(api: Api, content: bytes = CONTENT, **fields: Any) -> dict[str, Any]:
    request = {"file_name": "pets.zip", "size": len(content), "part_bytes": PART, **fields}
    response = api.http.post("/v1/uploads", json=request)
    assert response.status_code in (200, 201), response.text
    upload: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/v1/uploads/{upload['id']}"
    return upload


def put(api: Api, upload: dict[str, Any], number: int, data: bytes | None = None) -> httpx.Response:
    content = CONTENT[(number - 1) * PART : number * PART] if data is None else data
    return api.http.put(f"/v1/uploads/{upload['id']}/parts/{number}", content=content)


def complete(api: Api, upload: dict[str, Any], sha256: str = SHA256) -> httpx.Response:
    return api.http.post(f"/v1/uploads/{upload['id']}/complete", json={"sha256": sha256})


def whole(api: Api) -> dict[str, Any]:
    """An upload that is complete."""
    upload = start(api)
    for number in (1, 2, 3):
        assert put(api, upload, number).status_code == 204
    response = complete(api, upload)
    assert response.status_code == 200, response.text
    done: dict[str, Any] = response.json()
    return done


def shown(api: Api, upload: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = api.http.get(f"/v1/uploads/{upload['id']}").json()
    return answer


def staged(api: Api) -> list[Path]:
    """The parts that lie on the disk, and what is only half there."""
    return [
        *(api.settings.home / "blobs" / "staging").glob("*"),
        *(api.settings.home / "incoming").glob("*"),
    ]


@pytest.fixture(autouse=True)
def no_files(api: Api) -> None:
    for path in staged(api):
        path.unlink()


def test_parts_in_any_order_and_twice_make_the_file(api: Api) -> None:
    upload = start(api)
    assert (upload["parts"], upload["received"], upload["complete"]) == (3, [], False)
    for number in (3, 1, 3, 2):
        assert put(api, upload, number).status_code == 204
    assert shown(api, upload)["received"] == [1, 2, 3]
    assert len(staged(api)) == 3, "the part that came again replaces the one before"
    done = complete(api, upload).json()
    assert (done["complete"], done["sha256"], done["received"]) == (True, SHA256, [])
    assert open_blobs(api.settings).local_path(SHA256).read_bytes() == CONTENT
    assert staged(api) == []
    assert complete(api, upload).json() == done, "complete again is as before"


def test_one_part_that_comes_many_times_at_once_has_one_row_and_one_file(api: Api) -> None:
    upload = start(api)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: put(api, upload, 1), range(24)))
    assert {answer.status_code for answer in answers} == {204}
    assert shown(api, upload)["received"] == [1]
    assert len(staged(api)) == 1


def test_two_that_complete_at_once_make_one_file(api: Api) -> None:
    upload = start(api)
    for number in (1, 2, 3):
        put(api, upload, number)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: complete(api, upload), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert open_blobs(api.settings).local_path(SHA256).read_bytes() == CONTENT
    assert shown(api, upload)["complete"] is True


def test_the_same_content_again_goes_on_where_it_was_cut(api: Api) -> None:
    first = start(api, sha256=SHA256)
    put(api, first, 2)
    again = api.http.post(
        "/v1/uploads",
        json={"file_name": "other name.zip", "size": len(CONTENT), "sha256": SHA256},
    )
    assert again.status_code == 200
    assert again.json()["id"] == first["id"]
    assert (again.json()["received"], again.json()["part_bytes"]) == ([2], PART)
    other = start(api, sha256=hashlib.sha256(b"other").hexdigest())
    assert other["id"] != first["id"]
    assert start(api)["id"] != first["id"], "without a hash nothing is known to be the same"


def test_what_is_missing_is_named(api: Api, problem: Check) -> None:
    upload = start(api)
    put(api, upload, 2)
    body = problem(complete(api, upload), 409, "conflict")
    assert "got 1; missing: 1, 3." in body["detail"]
    assert shown(api, upload)["complete"] is False


def test_a_wrong_hash_makes_nothing_and_a_part_can_be_mended(api: Api, problem: Check) -> None:
    upload = start(api)
    for number in (1, 2, 3):
        put(api, upload, number)
    put(api, upload, 2, bytes(PART))
    body = problem(complete(api, upload), 422, "invalid_data")
    wrong = hashlib.sha256(CONTENT[:PART] + bytes(PART) + CONTENT[2 * PART :]).hexdigest()
    assert body["detail"].endswith(f"got {wrong}")
    with pytest.raises(FileNotFoundError):
        open_blobs(api.settings).open(wrong)
    assert not list((api.settings.home / "blobs").glob("*.part"))
    put(api, upload, 2)
    assert complete(api, upload).json()["complete"] is True


def test_a_hash_other_than_announced_is_refused(api: Api, problem: Check) -> None:
    upload = start(api, sha256=SHA256)
    for number in (1, 2, 3):
        put(api, upload, number)
    problem(complete(api, upload, "0" * 64), 422, "invalid_data")


@pytest.mark.parametrize(
    ("number", "size", "sentence"),
    [
        (1, PART - 1, "expected 65536 bytes of part 1, got 65535"),
        (1, PART + 1, "expected 65536 bytes of part 1, got 65537"),
        (3, 1001, "expected 1000 bytes of part 3, got 1001"),
        (4, 10, "expected a part among 1 to 3 (132072 bytes in parts of 65536), got 4"),
        (0, 10, "/path/number"),
        (10**6, 10, "/path/number"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_and_leaves_nothing(
    api: Api, problem: Check, number: int, size: int, sentence: str
) -> None:
    upload = start(api)
    body = problem(put(api, upload, number, bytes(size)), 422, "invalid_request")
    assert sentence in body["detail"]
    assert (shown(api, upload)["received"], staged(api)) == ([], [])


def test_a_body_without_a_length_is_counted_as_it_comes(api: Api, problem: Check) -> None:
    upload = start(api)
    path = f"/v1/uploads/{upload['id']}/parts/1"

    def endless() -> Any:
        for _ in range(1000):
            yield bytes(PART)

    answer = api.http.put(path, content=endless())
    problem(answer, 422, "invalid_request")
    answer = api.http.put(path, content=iter([CONTENT[:100]]))
    assert "got 100" in problem(answer, 422, "invalid_request")["detail"]
    assert api.http.put(path, content=iter([CONTENT[:100], CONTENT[100:PART]])).status_code == 204
    assert len(staged(api)) == 1


def test_a_connection_that_breaks_leaves_no_part(api: Api) -> None:
    def answered() -> float:
        counts = re.findall(
            r"^adap_http_request_seconds_count\{.*/parts/.*\} (.+)$",
            api.http.get("/metrics").text,
            re.MULTILINE,
        )
        return sum(map(float, counts))

    upload, before = start(api), answered()
    url = api.http.base_url
    for sent in (0, 1, PART // 2, PART - 1):
        with socket.create_connection((url.host, url.port)) as connection:
            head = (
                f"PUT /v1/uploads/{upload['id']}/parts/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Content-Length: {PART}\r\n\r\n"
            )
            connection.sendall(head.encode() + CONTENT[:sent])
    wait_for(lambda: answered() == before + 4, because="it has noticed each of them")
    assert (shown(api, upload)["received"], staged(api)) == ([], [])


def test_a_file_that_is_too_large_is_refused_before_a_byte_of_it(api: Api, problem: Check) -> None:
    with limited(api, max_file_bytes=PART) as strict:
        request = {"file_name": "pets.zip", "size": PART + 1}
        body = problem(strict.http.post("/v1/uploads", json=request), 422, "limit_exceeded")
        assert f"at most {PART} (ADAP_MAX_FILE_BYTES), got {PART + 1}" in body["detail"]
    request = {"file_name": "pets.zip", "size": 2**33, "part_bytes": PART}
    body = problem(api.http.post("/v1/uploads", json=request), 422, "invalid_request")
    assert "at most 10000 of them" in body["detail"]


def test_open_uploads_count_for_the_quota_until_they_are_used_or_removed(
    api: Api, problem: Check
) -> None:
    with limited(api, max_tenant_bytes=3 * len(CONTENT) - 1) as strict:
        first = start(strict)
        done = whole(strict)
        request = {"file_name": "more.zip", "size": len(CONTENT)}
        problem(strict.http.post("/v1/uploads", json=request), 429, "storage_full")
        made = strict.http.post("/v1/datasets", data={"upload_id": done["id"]})
        assert made.status_code == 201, "it is counted once, as what it became"
        problem(strict.http.post("/v1/uploads", json=request), 429, "storage_full")
        assert strict.http.delete(f"/v1/uploads/{first['id']}").status_code == 204
        assert strict.http.post("/v1/uploads", json=request).status_code == 201


@pytest.mark.parametrize(
    ("path", "table"), [("/v1/datasets", DatasetRow), ("/v1/models", ModelRow)]
)
def test_a_data_set_or_a_model_is_made_of_an_upload(
    api: Api, path: str, table: type[DatasetRow] | type[ModelRow]
) -> None:
    upload = whole(api)
    response = api.http.post(
        path, files={"upload_id": (None, upload["id"])}, headers={"Idempotency-Key": "once"}
    )
    assert response.status_code == 201, response.text
    assert response.json()["name"] == "pets.zip"
    with api.database.reading() as session:
        row = session.get_one(table, response.json()["id"])
    assert (row.upload_sha256, row.stored_bytes) == (SHA256, len(CONTENT))
    again = api.http.post(
        path, files={"upload_id": (None, upload["id"])}, headers={"Idempotency-Key": "once"}
    )
    assert again.json() == response.json()


def test_an_audit_is_made_of_uploads(api: Api, problem: Check) -> None:
    upload, fields = whole(api), {"dataset_upload_id", "model_upload_id"}
    config = {"config": (None, '{"threat": {"epsilon": 0.1}}')}
    response = api.http.post(
        "/v1/audits", files={**config, **dict.fromkeys(fields, (None, upload["id"]))}
    )
    assert response.status_code == 201, response.text
    with api.database.reading() as session:
        for table, what in ((DatasetRow, "dataset"), (ModelRow, "model")):
            identifier = response.json()["links"][what].rpartition("/")[2]
            row = session.get_one(table, identifier)
            assert (row.upload_sha256, row.stored_bytes) == (SHA256, len(CONTENT))
            assert row.name == "pets.zip"
    # one may come in the request, and the other before
    mixed = {"model": ("m.safetensors", b"m"), "dataset_upload_id": (None, upload["id"])}
    assert api.http.post("/v1/audits", files=mixed).status_code == 201

    before = api.http.get("/v1/jobs").json()["data"]
    unfinished = start(api, content=b"x" * PART)
    for files, status, code, sentence in (
        ({"model_upload_id": (None, unfinished["id"])}, 409, "not_ready", "is not complete"),
        ({"model_upload_id": (None, f"upl_{'0' * 26}")}, 404, "not_found", "no upload"),
        ({"model_upload_id": (None, "../x")}, 422, "invalid_request", "/body/model_upload_id"),
        ({}, 422, "invalid_request", "expected `model` or `model_upload_id`, got neither"),
        ({**mixed, "model_upload_id": (None, upload["id"])}, 422, "invalid_request", "got both"),
    ):
        files = {"dataset_upload_id": (None, upload["id"]), **files}
        body = problem(api.http.post("/v1/audits", files=files), status, code)
        assert sentence in body["detail"]
    assert api.http.get("/v1/jobs").json()["data"] == before


def test_an_upload_that_is_not_complete_makes_nothing(api: Api, problem: Check) -> None:
    upload = start(api)
    for path in ("/v1/datasets", "/v1/models"):
        data = {"upload_id": upload["id"]}
        problem(api.http.post(path, data=data), 409, "not_ready")
        problem(api.http.post(path, data={"upload_id": f"upl_{'0' * 26}"}), 404, "not_found")
        problem(api.http.post(path, data={"name": "x"}), 422, "invalid_request")
        files = {"file": ("a.zip", b"x")}
        body = problem(api.http.post(path, data=data, files=files), 422, "invalid_request")
        assert "expected `file` or `upload_id`, got both" in body["detail"]
        assert api.http.get(path).json()["data"] == []


def test_a_complete_upload_takes_no_more_parts(api: Api, problem: Check) -> None:
    upload = whole(api)
    problem(put(api, upload, 1), 409, "conflict")
    problem(complete(api, upload, "0" * 64), 409, "conflict")
    assert staged(api) == []


def test_another_tenants_upload_is_not_found(api: Api, problem: Check) -> None:
    upload = start(api, sha256=SHA256)
    for number in (1, 2, 3):
        put(api, upload, number)
    with api.database.writing() as session:
        _, key = keys.create(session, name="k", tenant="other", scopes=["read", "write"])
        _, reader = keys.create(session, name="r", scopes=["read"])
    other = {"Authorization": f"Bearer {key}"}
    path = f"/v1/uploads/{upload['id']}"
    for method, where, content in (
        ("GET", path, {}),
        ("DELETE", path, {}),
        ("PUT", f"{path}/parts/1", {"content": CONTENT[:PART]}),
        ("POST", f"{path}/complete", {"json": {"sha256": SHA256}}),
        ("POST", "/v1/datasets", {"data": {"upload_id": upload["id"]}}),
    ):
        answer = api.http.request(method, where, headers=other, **content)  # type: ignore[arg-type]
        problem(answer, 404, "not_found")
    assert api.http.get("/v1/uploads", headers=other).json()["data"] == []
    request = {"file_name": "x", "size": len(CONTENT), "sha256": SHA256}
    answer = api.http.post("/v1/uploads", json=request, headers=other)
    assert answer.status_code == 201, "the content of another tenant is not known here"
    only_reads = {"Authorization": f"Bearer {reader}"}
    answer = api.http.put(f"{path}/parts/1", content=CONTENT[:PART], headers=only_reads)
    problem(answer, 403, "forbidden")


def test_an_abandoned_upload_is_forgotten_and_its_parts_are_garbage(
    api: Api, problem: Check
) -> None:
    kept, left = start(api), start(api)
    for upload in (kept, left):
        put(api, upload, 1)
    with api.database.writing() as session:
        expired = update(UploadRow).where(UploadRow.id == left["id"])
        session.execute(expired.values(expires_at=UploadRow.created_at))
    problem(api.http.get(f"/v1/uploads/{left['id']}"), 404, "not_found")
    problem(put(api, left, 2), 404, "not_found")
    with api.database.writing() as session:
        uploads.forget(session)
    with api.database.reading() as session:
        assert [row.upload_id for row in session.scalars(select(UploadPartRow))] == [kept["id"]]
    collect(api.database, open_blobs(api.settings), grace_s=3600)
    assert len(staged(api)) == 2, "young files are spared"
    assert collect(api.database, open_blobs(api.settings), grace_s=-1) >= 1
    assert len(staged(api)) == 1
    for number in (2, 3):
        put(api, kept, number)
    assert complete(api, kept).status_code == 200


def test_a_crash_between_the_file_and_its_row_leaves_garbage_and_no_part(api: Api) -> None:
    upload = start(api)
    orphan = api.folder / "orphan"
    orphan.write_bytes(CONTENT[:PART])
    open_blobs(api.settings).stage(orphan)  # where the process was killed
    assert shown(api, upload)["received"] == []
    assert collect(api.database, open_blobs(api.settings), grace_s=-1) >= 1
    assert staged(api) == []


def test_a_part_whose_file_is_lost_is_never_a_complete_file(api: Api, problem: Check) -> None:
    upload = start(api)
    for number in (1, 2, 3):
        put(api, upload, number)
    staged(api)[0].unlink()
    problem(complete(api, upload), 409, "conflict")
    assert shown(api, upload)["complete"] is False


def test_a_rule_for_sizes_is_kept_with_the_request(api: Api, problem: Check) -> None:
    files = {"file": ("pets.zip", b"zip")}
    rule = {"height": 4, "width": 6, "fit": "crop"}
    made = api.http.post("/v1/datasets", files=files, data={"resize": json.dumps(rule)})
    assert made.status_code == 201, made.text
    job = api.http.get(f"/v1/jobs/{made.json()['job_id']}").json()
    assert job["request"]["resize"] == rule
    for wrong, sentence in (
        ({**rule, "fit": "squeeze"}, "/body/resize/fit: expected one of stretch, crop, pad,"),
        ({**rule, "height": 0}, "/body/resize/height"),
        ({"height": 4, "fit": "pad"}, "/body/resize/width: expected a value, got none"),
    ):
        answer = api.http.post("/v1/datasets", files=files, data={"resize": json.dumps(wrong)})
        assert sentence in problem(answer, 422, "invalid_request")["detail"]
    problem(
        api.http.post("/v1/datasets", files=files, data={"resize": "8x8"}), 422, "invalid_request"
    )


def test_what_a_killed_api_left_is_removed_once_it_is_old_and_what_is_young_stays(
    api: Api,
) -> None:
    folder = api.settings.home / "incoming"
    folder.mkdir(exist_ok=True)
    old, young = folder / "old.part", folder / "young.part"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert put(api, start(api), 1).status_code == 204
    assert [file.name for file in folder.iterdir()] == [young.name]
