"""Forms over HTTP: each field once, and lists there as in JSON; the judge is what JSON gets."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from adap.api.forms import FORM_LIMITS, MAX_TEXT
from adap.store.tables import JobRow
from tests.api.conftest import CLASSIFIER, MANIFEST, Api, Scoring, noise, png

Check = Callable[..., dict[str, Any]]

INPUT = json.dumps(MANIFEST["input"])


def npz() -> bytes:
    """A data set of two images."""
    file = io.BytesIO()
    np.savez(file, images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.array(["a", "b"]))
    return file.getvalue()


FORMS: dict[str, tuple[str, list[tuple[str, str]], list[str]]] = {
    "a data set's name": ("/v1/datasets", [("name", "one"), ("name", "two")], ["file"]),
    "a data set's numbers": ("/v1/datasets", [("hold_out", "0.1"), ("hold_out", "0.2")], ["file"]),
    "a model's class": (
        "/v1/models",
        [("input", INPUT), ("positive", "cat"), ("positive", "dog")],
        ["file"],
    ),
    "a model's file": ("/v1/models", [("input", INPUT)], ["file", "file"]),
    "an audit's configuration": (
        "/v1/audits",
        [("config", "{}"), ("config", '{"seed": 1}')],
        ["model", "dataset"],
    ),
    "an audit's data set": ("/v1/audits", [], ["dataset", "dataset"]),
    "a field that there is not": ("/v1/datasets", [("nonesuch", "1"), ("nonesuch", "2")], ["file"]),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_field_of_two_values_is_refused_by_name(api: Api, problem: Check, name: str) -> None:
    path, fields, files = FORMS[name]
    twice = [name for name, _ in fields] + files
    field = next(name for name in twice if twice.count(name) > 1)

    answer = api.http.post(
        path,
        data={name: [value for other, value in fields if other == name] for name, _ in fields},
        files=[(name, ("file.npz", npz())) for name in files],
    )

    body = problem(answer, 422, "invalid_request")
    assert body["detail"] == f"/body/{field}: expected the field once, got it 2 times"
    assert [error["pointer"] for error in body["errors"]] == [f"/body/{field}"]


def test_a_field_of_two_values_is_refused_in_a_form_of_images_and_at_the_sign_in(
    scoring: Scoring, problem: Check
) -> None:
    http, model_id = scoring.api.http, scoring.model()
    image = [("images", ("a.png", png(noise(1)[0])))]

    ranked = http.post(
        f"/v1/models/{model_id}/scores", files=image, data={"rank": ["true", "false"]}
    )
    signed = http.post(
        "/sign-in",
        content="key=adap_one&key=adap_two",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )

    assert (
        "/body/rank: expected the field once" in problem(ranked, 422, "invalid_request")["detail"]
    )
    assert "/body/key: expected the field once" in problem(signed, 422, "invalid_request")["detail"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat, dog", ["cat", "dog"]),
        ('["cat", "dog"]', ["cat", "dog"]),
        (' ["cat, or dog"]\n', ["cat, or dog"]),
        ('"cat"', ["cat"]),
        ("cat [of one's own]", ["cat [of one's own]"]),
        ('["[cat]"]', ["[cat]"]),
    ],
)
def test_a_models_classes_come_as_they_are_or_as_the_list_that_json_has(
    api: Api, text: str, names: list[str]
) -> None:
    answer = api.http.post(
        "/v1/models",
        data={"architecture": "small_cnn", "input": INPUT, "positive": text},
        files={"file": ("m.safetensors", b"of no matter: declared is what is looked at")},
    )

    with api.database.reading() as session:
        job = session.scalars(
            select(JobRow).where(JobRow.model_id == answer.raise_for_status().json()["id"])
        ).one()
        assert job.request["declared"]["positive"] == names


@pytest.mark.parametrize("text", ["[cat]", '{"positive": ["cat"]}', '["cat", 1]', '["cat"', '"cat'])
def test_what_begins_as_json_and_names_no_classes_is_refused_with_what_to_write(
    api: Api, problem: Check, text: str
) -> None:
    answer = api.http.post(
        "/v1/models",
        data={"architecture": "small_cnn", "input": INPUT, "positive": text},
        files={"file": ("m.safetensors", b"none")},
    )

    detail = problem(answer, 422, "invalid_request")["detail"]
    assert detail.startswith("/body/positive: expected names of classes")
    assert '["cat", "dog"]' in detail


def test_classes_to_score_by_come_once_for_each_or_as_one_list(
    scoring: Scoring, problem: Check
) -> None:
    http, model_id = scoring.api.http, scoring.model(manifest=CLASSIFIER)
    image = [("images", ("a.png", png(noise(1)[0])))]
    path = f"/v1/models/{model_id}/scores"

    def scores(positive: Any) -> list[dict[str, Any]]:
        answer = http.post(path, files=image, data={"positive": positive})
        found: list[dict[str, Any]] = answer.raise_for_status().json()["scores"]
        return found

    assert scores('["cat", "dog"]') == scores(["cat", "dog"]) != scores("cat")
    refused = http.post(path, files=image, data={"positive": "[cat]"})
    assert "once for each" in problem(refused, 422, "invalid_request")["detail"]


@pytest.mark.parametrize(
    ("path", "field", "text"),
    [
        ("/v1/datasets", "resize", '{"height": 8, "width": 8, "fit": "crop", "fit": "pad"}'),
        ("/v1/models", "input", INPUT.replace("{", '{"channels": 3, ', 1)),
        ("/v1/models", "output", '{"kind": "multiclass", "kind": "multilabel"}'),
        ("/v1/audits", "config", '{"seed": 1, "seed": 2}'),
    ],
)
def test_a_name_twice_in_the_json_of_a_field_is_refused(
    api: Api, problem: Check, path: str, field: str, text: str
) -> None:
    files = ["model", "dataset"] if path == "/v1/audits" else ["file"]
    data = {field: text} | ({"input": INPUT} if field == "output" else {})

    answer = api.http.post(path, data=data, files=[(name, ("f", npz())) for name in files])

    detail = problem(answer, 422, "invalid_request")["detail"]
    assert detail.startswith(f"/body/{field}: ")
    assert "twice in one object" in detail


def test_a_name_twice_in_json_images_is_refused(scoring: Scoring, problem: Check) -> None:
    body = b'{"images": [], "rank": true, "rank": false}'

    answer = scoring.api.http.post(
        f"/v1/models/{scoring.model()}/scores",
        content=body,
        headers={"Content-Type": "application/json"},
    )

    assert "the name 'rank' twice" in problem(answer, 422, "invalid_request")["detail"]


@pytest.mark.parametrize("too_much", ["a byte of a text", "a file", "a field"])
@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/models", "/v1/audits"])
def test_more_than_a_form_may_have_ends_its_reading(
    api: Api, problem: Check, path: str, too_much: str
) -> None:
    texts = [("name", (None, "x"))] * (FORM_LIMITS["max_fields"] + 1)
    files = [("file", ("a.npz", b"x"))] * (FORM_LIMITS["max_files"] + 1)
    long = [("name", (None, "x" * (4 * MAX_TEXT + 1)))]
    forms: dict[str, tuple[Any, str]] = {
        "a byte of a text": (long, "Part exceeded maximum size"),
        "a file": (files, "Too many files"),
        "a field": (texts, "Too many fields"),
    }
    form, said = forms[too_much]

    body = problem(api.http.post(path, files=form), 400, "bad_request")

    assert said in body["detail"]


def test_a_form_may_have_all_that_its_fields_say(
    api: Api, scoring: Scoring, problem: Check
) -> None:
    classes = [f"{i}{'字' * 190}" for i in range(300)]
    output = json.dumps({"kind": "multiclass", "classes": classes}, ensure_ascii=False)
    assert len(output) < MAX_TEXT < 2**16 < len(output.encode())
    api.http.post(
        "/v1/models",
        data={"architecture": "small_cnn", "input": INPUT, "output": output},
        files={"file": ("m.safetensors", b"of no matter: declared is what is looked at")},
    ).raise_for_status()

    changed = scoring.api.http.post(
        f"/v1/models/{scoring.model()}/smallest-change",
        data={"below": "0", "resize": "pad", "positive": [str(i) for i in range(1000)]},
        files={"image": ("a.png", png(noise(1)[0]))},
    )

    assert "/body/positive" in problem(changed, 422, "invalid_config")["detail"]
