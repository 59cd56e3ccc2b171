"""The Open Inference Protocol, judged by a client that is not ours: Triton's."""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.http import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
)
from tritonclient.utils import InferenceServerException

from tests.api.conftest import CLASSIFIER, Api, Scoring, noise, png, wait_for

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def triton(scoring: Scoring) -> Iterator[InferenceServerClient]:
    url = scoring.api.http.base_url
    with InferenceServerClient(f"{url.host}:{url.port}", network_timeout=30) as client:
        yield client


def tensor(values: Any, datatype: str, *, binary: bool = True) -> InferInput:
    made = InferInput("images", list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def infer(client: InferenceServerClient, model: str, given: InferInput, **options: Any) -> Any:
    return client.infer(model, [given], **options).as_numpy("scores")


def test_the_server_and_a_model_describe_themselves(
    scoring: Scoring,
    triton: InferenceServerClient,
) -> None:
    model = scoring.model()
    assert triton.is_server_live()
    wait_for(triton.is_server_ready, because="the scoring process answers soon enough")
    assert triton.is_model_ready(model)
    assert not triton.is_model_ready("mdl_" + "0" * 26)
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata(model) == {
        "name": model,
        "versions": ["1"],
        "platform": "adap",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "scores", "datatype": "FP64", "shape": [-1]}],
    }


@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_tensors_are_scored_as_images_alone_are(
    scoring: Scoring,
    triton: InferenceServerClient,
    datatype: str,
    binary_input: bool,
    binary_output: bool,
) -> None:
    model, images = scoring.model(), noise(5)
    x = images[:, None] if datatype == "UINT8" else (images[:, None] / 255).astype(np.float32)
    got = infer(
        triton,
        model,
        tensor(x, datatype, binary=binary_input),
        outputs=[InferRequestedOutput("scores", binary_data=binary_output)],
    )
    assert got.dtype == np.float64
    assert got == pytest.approx(scoring.expected(model, images / 255), abs=1e-5)


def test_without_a_word_on_outputs_the_client_gets_what_it_reads(
    scoring: Scoring,
    triton: InferenceServerClient,
) -> None:
    model, images = scoring.model(), noise(3)
    result = triton.infer(model, [tensor(images[:, None], "UINT8")], request_id="mine")
    assert result.get_response()["id"] == "mine"
    assert result.as_numpy("scores") == pytest.approx(
        scoring.expected(model, images / 255), abs=1e-5
    )


def test_files_are_scored_as_bytes(scoring: Scoring, triton: InferenceServerClient) -> None:
    model, images = scoring.model(), noise(4)
    expected = pytest.approx(scoring.expected(model, images / 255), abs=1e-5)
    files = np.array([png(image) for image in images], object)
    assert infer(triton, model, tensor(files, "BYTES")) == expected
    encoded = np.array([base64.b64encode(file).decode() for file in files], object)
    assert infer(triton, model, tensor(encoded, "BYTES", binary=False)) == expected


def test_a_class_is_named_by_a_parameter(scoring: Scoring, triton: InferenceServerClient) -> None:
    model, images = scoring.model(manifest=CLASSIFIER), noise(2)
    given = tensor(images[:, None], "UINT8")
    by_text = infer(triton, model, given, parameters={"positive": "dog"})
    answer = scoring.api.http.post(
        f"/v1/models/{model}/scores",
        files=[("images", png(image)) for image in images],
        data={"positive": ["dog"]},
    )
    own = [item["score"] for item in answer.json()["scores"]]
    assert by_text == pytest.approx(own, abs=1e-5)
    with pytest.raises(InferenceServerException, match="a logit for each of cat, dog, other"):
        infer(triton, model, given)


def test_statistics_count_images_and_passes(
    scoring: Scoring,
    triton: InferenceServerClient,
) -> None:
    model = scoring.model()
    for count in (3, 3, 5):
        infer(triton, model, tensor(noise(count)[:, None], "UINT8"))
    (found,) = triton.get_inference_statistics(model)["model_stats"]
    assert (found["inference_count"], found["execution_count"]) == (11, 3)
    assert [(b["batch_size"], b["compute_infer"]["count"]) for b in found["batch_stats"]] == [
        (3, 2),
        (5, 1),
    ]


@pytest.mark.parametrize(
    ("values", "datatype", "sentence"),
    [
        (np.full((1, 1, 8, 8), np.nan, np.float32), "FP32", "values from nan"),
        (np.full((1, 1, 8, 8), 2, np.float32), "FP32", "values from 2 to 2"),
        (np.zeros((1, 1, 8, 9), np.uint8), "UINT8", r"expected the shape \[-1, 1, 8, 8\]"),
        (np.zeros((1, 8, 8), np.uint8), "UINT8", r"expected \(N, C, H, W\)"),
        (np.zeros((1, 1, 8, 8), np.int64), "INT64", "datatype"),
        (np.array([b"words"], object), "BYTES", "expected a sound PNG"),
    ],
    ids=["NaN", "above 1", "size", "dimensions", "datatype", "no image"],
)
def test_a_tensor_that_cannot_be_scored_is_refused_in_the_clients_own_words(
    scoring: Scoring,
    triton: InferenceServerClient,
    values: Any,
    datatype: str,
    sentence: str,
) -> None:
    with pytest.raises(InferenceServerException, match=sentence):
        infer(triton, scoring.model(), tensor(values, datatype))


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"Inference-Header-Content-Length": "999999"}, b"{}"),
        ({}, b"not JSON"),
        ({}, b'{"inputs": []}'),
        ({}, b'{"inputs": [{"name": "images", "shape": [1], "datatype": "FP32"}]}'),
        ({}, b'{"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [3]}]}'),
        (
            {},
            b'{"inputs": [{"name": "images", "shape": [1, 1, 8, 8], "datatype": "UINT8", '
            b'"data": [256]}]}',
        ),
    ],
)
def test_a_body_that_is_no_inference_request_is_a_problem(
    scoring: Scoring,
    problem: Check,
    headers: dict[str, str],
    content: bytes,
) -> None:
    path = f"/v2/models/{scoring.model()}/infer"
    body = problem(
        scoring.api.http.post(path, content=content, headers=headers), 422, "invalid_request"
    )
    assert body["error"] == body["detail"]


def test_it_is_not_ready_without_a_scoring_process(api: Api, problem: Check) -> None:
    assert api.http.get("/v2/health/live").json() == {"live": True}
    problem(api.http.get("/v2/health/ready"), 503, "scoring_unavailable")
    problem(api.http.get(f"/v2/models/{api.model()}/stats"), 503, "scoring_unavailable")
