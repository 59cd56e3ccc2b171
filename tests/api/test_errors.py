"""Every error is a problem that says what was expected and what came."""

import http.client
import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from adap import faults
from adap.api.errors import CODES
from adap.core.errors import AdapError
from adap.models.errors import ModelFileError
from adap.store.ids import new_id
from adap.store.tables import AssetStatus
from tests.api.conftest import CLASSIFIER, MANIFEST, PETS, SUMMARY, Api
from tests.conftest import REPOSITORY

Check = Callable[..., dict[str, Any]]

UNKNOWN = "0" * 26
TAGS = {"kind": "multilabel", "classes": ["cat", "dog", "emu"]}
DECLARED = {"architecture": "small_cnn", "input": json.dumps(MANIFEST["input"])}


def subclasses(cls: type[Exception]) -> set[type[Exception]]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def test_every_domain_error_that_a_route_can_meet_has_a_status() -> None:
    from adap.core.config import audits  # noqa: F401 - defines what routes raise

    for error in subclasses(AdapError) | subclasses(ModelFileError):
        if (
            error.__module__ in ("adap.core.errors", "adap.models.errors")
            and error is not AdapError
        ):
            assert error.code in CODES or error.code == "training_failed"


def test_the_documentation_lists_every_code_and_no_other() -> None:
    page = (REPOSITORY / "docs" / "problems.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.+?) \|", page, re.MULTILINE)
    assert {code: (int(status), title) for code, status, title in rows} == CODES
    assert len(rows) == len(CODES)


def test_every_code_that_a_route_raises_is_listed() -> None:
    raised = {
        code
        for path in (REPOSITORY / "api").rglob("*.py")
        for code in re.findall(
            r'(?:ApiError|refuse_later)\(\s*(?:session,\s*)?"(\w+)"', path.read_text()
        )
    }
    assert raised <= set(CODES)
    assert len(raised) >= 15


