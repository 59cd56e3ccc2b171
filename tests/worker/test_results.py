"""What a child answers is read as one of the results, or not at all."""

import json

import pytest
from pydantic import ValidationError

from adap.worker.pipelines.results import RESULTS, DeviceTried, PieceMeasured, Rejected


def test_reasons_that_quote_names_which_are_no_text_cross_the_pipe() -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    result = Rejected(reasons=[f"no image: {name}", "a word"])
    assert result.reasons == ["no image: caf\\udce9.png", "a word"]
    answer = json.dumps(result.model_dump(mode="json")).encode()
    assert RESULTS.validate_python(json.loads(answer)) == result


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"result": "nothing"},
        {"result": "rejected"},
        {"result": "piece", "files": {"clean": 3}},
        {"result": "piece", "files": {}, "more": 1},
        {"result": "device", "works": None},
        {"result": "dataset", "summary": {"examples": 3}},
    ],
)
def test_an_answer_that_is_no_result_is_refused(answer: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RESULTS.validate_python(answer)


def test_a_result_is_frozen_and_says_by_itself_what_it_is() -> None:
    result = RESULTS.validate_python({"result": "piece", "files": {"checks": "checks.json"}})
    assert result == PieceMeasured(files={"checks": "checks.json"})
    with pytest.raises(ValidationError, match="frozen"):
        result.files = {}
    assert DeviceTried(works=True).model_dump()["result"] == "device"
