"""The contract of the routes, short of what workers do."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openapi_spec_validator import validate as validate_openapi
from safetensors.numpy import save_file

from adap.api.listing import make_cursor
from adap.core.datasets import ImageSet
from adap.core.rendering.card import card
from adap.core.rendering.junit import junit
from adap.core.rendering.sarif import sarif
from adap.core.report import Report
from adap.core.scores import load_scores
from adap.store import jobs, keys
from adap.store.artifacts import open_blobs
from adap.store.tables import AssetStatus, JobKind, JobStatus
from tests.api.conftest import CLASSIFIER, MANIFEST, PETS, SUMMARY, Api, wait_for
from tests.api.test_quotas import limited
from tests.reports import stored

Check = Callable[..., dict[str, Any]]


def train(api: Api, **fields: Any) -> dict[str, Any]:
    request = {"task": {"positive": ["cat"]}, **fields}
    if "dataset_id" not in request:
        request["dataset_id"] = api.dataset()
    response = api.http.post("/v1/training-jobs", json=request)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    job: dict[str, Any] = response.json()
    return job


def finish(api: Api, job_id: str, result: dict[str, Any] | None = None) -> None:
    with api.database.writing() as session:
        claim = jobs.claim(session, job_id, worker="w", lease_s=30)
        assert claim is not None
        jobs.record(session, claim, "epoch", {"epoch": 1})
        if result is None:
            jobs.fail(session, claim, jobs.JobError("boom", "It went wrong."))
        else:
            jobs.succeed(session, claim, result)


def test_an_uploaded_data_set_is_being_checked(api: Api) -> None:
    response = api.http.post("/v1/datasets", files={"file": ("../my photos.zip", b"zip")})
    assert response.status_code == 201
    dataset = response.json()
    assert dataset["status"] == "validating"
    assert dataset["name"] == "my photos.zip"
    assert response.headers["location"] == f"/v1/datasets/{dataset['id']}"
    job = api.http.get(f"/v1/jobs/{dataset['job_id']}").json()
    assert (job["kind"], job["status"]) == ("validate_dataset", "queued")
    assert job["waiting_for"] == "no worker of the queue 'intake' is alive"


@pytest.mark.parametrize("groups", [{}, {"groups": {"north": 15, "south": 25}}])
def test_a_summary_is_told_with_its_groups_where_there_are_any(
    api: Api, groups: dict[str, Any]
) -> None:
    dataset_id = api.dataset(summary={**SUMMARY, **groups})
    told = api.http.get(f"/v1/datasets/{dataset_id}").json()["summary"]
    followed = {
        "multilabel": False,
        "prevalence": {"cat": 0.5, "dog": 0.5},
        "split_examples": {"train": 20, "test": 20},
        "resize": None,
        "clusters": None,
        "reading": None,
        "warnings": [],
    }
    assert told == {**SUMMARY, **followed, "groups": None, **groups}


@pytest.mark.parametrize("kind", ["datasets", "models"])
def test_what_was_rejected_is_listed_only_when_asked_for(api: Api, kind: str) -> None:
    rejected: dict[str, Any] = {"status": AssetStatus.REJECTED, "reasons": ["one class only"]}
    if kind == "datasets":
        kept, refused = api.dataset(), api.dataset(**rejected, summary=None)
    else:
        kept, refused = api.model(), api.model(**rejected)

    def listed(**query: str) -> list[str]:
        return [item["id"] for item in api.http.get(f"/v1/{kind}", params=query).json()["data"]]

    assert listed() == listed(status="ready") == [kept]
    assert listed(status="rejected") == [refused]
    assert api.http.get(f"/v1/{kind}/{refused}").json()["reasons"] == ["one class only"]


def test_a_job_is_kept_when_nobody_hears_the_doorbell(api: Api) -> None:
    job = train(api)
    assert job["status"] == "queued"
    assert job["request"]["method"]["name"] == "adap_lpn", "defaults are filled in and shown"
    assert job["queue_position"] == 0
    assert train(api)["queue_position"] == 1


def test_the_task_of_the_model_is_the_default(api: Api) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    job = api.http.post("/v1/audits", json=request).json()
    assert job["request"]["task"] == {"positive": ["cat"]}


@pytest.mark.parametrize(
    ("classes", "positive"),
    [({"no": 20, "Yes": 20}, ["Yes"]), ({"cat": 20, "dog": 20}, None), ({"yes": 1, "1": 1}, None)],
)
def test_a_data_set_says_which_class_is_plainly_the_positive_one(
    api: Api, classes: dict[str, int], positive: list[str] | None
) -> None:
    dataset_id = api.dataset(summary={**SUMMARY, "classes": classes, "splits": {}})
    assert api.http.get(f"/v1/datasets/{dataset_id}").json()["positive"] == positive


@pytest.mark.parametrize(("kind", "prefix"), [("dataset", "ds"), ("model", "mdl")])
def test_data_sets_and_models_are_called_otherwise_and_noted_about(
    api: Api, problem: Check, kind: str, prefix: str
) -> None:
    asset_id = getattr(api, kind)(name="first")
    path = f"/v1/{kind}s/{asset_id}"
    noted = api.http.patch(path, json={"note": " at the gate\nsince May \n"}).json()
    assert (noted["name"], noted["note"]) == ("first", "at the gate\nsince May")
    renamed = api.http.patch(path, json={"name": "second"}).json()
    assert (renamed["name"], renamed["note"]) == ("second", noted["note"])
    for refused in (
        {},
        {"name": ""},
        {"name": "a\nb"},
        {"note": "x" * 2001},
        {"note": "to the \u202eleft"},
        {"status": "ready"},
    ):
        problem(api.http.patch(path, json=refused), 422, "invalid_request")
    assert api.http.get(path).json() == renamed
    listed = api.http.get(f"/v1/{kind}s?match=second").json()["data"]
    assert [one["id"] for one in listed] == [asset_id]
    assert api.http.patch(path, json={"note": ""}).json()["note"] is None
    unknown = f"/v1/{kind}s/{prefix}_{'0' * 26}"
    problem(api.http.patch(unknown, json={"note": "lost"}), 404, "not_found")


def test_a_multipart_audit_waits_for_the_checks_of_its_files(api: Api) -> None:
    response = api.http.post(
        "/v1/audits",
        files={"model": ("m.safetensors", b"m"), "dataset": ("d.zip", b"d")},
        data={"config": json.dumps({"threat": {"epsilon": 0.1}, "attacks": ["pgd"]})},
    )
    assert response.status_code == 201, response.text
    job = response.json()
    assert job["request"]["threat"]["epsilon"] == 0.1
    assert api.http.get(job["links"]["model"]).json()["status"] == "validating"
    assert api.http.get(job["links"]["dataset"]).json()["status"] == "validating"
    kinds = [item["kind"] for item in api.http.get("/v1/jobs").json()["data"]]
    assert sorted(kinds) == ["audit", "validate_dataset", "validate_model"]


def test_a_multipart_audit_resizes_the_images_of_its_data_set(api: Api, problem: Check) -> None:
    files = {"model": ("m.safetensors", b"m"), "dataset": ("d.zip", b"d")}
    rule = {"height": 32, "width": 32, "fit": "crop"}
    job = api.http.post("/v1/audits", files=files, data={"resize": json.dumps(rule)}).json()
    dataset = api.http.get(job["links"]["dataset"]).json()
    check = api.http.get(f"/v1/jobs/{dataset['job_id']}").json()
    assert rule.items() <= check["request"]["resize"].items()
    refused = api.http.post("/v1/audits", files=files, data={"resize": '{"height": 0}'})
    assert "/body/resize/" in problem(refused, 422, "invalid_request")["detail"]


def test_lists_come_in_pages_newest_first(api: Api) -> None:
    made = [train(api)["id"] for _ in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"after": cursor} if cursor else {})
        body = api.http.get("/v1/jobs", params=query).json()
        seen += [job["id"] for job in body["data"]]
        cursor = body["next_cursor"]
        if not body["has_more"]:
            break
    assert cursor is None
    assert seen == made[::-1]


def ids(api: Api, path: str, **query: Any) -> list[str]:
    """The ids of a list, all of its pages, two at a time."""
    found: list[str] = []
    while True:
        page = api.http.get(path, params={"limit": 2, **query}).json()
        found += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            return found
        query["after"] = page["next_cursor"]


@pytest.mark.parametrize("kind", ["datasets", "models"])
def test_lists_are_sorted_by_age_or_name_and_searched_by_name(api: Api, kind: str) -> None:
    names = ["Zebra", "ape", "100% ape", "Bear", "ape", "a_e"]
    add = api.dataset if kind == "datasets" else api.model
    made = {add(name=name): name for name in names}
    in_order = list(made)
    path = f"/v1/{kind}"
    assert ids(api, path) == in_order[::-1]
    assert ids(api, path, sort="oldest") == in_order
    by_name = sorted(in_order, key=lambda one: (made[one].lower(), one))
    assert ids(api, path, sort="name") == by_name
    for text, expected in {
        "APE": ["ape", "100% ape", "ape"],
        "%": ["100% ape"],
        "a_e": ["a_e"],
        "cow": [],
    }.items():
        found = ids(api, path, search=text, sort="oldest")
        assert [made[one] for one in found] == expected, text
    for asked in ("search", "match"):
        assert api.http.get(path, params={asked: "\0ape"}).status_code == 422
    theirs = add(name="b", tenant="other")
    for foreign in (theirs, theirs[:-1] + "0"):  # a cursor tells nothing of what others have
        assert ids(api, path, sort="name", after=make_cursor(foreign)) == []


def test_jobs_are_found_by_what_they_used_or_made(api: Api) -> None:
    dataset_id, model_id = api.dataset(), api.model()
    trained = train(api, dataset_id=dataset_id)["id"]
    made = api.model(job_id=trained)
    request = {"dataset_id": dataset_id, "model_id": model_id}
    audit = api.http.post("/v1/audits", json=request).json()["id"]
    train(api)
    assert ids(api, "/v1/jobs", dataset_id=dataset_id, sort="oldest") == [trained, audit]
    assert ids(api, "/v1/jobs", model_id=model_id) == [audit]
    assert ids(api, "/v1/jobs", model_id=made) == [trained]


def test_cancelling_a_queued_job_ends_it_and_again_is_a_conflict(api: Api, problem: Check) -> None:
    job = train(api)
    cancelled = api.http.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert (cancelled["status"], cancelled["done"]) == ("cancelled", True)
    problem(api.http.post(f"/v1/jobs/{job['id']}/cancel"), 409, "already_finished")


def test_a_retry_is_a_new_job_with_the_same_request(api: Api, problem: Check) -> None:
    job = train(api, epochs=3)
    problem(api.http.post(f"/v1/jobs/{job['id']}/retry"), 409, "conflict")
    finish(api, job["id"])
    response = api.http.post(f"/v1/jobs/{job['id']}/retry")
    assert response.status_code == 201
    assert response.json()["retry_of"] == job["id"]
    assert response.json()["request"] == job["request"]


def test_what_needs_something_that_was_removed_is_not_run_again(api: Api, problem: Check) -> None:
    job = train(api)
    finish(api, job["id"])
    dataset = job["request"]["dataset_id"]
    assert api.http.delete(f"/v1/datasets/{dataset}").status_code == 204
    body = problem(api.http.post(f"/v1/jobs/{job['id']}/retry"), 409, "conflict")
    assert dataset in body["detail"]


def test_prefer_wait_answers_when_the_job_ends(api: Api) -> None:
    job = train(api)
    timer = threading.Timer(0.3, finish, (api, job["id"], {"model_id": "mdl_x"}))
    with limited(api, max_wait_s=60) as patient:  # longer than its client is
        timer.start()
        answer = patient.http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=60"}).json()
    timer.join()
    assert answer["status"] == "succeeded"


def test_prefer_wait_is_bounded_by_the_setting(api: Api) -> None:
    job = train(api)
    answer = api.http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=3600"}).json()
    assert answer["status"] == "queued"


def stream(api: Api, job_id: str, last: str | None = None) -> list[dict[str, str]]:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
    with api.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [dict(line.split(": ", 1) for line in block) for block in blocks]


def test_events_are_streamed_until_the_end_and_resume_after_the_last_id(api: Api) -> None:
    job = train(api)
    timer = threading.Timer(0.5, finish, (api, job["id"], {}))
    timer.start()
    events = [item for item in stream(api, job["id"]) if "id" in item]
    timer.join()
    assert [item["event"] for item in events] == ["queued", "running", "epoch", "succeeded"]
    rest = [item for item in stream(api, job["id"], last="2") if "id" in item]
    assert rest == events[2:]
    for last in ("9223372036854775808", "99999999999999999999", "-1", "x"):  # no event's number
        assert [item for item in stream(api, job["id"], last=last) if "id" in item] == events
    listed = api.http.get(f"/v1/jobs/{job['id']}/events").json()["data"]
    assert [json.loads(item["data"]) for item in events] == listed


def test_a_stream_tells_of_the_end_after_the_last_event_however_many_there_are(api: Api) -> None:
    job = train(api)
    with api.database.writing() as session:
        claim = jobs.claim(session, job["id"], worker="w", lease_s=30)
        assert claim is not None
        for epoch in range(1, 1501):
            jobs.record(session, claim, "epoch", {"epoch": epoch})
        jobs.succeed(session, claim, {})
    told = stream(api, job["id"])
    assert [item.get("id") for item in told[:-1]] == [str(seq) for seq in range(1, 1504)]
    assert (told[-1]["event"], json.loads(told[-1]["data"])["status"]) == ("progress", "succeeded")


def test_content_is_served_by_range_and_not_again_if_it_is_known(api: Api) -> None:
    image_set = ImageSet(np.ones((2, 1, 3, 3), np.uint8), np.arange(2), ["a", "b"], ["0", "1"])
    image_set.save(api.folder / "told")
    dataset_id = api.dataset(content_sha256=api.keep(image_set))
    path = f"/v1/datasets/{dataset_id}/content"
    whole = api.http.get(path)
    assert whole.content == (api.folder / "told").read_bytes()
    assert "attachment" in whole.headers["content-disposition"]
    part = api.http.get(path, headers={"Range": "bytes=3-6"})
    assert (part.status_code, part.content) == (206, whole.content[3:7])
    known = api.http.get(path, headers={"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


def test_what_a_job_uses_cannot_be_removed(api: Api, problem: Check) -> None:
    dataset_id = api.dataset()
    job = train(api, dataset_id=dataset_id)
    problem(api.http.delete(f"/v1/datasets/{dataset_id}"), 409, "in_use")
    api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert api.http.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    problem(api.http.get(f"/v1/datasets/{dataset_id}"), 404, "not_found")
    assert api.http.get("/v1/datasets").json()["data"] == []


@pytest.mark.parametrize("end", ["queued", "failed"])
def test_a_report_that_is_not_there_says_why(api: Api, problem: Check, end: str) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    job_id = api.http.post("/v1/audits", json=request).json()["id"]
    if end == "failed":
        finish(api, job_id)
    body = problem(api.http.get(f"/v1/audits/{job_id}/report"), 409, "not_ready")
    assert ("It went wrong." if end == "failed" else "queued") in body["detail"]


def test_reports_and_scores_are_what_was_stored(api: Api, problem: Check) -> None:
    rows = [
        {
            "task": "cat",
            "example_id": str(i),
            "target": i % 2,
            "clean": i / 2,
            "attacks": {"pgd": -i, "apgd": i},
            "cluster": f"patient {i // 2}",
        }
        for i in range(7)
    ]
    blobs = {}
    for name, text in {
        "report": '{"report": 1}',
        "page": "<html>page</html>",
        "table": "".join(json.dumps(row) + "\n" for row in rows),
    }.items():
        path = api.folder / name
        path.write_text(text)
        blobs[name] = open_blobs(api.settings).put(path)
    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    job_id = api.http.post("/v1/audits", json=request).json()["id"]
    summary = {
        "clean_ap": 0.9,
        "worst_case_ap": 0.4,
        "attacks": {"pgd": 0.4},
        "trust": None,
        "tasks": [{"positive": ["cat"]}],
    }
    finish(api, job_id, {"summary": summary, "blobs": blobs})
    report = f"/v1/audits/{job_id}/report"
    assert api.http.get(report).json() == {"report": 1}
    page = api.http.get(report, headers={"Accept": "text/html,*/*"})
    assert page.text == "<html>page</html>"
    assert page.headers["content-type"].startswith("text/html")
    problem(api.http.get(report, headers={"Accept": "image/png"}), 406, "not_acceptable")
    seen, cursor = [], None
    for _ in range(4):
        query = {"limit": 2} | ({"after": cursor} if cursor else {})
        body = api.http.get(f"/v1/audits/{job_id}/scores", params=query).json()
        seen += body["data"]
        cursor = body["next_cursor"]
    assert seen == rows
    assert cursor is None
    one = api.http.get(f"/v1/audits/{job_id}/scores", params={"attack": "pgd"}).json()
    assert one["data"][3]["attacks"] == {"pgd": -3}
    unknown = api.http.get(f"/v1/audits/{job_id}/scores", params={"attack": "x"})
    problem(unknown, 422, "invalid_request")
    assert "blobs" not in api.http.get(f"/v1/jobs/{job_id}").json()["result"]


def finished_audit(api: Api) -> tuple[str, Path, Path]:
    """A finished audit, its report and its scores."""
    report, scores = stored(api.folder)
    put = open_blobs(api.settings).put
    page = api.folder / "page.html"
    page.write_text("<html>page</html>")
    table = api.folder / "table.ndjson"
    row = {"task": "cat", "example_id": "0", "target": 1, "clean": 0.5, "attacks": {"pgd": -1}}
    table.write_text(f"{json.dumps(row)}\n")
    resampled = api.folder / "resampled.safetensors"
    save_file({f"0.{name}": np.linspace(0, 1, 9) for name in ("clean", "worst_case")}, resampled)
    files = {
        "report": report,
        "scores": scores,
        "page": page,
        "table": table,
        "resampled": resampled,
    }
    blobs = {}
    for name, path in files.items():
        copy = api.folder / f"{name}.copy"
        copy.write_bytes(path.read_bytes())
        blobs[name] = put(copy)
    (told,) = load_scores(scores)
    audited = ImageSet(  # what these scores are of
        images=np.zeros((len(told), 1, 8, 8), np.uint8),
        labels=1 - told.targets,
        classes=["cat", "dog"],
        example_ids=told.example_ids,
    )
    dataset_id = api.dataset(content_sha256=api.keep(audited))
    request = {"dataset_id": dataset_id, "model_id": api.model()}
    job_id = api.http.post("/v1/audits", json=request).json()["id"]
    finish(api, job_id, {"summary": {}, "blobs": blobs})
    return job_id, report, scores


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("application/json, text/html", "application/json"),
        ("text/html;q=0.5, text/markdown", "text/markdown"),
        ("application/xml", "application/xml"),
        ("application/sarif+json", "application/sarif+json"),
        # what browsers send, and what would be XML if weights did not count
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json;q=0, application/*", "application/xml"),
        ("text/*", "text/html"),
    ],
)
def test_a_report_comes_in_the_form_that_is_wanted_most(api: Api, accept: str, form: str) -> None:
    job_id, report, _ = finished_audit(api)
    path = f"/v1/audits/{job_id}/report"
    answer = api.http.get(path, headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == form
    assert answer.headers["vary"] == "Accept"
    value = Report.model_validate_json(report.read_bytes())
    assert (
        answer.text
        == {
            "application/json": report.read_text(),
            "text/html": "<html>page</html>",
            "text/markdown": card(value),
            "application/xml": junit(value),
            "application/sarif+json": sarif(value),
        }[form]
    )
    known = {"Accept": accept, "If-None-Match": answer.headers["etag"]}
    again = api.http.get(path, headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert (again.headers["etag"], again.headers["vary"]) == (answer.headers["etag"], "Accept")


def test_every_form_of_a_report_has_an_etag_of_its_own(api: Api, problem: Check) -> None:
    job_id, _, _ = finished_audit(api)
    path = f"/v1/audits/{job_id}/report"
    forms = ["application/json", "text/html", "text/markdown", "application/xml"]
    forms += ["application/sarif+json"]
    etags = {api.http.get(path, headers={"Accept": form}).headers["etag"] for form in forms}
    assert len(etags) == len(forms)
    for accept in ("image/png", "application/json;q=0", "text/html;q=0, image/*"):
        body = problem(api.http.get(path, headers={"Accept": accept}), 406, "not_acceptable")
        assert body["detail"].startswith(f"Expected Accept: {' or '.join(forms)}, got ")
    schema = api.http.get("/openapi.json").json()["paths"]["/v1/audits/{job_id}/report"]
    assert sorted(schema["get"]["responses"]["200"]["content"]) == sorted(forms)


@pytest.mark.parametrize("accept", ["application/octet-stream", "application/vnd.safetensors"])
def test_all_scores_come_as_one_file(api: Api, problem: Check, accept: str) -> None:
    job_id, report, scores = finished_audit(api)
    path = f"/v1/audits/{job_id}/scores"
    answer = api.http.get(path, headers={"Accept": accept})
    assert answer.content == scores.read_bytes()
    assert answer.headers["content-type"] == accept
    assert answer.headers["vary"] == "Accept"
    assert f"{job_id}.safetensors" in answer.headers["content-disposition"]
    provenance = json.loads(report.read_text())["provenance"]
    assert answer.headers["etag"] == f'"{provenance["scores_sha256"]}"'
    known = {"Accept": accept, "If-None-Match": answer.headers["etag"]}
    assert api.http.get(path, headers=known).status_code == 304
    problem(api.http.get(path, headers={"Accept": "image/png"}), 406, "not_acceptable")
    operation = api.http.get("/openapi.json").json()["paths"]["/v1/audits/{job_id}/scores"]["get"]
    assert accept in operation["responses"]["200"]["content"]


RANKING = [
    {"rank": i, "example_id": str(i), "score": -i, "label": "cat", "positive": True}
    for i in range(1, 8)
]


def finished_ranking(api: Api, **files: str) -> str:
    """A finished ranking with these files."""
    blobs = {}
    for name, text in files.items():
        path = api.folder / name
        path.write_text(text)
        blobs[name] = open_blobs(api.settings).put(path)
    request = {"dataset_id": api.dataset(), "model_id": api.model()}
    job_id = str(api.http.post("/v1/rankings", json=request).json()["id"])
    finish(api, job_id, {"summary": {}, "blobs": blobs})
    return job_id


@pytest.mark.parametrize(
    ("accept", "name", "suffix"),
    [
        ("text/csv", "csv", "csv"),
        ("application/vnd.apache.parquet", "parquet", "parquet"),
        ("application/x-ndjson", "ranking", "ndjson"),
    ],
)
def test_a_whole_ranking_comes_as_one_file(
    api: Api, problem: Check, accept: str, name: str, suffix: str
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in RANKING)
    job_id = finished_ranking(api, ranking=lines, csv="the csv", parquet="the parquet")
    path = f"/v1/rankings/{job_id}"
    answer = api.http.get(path, headers={"Accept": accept})
    assert answer.text == {"ranking": lines}.get(name, f"the {name}")
    assert answer.headers["content-type"].partition(";")[0] == accept
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}.{suffix}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["vary"] == "Accept"
    known = {"Accept": accept, "If-None-Match": answer.headers["etag"]}
    assert api.http.get(path, headers=known).status_code == 304
    part = api.http.get(path, headers={"Accept": accept, "Range": "bytes=0-2"})
    assert (part.status_code, part.text) == (206, answer.text[:3])

    page = api.http.get(path, params={"limit": 4}).json()
    rest = api.http.get(path, params={"limit": 4, "after": page["next_cursor"]}).json()
    assert page["data"] + rest["data"] == RANKING
    problem(api.http.get(path, headers={"Accept": "image/png"}), 406, "not_acceptable")
    operation = api.http.get("/openapi.json").json()["paths"]["/v1/rankings/{job_id}"]["get"]
    assert accept in operation["responses"]["200"]["content"]


def test_a_ranking_from_before_there_were_tables_says_so(api: Api, problem: Check) -> None:
    path = f"/v1/rankings/{finished_ranking(api, ranking='')}"
    body = problem(api.http.get(path, headers={"Accept": "text/csv"}), 406, "not_acceptable")
    assert "run it again" in body["detail"]


def test_thresholds_are_refused_when_the_audit_is_asked_for(api: Api, problem: Check) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model()}

    def ask(*asked: str) -> httpx.Response:
        return api.http.post("/v1/audits", json={**request, "thresholds": list(asked)})

    body = problem(ask("worst_case_ap => 0.4"), 422, "invalid_request")
    assert body["errors"][0]["pointer"] == "/body/thresholds/0"
    body = problem(ask("drop < 1", "wurst_case_ap >= 0.4"), 422, "invalid_config")
    assert "did you mean worst_case_ap?" in body["detail"]
    assert api.http.get("/v1/jobs").json()["data"] == []
    job = ask("cat.worst_case_ap >= 0.4", "trust >= caution").json()
    assert job["request"]["thresholds"] == ["cat.worst_case_ap >= 0.4", "trust >= caution"]


def test_a_statement_is_kept_with_the_audit_or_refused_by_its_field(
    api: Api, problem: Check
) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model()}

    def ask(statement: dict[str, str]) -> httpx.Response:
        return api.http.post("/v1/audits", json={**request, "statement": statement})

    for field, text, said in (
        ("purpose", "a\u202eb", "U+202E"),
        ("tester", "x" * 201, "200 characters"),
        ("approved_on", "tomorrow", "expected a day such as 2026-11-30"),
        ("purpos", "a", "did you mean purpose"),
    ):
        body = problem(ask({field: text}), 422, "invalid_request")
        assert body["errors"][0]["pointer"] == f"/body/statement/{field}"
        assert said in body["detail"] + body["errors"][0]["detail"]
    assert api.http.get("/v1/jobs").json()["data"] == []
    stated = ask({"purpose": "Decide.", "approver": "A. Prover"}).json()["request"]["statement"]
    assert (stated["purpose"], stated["approver"]) == ("Decide.", "A. Prover")


@pytest.mark.parametrize(
    ("output", "expected"),
    [(None, {"kind": "logit", "classes": None}), (json.dumps(PETS), PETS)],
)
def test_what_a_model_answers_goes_with_its_upload(
    api: Api, output: str | None, expected: dict[str, Any]
) -> None:
    declared = {"architecture": "small_cnn", "input": json.dumps(MANIFEST["input"])}
    declared |= {} if output is None else {"output": output}
    files = {"file": ("m.safetensors", b"m")}
    added = api.http.post("/v1/models", files=files, data=declared).json()
    assert checked(api, added["id"]) == expected
    files = {"model": ("m.safetensors", b"m"), "dataset": ("d.zip", b"d")}
    audit = api.http.post("/v1/audits", files=files, data=declared).json()
    assert checked(api, audit["links"]["model"].rpartition("/")[2]) == expected


def checked(api: Api, model_id: str) -> Any:
    """The output that the check of an uploaded model is told to expect."""
    job_id = api.http.get(f"/v1/models/{model_id}").json()["job_id"]
    return api.http.get(f"/v1/jobs/{job_id}").json()["request"]["declared"]["output"]


def test_a_model_from_before_there_were_outputs_has_one_logit(api: Api) -> None:
    assert "output" not in MANIFEST
    shown = api.http.get(f"/v1/models/{api.model()}").json()
    assert shown["manifest"]["output"] == {"kind": "logit", "classes": None}


@pytest.mark.parametrize("trained_for", [None, ["dog"]])
def test_a_task_makes_a_logit_a_class_a_score(
    api: Api, problem: Check, trained_for: list[str] | None
) -> None:
    model = api.model(manifest={**CLASSIFIER, "positive": trained_for})
    request: dict[str, Any] = {"dataset_id": api.dataset(), "model_id": model}
    form: dict[str, Any] = {}
    if trained_for is None:
        request["task"] = {"positive": ["dog"]}
        form["positive"] = ["dog", "other"] * 100  # the form may be as long as a data set is wide
    assert api.http.post("/v1/rankings", json=request).status_code == 201
    answer = api.http.post(
        f"/v1/models/{model}/scores", files=[("images", ("a.png", b"png"))], data=form
    )
    problem(answer, 503, "scoring_unavailable")  # all is well with the request


def test_the_catalogue_lists_what_can_be_asked_for(api: Api) -> None:
    methods = [entry["name"] for entry in api.http.get("/v1/methods").json()]
    assert methods == [
        *("ce", "ap", "pgd", "trades", "mart"),
        *("adap_mm", "adap_pz", "adap_lz", "adap_ln", "adap_lpn"),
    ]
    assert "pgd" in [entry["name"] for entry in api.http.get("/v1/attacks").json()]
    assert "resnet18" in [entry["name"] for entry in api.http.get("/v1/architectures").json()]


def test_readiness_says_what_is_missing(api: Api) -> None:
    answer = api.http.get("/readyz").json()
    assert answer["status"] == "degraded"
    assert len(answer["problems"]) == 4
    assert answer["broker"] == "unreachable"
    assert answer["scoring"] == "unreachable"


class TestKeys:
    """Who may do what."""

    def key(self, api: Api, **fields: Any) -> str:
        with api.database.writing() as session:
            return keys.create(session, **{"name": "k", "scopes": ["read"], **fields})[1]

    def test_the_first_key_must_be_an_admins(self, api: Api, problem: Check) -> None:
        response = api.http.post("/v1/api-keys", json={"name": "ci", "scopes": ["read"]})
        problem(response, 409, "conflict")
        response = api.http.post("/v1/api-keys", json={"name": "me", "scopes": ["admin", "read"]})
        assert response.status_code == 201
        key = response.json()["key"]
        problem(api.http.get("/v1/jobs"), 401, "unauthorized")
        headers = {"Authorization": f"Bearer {key}"}
        assert api.http.get("/v1/jobs", headers=headers).status_code == 200
        listed = api.http.get("/v1/api-keys", headers=headers).json()["data"]
        assert "key" not in listed[0]

    def test_a_key_is_nowhere_but_in_its_answer(self, api: Api) -> None:
        response = api.http.post("/v1/api-keys", json={"name": "me", "scopes": ["admin"]})
        key = response.json()["key"]
        stored = b"".join(path.read_bytes() for path in api.settings.home.glob("adap.db*"))
        assert b"me" in stored
        assert key.encode() not in stored

    def test_scopes_are_needed(self, api: Api, problem: Check) -> None:
        headers = {"Authorization": f"Bearer {self.key(api)}"}
        assert api.http.get("/v1/datasets", headers=headers).status_code == 200
        files = {"file": ("a.zip", b"x")}
        problem(api.http.post("/v1/datasets", files=files, headers=headers), 403, "forbidden")
        problem(api.http.get("/v1/api-keys", headers=headers), 403, "forbidden")

    def test_a_revoked_or_expired_key_is_refused_at_once(self, api: Api, problem: Check) -> None:
        admin = {"Authorization": f"Bearer {self.key(api, scopes=['admin', 'read'])}"}
        ids = {
            row["name"]: row["id"]
            for row in api.http.get("/v1/api-keys", headers=admin).json()["data"]
        }
        made = api.http.post("/v1/api-keys", json={"name": "ci"}, headers=admin).json()
        ci = {"Authorization": f"Bearer {made['key']}"}
        assert api.http.get("/v1/jobs", headers=ci).status_code == 200
        assert made["id"] not in ids.values()
        assert api.http.delete(f"/v1/api-keys/{made['id']}", headers=admin).status_code == 204
        problem(api.http.get("/v1/jobs", headers=ci), 401, "unauthorized")
        brief = {"Authorization": f"Bearer {self.key(api, expires_in_s=-1.0)}"}
        problem(api.http.get("/v1/jobs", headers=brief), 401, "unauthorized")
        problem(
            api.http.get("/v1/jobs", headers={"Authorization": "Bearer no"}), 401, "unauthorized"
        )

    def test_another_tenants_things_are_not_found(self, api: Api, problem: Check) -> None:
        dataset_id, model_id = api.dataset(), api.model()
        job = train(api, dataset_id=dataset_id)
        other = {
            "Authorization": f"Bearer {self.key(api, tenant='other', scopes=['read', 'write'])}"
        }
        for method, path in (
            ("GET", f"/v1/datasets/{dataset_id}"),
            ("GET", f"/v1/datasets/{dataset_id}/content"),
            ("DELETE", f"/v1/datasets/{dataset_id}"),
            ("GET", f"/v1/models/{model_id}"),
            ("GET", f"/v1/models/{model_id}/content"),
            ("DELETE", f"/v1/models/{model_id}"),
            ("GET", f"/v1/jobs/{job['id']}"),
            ("GET", f"/v1/jobs/{job['id']}/events"),
            ("POST", f"/v1/jobs/{job['id']}/cancel"),
            ("POST", f"/v1/jobs/{job['id']}/retry"),
        ):
            problem(api.http.request(method, path, headers=other), 404, "not_found")
        for path in ("/v1/datasets", "/v1/models", "/v1/jobs"):
            assert api.http.get(path, headers=other).json()["data"] == []
        request = {"dataset_id": dataset_id, "model_id": model_id}
        for path in ("/v1/audits", "/v1/rankings"):
            problem(api.http.post(path, json=request, headers=other), 404, "not_found")

    def test_the_last_admin_key_that_lasts_is_not_lost_unless_that_is_said(
        self, api: Api, problem: Check
    ) -> None:
        def make(**fields: Any) -> httpx.Response:
            request = {"name": "a", "scopes": ["admin"], **fields}
            return api.http.post("/v1/api-keys", json=request, headers=mine)

        def revoke(key_id: str, query: str = "") -> httpx.Response:
            return api.http.delete(f"/v1/api-keys/{key_id}{query}", headers=mine)

        mine: dict[str, str] = {}
        problem(make(expires_in_s=60), 409, "last_admin_key")
        first = make().json()
        mine = {"Authorization": f"Bearer {first['key']}"}
        assert make(scopes=["read", "write"]).status_code == 201
        brief = make(expires_in_s=3600).json()  # another lasts
        problem(revoke(first["id"]), 409, "last_admin_key")  # then none would
        assert revoke(brief["id"]).status_code == 204
        second = make().json()
        assert revoke(second["id"]).status_code == 204
        assert revoke(first["id"], "?allow_no_admin=true").status_code == 204
        problem(api.http.get("/v1/api-keys", headers=mine), 401, "unauthorized")


def test_the_openapi_has_a_problem_for_every_documented_error(api: Api) -> None:
    schema = api.http.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")):
                    assert list(response["content"]) == ["application/problem+json"], (
                        f"{method} {path} {status}"
                    )
    validate_openapi(schema)


def test_every_request_has_an_example_that_is_taken(api: Api) -> None:
    schema = api.http.get("/openapi.json").json()
    requests = {
        "TrainingRequest": "/v1/training-jobs",
        "AuditRequest": "/v1/audits",
        "RankingRequest": "/v1/rankings",
        "UploadRequest": "/v1/uploads",
        "ApiKeyRequest": "/v1/api-keys",
    }
    for name, path in requests.items():
        (example,) = schema["components"]["schemas"][name]["examples"]
        for field, put in (("dataset_id", api.dataset), ("model_id", api.model)):
            if field in example:
                example[field] = put()
        if "task" in example:
            example["task"] = {"positive": ["cat"]}
        if path == "/v1/api-keys":
            example["scopes"] = [*example["scopes"], "admin"]  # as the first key must have
        assert api.http.post(path, json=example).status_code == 201, path


def test_two_requests_have_two_ids(api: Api) -> None:
    first, second = api.http.get("/livez"), api.http.get("/livez")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_jobs_of_one_kind_or_status_can_be_asked_for(api: Api) -> None:
    job = train(api)
    for query, found in (
        ({"kind": "train"}, [job["id"]]),
        ({"kind": "audit"}, []),
        ({"status": JobStatus.QUEUED.value}, [job["id"]]),
        ({"status": "failed"}, []),
    ):
        data = api.http.get("/v1/jobs", params=query).json()["data"]
        assert [item["id"] for item in data] == found
    assert JobKind.TRAIN.value == "train"


def test_a_client_that_goes_away_ends_its_stream(api: Api) -> None:
    job = train(api)
    with (
        pytest.raises(httpx.ReadTimeout),
        api.http.stream(
            "GET",
            f"/v1/jobs/{job['id']}/events",
            headers={"Accept": "text/event-stream"},
            timeout=1,
        ) as response,
    ):
        for _ in response.iter_raw():
            pass
    assert api.http.get("/livez").status_code == 200


def test_a_paused_queue_takes_requests_and_says_wherever_one_looks_that_they_wait(
    api: Api, problem: Check
) -> None:
    request = {"paused": True, "reason": "new disks"}
    paused = api.http.put("/v1/queues/intake", json=request).json()
    assert (paused["paused"], paused["reason"], paused["queued"]) == (True, "new disks", 0)
    why = "the queue 'intake' is paused: new disks"
    upload = api.http.post("/v1/datasets", files={"file": ("photos.zip", b"zip")})
    assert upload.status_code == 201
    job_path = f"/v1/jobs/{upload.json()['job_id']}"
    assert api.http.get(job_path).json()["waiting_for"] == why
    listed = api.http.get("/v1/queues").json()
    assert [(q["name"], q["paused"], q["queued"]) for q in listed] == [
        ("compute", False, 0),
        ("intake", True, 1),
    ]

    def told() -> bool:  # what it says is at most a second old
        return why in api.http.get("/readyz").json()["problems"]

    wait_for(told, because="readyz names it")
    metrics = api.http.get("/metrics").text
    assert 'adap_queue_paused{queue="intake"} 1.0' in metrics
    assert 'adap_queue_paused{queue="compute"} 0.0' in metrics

    resumed = api.http.put("/v1/queues/intake", json={"paused": False}).json()
    assert (resumed["paused"], resumed["paused_at"], resumed["reason"]) == (False, None, None)
    assert "no worker" in api.http.get(job_path).json()["waiting_for"]
    problem(api.http.put("/v1/queues/other", json=request), 422, "invalid_request")