def test_every_pattern_of_a_request_is_said_in_words(api: Api) -> None:
    text = json.dumps(api.http.get("/openapi.json").json())
    patterns = {
        json.loads(found) for found in re.findall(r'"pattern": ("(?:[^"\\\\]|\\\\.)*")', text)
    }
    assert len(patterns) >= 8
    for pattern in patterns:
        with pytest.raises(ValidationError) as refused:
            TypeAdapter(Annotated[str, Field(pattern=pattern)]).validate_python("\n")
        sentence = faults.explain(refused.value.errors()[0])
        assert sentence.startswith("expected ")
        assert pattern not in sentence


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", f"/v1/datasets/ds_{UNKNOWN}", 404, "not_found"),
        ("GET", f"/v1/models/mdl_{UNKNOWN}", 404, "not_found"),
        ("GET", f"/v1/jobs/job_{UNKNOWN}", 404, "not_found"),
        ("GET", f"/v1/jobs/job_{UNKNOWN}/events", 404, "not_found"),
        ("POST", f"/v1/jobs/job_{UNKNOWN}/cancel", 404, "not_found"),
        ("GET", f"/v1/audits/job_{UNKNOWN}/report", 404, "not_found"),
        ("GET", f"/v1/rankings/job_{UNKNOWN}", 404, "not_found"),
        ("DELETE", f"/v1/api-keys/key_{UNKNOWN}", 404, "not_found"),
        ("GET", "/v1/jobs/nonsense", 422, "invalid_request"),
        ("GET", "/v1/jobs?limit=0", 422, "invalid_request"),
        ("GET", "/v1/jobs?after=%00%ff", 422, "invalid_request"),
        ("GET", "/v1/jobs?status=sleeping", 422, "invalid_request"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("POST", "/v1/training-jobs", 422, "invalid_request"),
        ("POST", "/v1/audits", 415, "unsupported_media_type"),
    ],
)
def test_what_is_not_there_or_not_valid_is_a_problem(
    api: Api, problem: Check, method: str, path: str, status: int, code: str
) -> None:
    problem(api.http.request(method, path), status, code)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": "sgd"}, "/body/method: expected one of ce, ap, pgd, "),
        ({"method": "adap_lp"}, "got 'adap_lp'; did you mean adap_lpn?"),
        (
            {"method": {"name": "adap_lpn", "lamda": 2}},
            "/body/method/lamda: no such field; did you mean lambda? Allowed: name, ",
        ),
        ({"epochs": 0}, "/body/epochs: expected at least 1, got 0"),
        ({"epochs": "3"}, "/body/epochs: expected a whole number, got '3'"),
        ({"attack": {"epsilon": -0.1}}, "/body/attack/epsilon: expected at least 0, got -0.1"),
        ({"attack": {"epsilon": 1e400}}, "finite"),
        (
            {"method": {"name": "adap_lpn", "gamma1": 2}},
            "/body/method/gamma1: expected at most 1, got 2",
        ),
        ({"colour": "red"}, "/body/colour: no such field; allowed: preset, method, architecture, "),
        ({"architecture": "resnet9000"}, "expected one of small_cnn, resnet18, resnet18_3x3"),
        ({"architecture": "resnet18"}, "at least 32 pixels a side, this data set has 8x8"),
        ({"task": {"positive": ["dgo"]}}, "among cat, dog; got dgo; did you mean dog?"),
        ({"task": {"positive": ["horse"]}}, "among cat, dog; got horse"),
        ({"task": None}, "task: expected the classes to rank first"),
        ({"batch_size": 8, "positives_per_batch": 8}, "below batch_size 8, got 8"),
        (
            {"method": {"name": "ap", "gamma1": 0}},
            "/body/method/gamma1: expected more than 0, got 0",
        ),
        ({"method": {"name": "ap", "margin": -0.6}}, "expected more than 0, got -0.6"),
        ({"method": {"name": "adap_ln", "gamma2": 1.5}}, "expected at most 1, got 1.5"),
        (
            {"method": {"name": "trades", "lambda": -1}},
            "/body/method/lambda: expected at least 0, got -1",
        ),
        ({"ema": 1.0}, "/body/ema: expected less than 1, got 1.0"),
        ({"validation": {"patience": 0}}, "/body/validation/patience: expected at least 1, got 0"),
        ({"optimizer": {"name": "lion"}}, "adam, adamw, nadam, radam, rmsprop, sgd, got 'lion'"),
        ({"optimizer": {"nesterov": True}}, "nesterov for sgd with a momentum above 0, got adam"),
        ({"task": {"each": False}}, "/body/task/each: expected true, got False"),
        (
            {"warm_start": {"model_id": "mdl_" + 26 * "0", "head": 1}},
            "/body/warm_start/head: no such field; ",
        ),
    ],
)
def test_a_training_request_that_cannot_work_is_refused_with_its_reason(
    api: Api, problem: Check, change: dict[str, Any], sentence: str
) -> None:
    request = {"dataset_id": api.dataset(), "task": {"positive": ["cat"]}, **change}
    response = api.http.post(
        "/v1/training-jobs",
        content=json.dumps(request),
        headers={"content-type": "application/json"},
    )
    body = response.json()
    problem(response, 422, body["code"])
    assert sentence in body["detail"]
    assert api.http.get("/v1/jobs").json()["data"] == [], "nothing half-made stays"


LOPSIDED = {"train": {"cat": 1, "dog": 19}, "test": {"cat": 19, "dog": 1}}
BLIND = {"train": {"cat": 10, "dog": 10}, "validation": {"cat": 0, "dog": 20}}
THREE = {"cat": 20, "dog": 20, "owl": 0}


@pytest.mark.parametrize(
    ("summary", "task", "sentence"),
    [
        ({"splits": LOPSIDED}, {"positive": ["cat"]}, "in the train split, got 1 positives (cat)"),
        (
            {"splits": BLIND},
            {"positive": ["cat"]},
            "in the validation split, got 0 positives (cat)",
        ),
        ({"splits": {}, "classes": THREE}, {"positive": ["owl"]}, "got 0 positives (owl)"),
        ({"splits": {}, "classes": THREE}, {"each": True}, "got 0 positives (owl)"),
        ({"splits": LOPSIDED}, {"each": True}, "got 1 positives (cat) and 19 negatives"),
        ({"splits": {}, "classes": {"cat": 40}}, {"each": True}, "40 positives (cat)"),
    ],
)
def test_a_training_without_enough_of_both_sides_is_refused(
    api: Api, problem: Check, summary: dict[str, Any], task: dict[str, Any], sentence: str
) -> None:
    dataset = api.dataset(summary={**SUMMARY, **summary})
    request = {"dataset_id": dataset, "task": task}
    body = problem(api.http.post("/v1/training-jobs", json=request), 422, "invalid_data")
    assert sentence in body["detail"]


