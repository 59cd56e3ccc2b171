"""Long texts of JSON, read a piece at a time; the judges are json and base64 of the library."""

import base64
import json
import random
from typing import Any

import pytest

from adap.api.errors import ApiError
from adap.api.long_texts import LONG_BYTES, MAX_TEXTS, PIECE_BYTES, LongTexts
from adap.api.routes.inference import MAX_NUMBERS, _read
from adap.api.routes.scoring import _from_json
from tests.api.conftest import Scoring, noise, png

DRAW = random.Random(3)
CONTENTS = {
    "short": b"abc",
    "nothing": b"",
    "just cut out": DRAW.randbytes(LONG_BYTES),
    "a piece": DRAW.randbytes(PIECE_BYTES // 4 * 3),
    "more than a piece": DRAW.randbytes(PIECE_BYTES + 1),
    "slashes": b"\xff" * 9000,
}


@pytest.mark.parametrize(
    "written_as",
    [
        {},
        {"/": r"\/"},
        {"/": r"\u002F", "+": r"\u002b", "=": r"\u003D"},
        {letter: f"\\u{ord(letter):04x}" for letter in "abcdefghijk"},
    ],
    ids=["as it is", "slashes", "as .NET", "letters"],
)
def test_every_text_decodes_to_what_the_library_decodes_it_to(written_as: dict[str, str]) -> None:
    written = [base64.b64encode(content).decode() for content in CONTENTS.values()]
    escaped = [text.translate(str.maketrans(written_as)) for text in written]
    listed = ", ".join(f'"{text}"' for text in escaped)
    body = f'{{"images": [{listed}], ' + r'"a \"name\" with \\": ["\\", "\\\"", "ü"]}'
    assert json.loads(body)["images"] == written

    texts = LongTexts(body.encode())

    read = json.loads(texts.rest)
    assert len(texts.rest) < 5000
    assert [texts.decode(text) for text in read.pop("images")] == list(CONTENTS.values())
    assert read == {'a "name" with \\': ["\\", '\\"', "ü"]}


@pytest.mark.parametrize(
    "text",
    [
        "A" * 4000 + "=AAA",
        "A" * (PIECE_BYTES - 1) + "=" + "A" * 8,
        "A" * 4000 + "*",
        "A" * 4000 + r"\n",
        "A" * 4000 + r"\\u002B" + "A" * 3,
        "A" * (PIECE_BYTES - 1) + r"\\" + "A" * 4000,
        "A" * 4001,
        "Ä" * 4000,
    ],
)
def test_a_long_text_that_is_no_base64_is_none(text: str) -> None:
    texts = LongTexts(f'["{text}"]'.encode())
    with pytest.raises(ValueError, match=r"."):
        base64.b64decode(json.loads(f'["{text}"]')[0], validate=True)
    with pytest.raises(ValueError, match=r"."):
        texts.decode(json.loads(texts.rest)[0])


C, D = "c" * 3000, "d" * (LONG_BYTES + 4)


@pytest.mark.parametrize(
    "body",
    [
        {"images": C, "other": [C, {"images": [C]}], D: {C: D, "data": [D]}},
        {"inputs": {"images": [C]}, "resize": "é\n\\" * 2000},
        [{"other": [C]}, "images"],
        C,
    ],
)
def test_long_texts_that_are_no_images_are_read_as_by_the_library(body: Any) -> None:
    texts = LongTexts(json.dumps(body).encode())
    read = json.loads(texts.rest)
    assert read != body
    assert texts.put_back(read, images=("images",)) == body


def test_images_stay_cut_out_at_their_place_alone() -> None:
    body = {"inputs": [{"data": [[C], D], "name": C}], "data": [C]}
    texts = LongTexts(json.dumps(body).encode())

    read = texts.put_back(json.loads(texts.rest), images=("inputs", "data"))

    (first,), second = read["inputs"][0].pop("data")
    assert texts.decode(first) == base64.b64decode(C)
    assert texts.decode(second) == base64.b64decode(D)
    assert read == {"inputs": [{"name": C}], "data": [C]}


def test_a_text_of_no_image_that_is_very_long_or_no_text_is_refused_where_it_stands() -> None:
    for text, expected in (("c" * 70_000, "at most 65536 bytes"), ("c" * 3000 + r"\x", "JSON")):
        texts = LongTexts(b'{"a": [{"b": "%b"}]}' % text.encode())
        with pytest.raises(ApiError, match=f"/body/a/0/b: expected .*{expected}"):
            texts.put_back(json.loads(texts.rest), images=("images",))


@pytest.mark.parametrize(
    "body",
    [b'["' + b"A" * 9000, b'["' + b"A" * 9000 + b'\\"]', b'"' * 7, b"", b"\\" * 10_000 + b'"'],
)
def test_what_is_no_json_stays_none(body: bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(LongTexts(body).rest)


def test_very_many_texts_and_much_beside_them_are_refused() -> None:
    with pytest.raises(ApiError, match=f"at most {MAX_TEXTS} texts"):
        LongTexts(b"[" + b'"",' * (MAX_TEXTS + 1) + b'""]')
    with pytest.raises(ApiError, match="beside the long texts"):
        LongTexts(b"[" + b" " * 2**24 + b"]")


def test_images_in_json_score_as_their_files_do(scoring: Scoring) -> None:
    http, model_id, files = scoring.api.http, scoring.model(), [png(image) for image in noise(2)]
    padded = files[0] + b"\0" * LONG_BYTES  # what follows the end of a PNG is not read
    encoded = [base64.b64encode(file).decode() for file in (padded, files[1])]
    path = f"/v1/models/{model_id}/scores"

    as_json: dict[str, Any] = http.post(path, json={"images": encoded}).raise_for_status().json()
    as_files = http.post(path, files=[("images", ("a.png", file)) for file in files])
    as_tensor = http.post(
        f"/v2/models/{model_id}/infer",
        json={"inputs": [{"name": "images", "datatype": "BYTES", "shape": [2], "data": encoded}]},
    )

    expected = [each["score"] for each in as_files.raise_for_status().json()["scores"]]
    assert [each["score"] for each in as_json["scores"]] == pytest.approx(expected, abs=1e-5)
    answered = as_tensor.raise_for_status().json()["outputs"][0]["data"]
    assert answered == pytest.approx(expected, abs=1e-5)


def test_limits_of_length_hold_for_long_texts_and_are_told_of_them() -> None:
    image = {"name": "images", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}
    for body, expected in (
        ({"images": ["AAAA"], "positive": [C]}, "/body/positive/0: expected at most 500"),
        ({"images": ["AAAA"], "resize": "z" * 5000}, "got 'zzzz"),
        ({"images": C}, "got 'cccc"),
        ({"images": ["AAAA"], "x" * 5000: 1}, "/body/xxxx"),
    ):
        with pytest.raises(ApiError, match=expected):
            _from_json(json.dumps(body).encode())
    for request, expected in (
        ({"inputs": [image], "id": "i" * 5000}, "/body/id: expected at most 200"),
        ({"inputs": [{**image, "name": "n" * 5000}]}, "got 'nnnn"),
    ):
        with pytest.raises(ApiError, match=expected):
            _read(json.dumps(request).encode(), None)


def test_very_many_numbers_in_json_are_refused_with_the_way() -> None:
    head = b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1], "data": ['
    with pytest.raises(ApiError, match="binary_data_size"):
        _read(head + b"0," * MAX_NUMBERS + b"0,0]}]}", None)