EACH = {**MANIFEST, "positive": None, "output": {"kind": "multilabel", "classes": ["cat", "dog"]}}
TURNED = {**EACH, "output": {"kind": "multilabel", "classes": ["dog", "cat"]}}
WIDE = {**MANIFEST, "input": {**MANIFEST["input"], "width": 9}}


@pytest.mark.parametrize(
    ("manifest", "change", "sentence"),
    [
        ({**MANIFEST, "architecture": "resnet18_3x3"}, {}, "small_cnn to start from, got one of"),
        (WIDE, {}, "input size 1x8x9"),
        (EACH, {}, "with one logit to start from, got one with the outputs cat, dog"),
        (MANIFEST, {"task": {"each": True}}, "got one with one logit; fresh_head: true"),
        (TURNED, {"task": {"each": True}}, "cat, dog, in this order to start from"),
    ],
)
def test_a_start_from_weights_of_another_shape_is_refused(
    api: Api, problem: Check, manifest: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    start = {"model_id": api.model(manifest=manifest), "fresh_head": False}
    request = {
        "dataset_id": api.dataset(),
        "task": {"positive": ["cat"]},
        "method": "ap",
        "warm_start": start,
        **change,
    }
    body = problem(api.http.post("/v1/training-jobs", json=request), 422, "invalid_config")
    assert sentence in body["detail"]
    assert api.http.get("/v1/jobs").json()["data"] == []


def test_a_start_from_a_model_that_is_not_there_or_not_ready_is_refused(
    api: Api, problem: Check
) -> None:
    request = {"dataset_id": api.dataset(), "task": {"positive": ["cat"]}}
    for columns, status, code in (
        ({"tenant": "other"}, 404, "not_found"),
        ({"status": AssetStatus.VALIDATING, "manifest": None}, 409, "not_ready"),
    ):
        start = {"warm_start": {"model_id": api.model(**columns)}}
        problem(api.http.post("/v1/training-jobs", json=request | start), status, code)


def test_a_model_that_a_training_starts_from_cannot_be_removed(api: Api, problem: Check) -> None:
    start = api.model(manifest=EACH)
    request = {
        "dataset_id": api.dataset(),
        "task": {"positive": ["cat"]},
        "method": "ap",  # whose last layer starts afresh
        "warm_start": {"model_id": start},
    }
    job = api.http.post("/v1/training-jobs", json=request)
    assert job.status_code == 201, job.text
    problem(api.http.delete(f"/v1/models/{start}"), 409, "in_use")
    api.http.post(f"/v1/jobs/{job.json()['id']}/cancel")
    again = api.http.post(f"/v1/jobs/{job.json()['id']}/retry").json()
    assert again["request"]["warm_start"]["model_id"] == start
    problem(api.http.delete(f"/v1/models/{start}"), 409, "in_use")


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (
            {"threat": {"epsilon": -1}},
            "invalid_request",
            "/body/threat/epsilon: expected at least 0, got -1",
        ),
        ({"attacks": ["deepfool"]}, "invalid_request", "expected one of fgsm, pgd, "),
        ({"attacks": ["pgd", "pgd"]}, "invalid_request", "expected each attack once"),
        ({"attacks": ["transfer"]}, "invalid_request", "needs `surrogate`"),
        ({"split": "validation"}, "invalid_config", "this one declares train, test"),
        ({"task": {"positive": ["cat", "dog"]}}, "invalid_data", "got 20 positives"),
        ({"attacks": []}, "invalid_request", "expected at least 1 item, got 0"),
    ],
)
def test_an_audit_request_that_cannot_work_is_refused_with_its_reason(
    api: Api, problem: Check, change: dict[str, Any], code: str, sentence: str
) -> None:
    request = {"dataset_id": api.dataset(), "model_id": api.model(), **change}
    body = problem(api.http.post("/v1/audits", json=request), 422, code)
    assert sentence in body["detail"]


def test_a_task_of_no_kind_is_refused(api: Api, problem: Check) -> None:
    for task in ([None], 3, "cat", True):
        request = {"dataset_id": api.dataset(), "model_id": api.model(), "task": task}
        problem(api.http.post("/v1/audits", json=request), 422, "invalid_request")


def test_an_unknown_part_of_a_query_is_refused(api: Api, problem: Check) -> None:
    body = problem(api.http.get("/v1/jobs?page=2"), 422, "invalid_request")
    assert body["errors"][0]["pointer"] == "/query/page"
    assert "after" in body["detail"]
    problem(api.http.get("/v1/jobs?after="), 422, "invalid_request")
    problem(api.http.get("/livez?deep=1"), 422, "invalid_request")


def test_a_wrong_method_is_told_all_that_the_path_takes(api: Api, problem: Check) -> None:
    for path, allowed in (
        ("/v1/datasets", "GET, POST"),
        (f"/v1/datasets/ds_{UNKNOWN}", "GET, PATCH, DELETE"),
        ("/v1/training-jobs", "POST"),
    ):
        answer = api.http.put(path)
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed


def test_a_leaderboard_of_a_data_set_that_is_not_ready_says_so(api: Api, problem: Check) -> None:
    checking = api.dataset(status=AssetStatus.VALIDATING, job_id="job_x", summary=None)
    answer = api.http.get("/v1/leaderboard", params={"dataset_id": checking})
    problem(answer, 409, "not_ready")


def test_a_model_of_another_input_size_is_refused(api: Api, problem: Check) -> None:
    wide = api.dataset(summary={**SUMMARY, "width": 9})
    request = {"dataset_id": wide, "model_id": api.model()}
    for path in ("/v1/audits", "/v1/rankings"):
        body = problem(api.http.post(path, json=request), 422, "invalid_config")
        assert "input size 1x8x8" in body["detail"]
        assert "has 1x8x9" in body["detail"]


BLIND_SURROGATE = {
    **MANIFEST,
    "positive": None,
    "output": {"kind": "multilabel", "classes": ["dog", "emu"]},
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": {"positive": ["cat"]}, "surrogate": BLIND_SURROGATE}, "got 'cat'"),
        ({"task": {"positive": ["cat"]}, "thresholds": ["cat.wurst_ap >= 0.5"]}, "'cat.wurst_ap'"),
    ],
)
def test_what_no_audit_can_do_is_refused_alike_by_ids_and_by_files(
    api: Api, problem: Check, change: dict[str, Any], sentence: str
) -> None:
    config = dict(change)
    if "surrogate" in config:
        config["surrogate"] = {"model_id": api.model(manifest=config["surrogate"])}
    request = {"dataset_id": api.dataset(), "model_id": api.model(), **config}
    by_ids = api.http.post("/v1/audits", json=request)
    by_files = api.http.post(
        "/v1/audits",
        files={"model": ("m.safetensors", b"m"), "dataset": ("d.zip", b"d")},
        data={"config": json.dumps(config)},
    )
    details = {problem(answer, 422, "invalid_config")["detail"] for answer in (by_ids, by_files)}
    assert len(details) == 1
    assert sentence in details.pop()
    assert api.http.get("/v1/jobs").json()["data"] == [], "nothing half-made stays"


def test_a_surrogate_equal_to_the_model_is_no_black_box(api: Api, problem: Check) -> None:
    model = api.model()
    request = {"dataset_id": api.dataset(), "model_id": model, "surrogate": {"model_id": model}}
    body = problem(api.http.post("/v1/audits", json=request), 422, "invalid_config")
    assert "not black box" in body["detail"]


@pytest.mark.parametrize("path", ["/v1/training-jobs", "/v1/audits", "/v1/rankings"])
def test_a_job_on_what_is_not_ready_is_refused_with_the_reason(
    api: Api, problem: Check, path: str
) -> None:
    checking = api.dataset(status=AssetStatus.VALIDATING, job_id="job_x", summary=None)
    rejected = api.dataset(status=AssetStatus.REJECTED, reasons=["one class only"], summary=None)
    for dataset_id, sentence in (
        (checking, "wait for the job job_x"),
        (rejected, "one class only"),
    ):
        request = {"dataset_id": dataset_id}
        if path != "/v1/training-jobs":
            request["model_id"] = api.model()
        body = problem(api.http.post(path, json=request), 409, "not_ready")
        assert sentence in body["detail"]


def test_every_fault_of_a_request_is_pointed_at(api: Api, problem: Check) -> None:
    request = {"dataset_id": "x", "epochs": 0, "attack": {"epsilon": -1}}
    body = problem(api.http.post("/v1/training-jobs", json=request), 422, "invalid_request")
    pointers = {item["pointer"] for item in body["errors"]}
    assert pointers == {"/body/dataset_id", "/body/epochs", "/body/attack/epsilon"}


def test_a_body_that_is_too_large_is_refused_while_it_comes(api: Api, problem: Check) -> None:
    def chunks() -> Any:
        for _ in range(100):
            yield b" " * 100_000

    response = api.http.post(
        "/v1/training-jobs", content=chunks(), headers={"content-type": "application/json"}
    )
    problem(response, 413, "too_large")
    response = api.http.post("/v1/datasets", files={"file": ("big.zip", b"x" * 3_000_000)})
    problem(response, 413, "too_large")
    assert api.http.get("/v1/datasets").json()["data"] == []


@pytest.mark.parametrize("body", [b"{", b"[" * 5000, b"\xff\xfe", b"null", b"[]", b'"text"'])
@pytest.mark.parametrize("path", ["/v1/training-jobs", "/v1/audits", "/v1/rankings"])
def test_json_that_is_none_is_a_problem(api: Api, problem: Check, path: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = api.http.post(path, content=body, headers=headers)
    assert response.status_code in (400, 422)  # 400: too deep, or not UTF-8
    problem(response, response.status_code, response.json()["code"])


def test_unknown_form_fields_are_refused(api: Api, problem: Check) -> None:
    files = {"file": ("a.zip", b"zip")}
    response = api.http.post("/v1/datasets", files=files, data={"tenant": "other"})
    problem(response, 422, "invalid_request")
    assert api.http.get("/v1/datasets").json()["data"] == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"architecture": "small_cnn"}, "expected `input` (--size) with `architecture`"),
        ({"architecture": "vgg", "input": "{}"}, "expected one of small_cnn"),
        ({"architecture": "small_cnn", "input": "{"}, "/body/input"),
        (
            {
                "architecture": "small_cnn",
                "input": '{"channels": 3, "height": 8, "width": 8, "mean": [0], "std": [1]}',
            },
            "expected 3 values in mean, one a channel, got 1",
        ),
        ({"output": json.dumps(PETS)}, "with `architecture`, `output`, `weights` or `positive`"),
        ({**DECLARED, "output": "cat,dog"}, "/body/output: expected JSON"),
        (
            {**DECLARED, "output": '{"kind": "softmax"}'},
            "/body/output/kind: expected one of logit, multiclass, multilabel, probability, "
            "probabilities, got 'softmax'",
        ),
        (
            {**DECLARED, "output": '{"kind": "multiclass"}'},
            "/body/output: expected classes for the kind multiclass",
        ),
        (
            {**DECLARED, "output": '{"kind": "multilabel", "classes": ["a", "a"]}'},
            "/body/output: expected each class once",
        ),
        (
            {**DECLARED, "output": " " * 60_001},
            "/body/output: expected at most 60000 characters, got 60001",
        ),
    ],
)
def test_a_model_declaration_that_cannot_be_is_refused(
    api: Api, problem: Check, data: dict[str, str], sentence: str
) -> None:
    response = api.http.post("/v1/models", files={"file": ("m.safetensors", b"x")}, data=data)
    assert sentence in problem(response, 422, "invalid_request")["detail"]
    files = {"model": ("m.safetensors", b"x"), "dataset": ("d.zip", b"x")}
    if len(data.get("output", "")) < 1000:
        response = api.http.post("/v1/audits", files=files, data=data)
        assert sentence in problem(response, 422, "invalid_request")["detail"]
    assert api.http.get("/v1/models").json()["data"] == []


@pytest.mark.parametrize(
    ("output", "task", "sentence"),
    [
        (PETS, None, "a logit for each of cat, dog, other; got none"),
        (TAGS, None, "a logit for each of cat, dog, emu; got none"),
        (TAGS, ["cat", "dog"], "expected one positive class for a multilabel model"),
        ({**PETS, "classes": ["dog", "emu"]}, ["cat"], "a logit for (dog, emu), got 'cat'"),
        ({**PETS, "classes": ["dog", "cat"]}, ["cat", "dog"], "got all of dog, cat"),
    ],
)
def test_a_task_that_a_model_has_no_score_for_is_refused_at_once(
    api: Api,
    problem: Check,
    output: dict[str, Any],
    task: list[str] | None,
    sentence: str,
) -> None:
    model = api.model(manifest={**CLASSIFIER, "output": output})
    request = {"dataset_id": api.dataset(), "model_id": model}
    if task is not None:
        request["task"] = {"positive": task}
    body = problem(api.http.post("/v1/rankings", json=request), 422, "invalid_config")
    assert sentence in body["detail"]
    answer = api.http.post(
        f"/v1/models/{model}/scores",
        files=[("images", ("a.png", b"png"))],
        data={"positive": task or []},
    )
    assert problem(answer, 422, "invalid_config")["detail"] == body["detail"]
    assert api.http.get("/v1/jobs").json()["data"] == []


def test_a_class_asked_of_one_logit_is_refused(api: Api, problem: Check) -> None:
    answer = api.http.post(
        f"/v1/models/{api.model()}/scores",
        files=[("images", ("a.png", b"png"))],
        data={"positive": ["dog"]},
    )
    body = problem(answer, 422, "invalid_config")
    assert "has one logit, which ranks cat first; got dog" in body["detail"]


def test_an_empty_file_is_refused(api: Api, problem: Check) -> None:
    response = api.http.post("/v1/datasets", files={"file": ("a.zip", b"")})
    assert "empty" in problem(response, 422, "invalid_request")["detail"]


def test_a_multipart_audit_needs_its_two_files(api: Api, problem: Check) -> None:
    response = api.http.post("/v1/audits", files={"model": ("m", b"x")})
    body = problem(response, 422, "invalid_request")
    assert "expected `dataset` or `dataset_upload_id`, got neither" in body["detail"]
    response = api.http.post(
        "/v1/audits",
        files={"model": ("m", b"x"), "dataset": ("d", b"x")},
        data={"config": '{"threat": {"epsilon": -1}}'},
    )
    body = problem(response, 422, "invalid_request")
    assert body["errors"][0]["pointer"] == "/body/config/threat/epsilon"
    assert api.http.get("/v1/models").json()["data"] == []


def test_a_missing_table_is_an_error_and_no_database_to_wait_for(api: Api, problem: Check) -> None:
    with api.database.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs RENAME TO hidden")
        connection.commit()
    response = api.http.get("/v1/jobs")
    with api.database.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO jobs")
        connection.commit()
    problem(response, 500, "internal_error")
    assert "retry-after" not in response.headers


def test_a_request_that_is_no_http_leaves_the_server_up(api: Api) -> None:
    address = api.http.base_url
    connection = http.client.HTTPConnection(address.host, address.port or 0)
    connection.putrequest("GET", "/v1/jobs", skip_host=True)
    connection.putheader("Host", "a\x00b")
    connection.endheaders()
    assert connection.getresponse().status == 400
    assert api.http.get("/livez").json() == {"status": "ok"}


def test_ids_are_never_paths(api: Api) -> None:
    for name in ("..%2f..%2fetc%2fpasswd", "%00", "ds_" + "A" * 26, new_id("ds") + "x", "%2e%2e"):
        assert api.http.get(f"/v1/datasets/{name}/content").status_code in (404, 422)
