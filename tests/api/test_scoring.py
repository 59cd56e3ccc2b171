"""Scores at once: a real API, a real scoring process, real files, and torch alone as the judge."""

import asyncio
import base64
import contextlib
import functools
import hashlib
import io
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from adap.api.routes.scoring import FEW_FIELDS
from adap.models import architectures, loading
from adap.models.header import Manifest
from adap.store import keys
from adap.store.artifacts import open_blobs
from adap.worker.scoring.link import open_stream
from tests.api.conftest import (
    CLASSIFIER,
    LIMIT_S,
    MANIFEST,
    WAITING,
    Scoring,
    Uint8,
    noise,
    png,
    running,
    wait_for,
)
from tests.standstill import suspend

Check = Callable[..., dict[str, Any]]


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def score(scoring: Scoring, model_id: str, *images: bytes, **data: Any) -> httpx.Response:
    files = [("images", (f"{i}.png", image)) for i, image in enumerate(images)]
    return scoring.api.http.post(f"/v1/models/{model_id}/scores", files=files, data=data)


def smallest(scoring: Scoring, model_id: str, image: bytes, below: float) -> httpx.Response:
    path = f"/v1/models/{model_id}/smallest-change"
    files = {"image": ("i.png", image)}
    return scoring.api.http.post(path, files=files, data={"below": str(below)})


def values(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return [item["score"] for item in answer.json()["scores"]]


# --- the smallest change --------------------------------------------------------------------------


def test_the_smallest_change_is_about_what_the_gradient_foretells(
    scoring: Scoring, problem: Check
) -> None:
    model_id = scoring.model()
    pixels = noise(1)[0]
    ask = functools.partial(smallest, scoring, model_id, png(pixels))
    x = torch.from_numpy(pixels.astype(np.float32) / 255)[None, None].requires_grad_()
    clean = scoring.networks[model_id]((x - 0.5) / 0.5)
    (gradient,) = torch.autograd.grad(clean.sum(), x)
    below = clean.item() - 0.001
    found = ask(below).json()
    assert found["score"] < below
    assert found["size"] == pytest.approx(0.001 / gradient.abs().sum().item(), rel=0.1)
    drawn = {}
    for name in ("original", "changed", "difference"):
        with Image.open(io.BytesIO(base64.b64decode(found[name]))) as picture:
            drawn[name] = np.array(picture).astype(float)
    assert (drawn["original"] == pixels).all()
    assert np.abs(drawn["changed"] - pixels).max() <= 255 * found["size"] + 0.5
    assert np.abs(drawn["difference"] - 127.5).max() == pytest.approx(127.5, abs=1)

    assert ask(clean.item() + 1).json()["size"] == 0
    assert ask(-1e6).json()["size"] is None
    problem(ask(float("nan")), 422, "invalid_request")


@pytest.mark.parametrize(
    ("layers", "weight", "scores"),
    [(["fc"], 3e38, torch.isinf), (["norm1", "norm2"], 1e30, torch.isnan)],
    ids=["infinity", "NaN"],
)
def test_a_search_of_a_model_without_finite_scores_is_refused(
    scoring: Scoring, problem: Check, layers: list[str], weight: float, scores: Any
) -> None:
    network = architectures.build("small_cnn", channels=1, seed=0).eval()
    with torch.no_grad():
        for layer in layers:
            network.get_parameter(f"{layer}.weight").fill_(weight)
        assert scores(network(torch.from_numpy(noise(1)[:, None] / 255).float())).all()
    path = scoring.api.folder / "not-finite.safetensors"
    loading.save(network, path, Manifest.model_validate(MANIFEST))
    broken = scoring.api.model(content_sha256=open_blobs(scoring.api.settings).put(path))
    problem(smallest(scoring, broken, png(noise(1)[0]), 0.0), 422, "invalid_model")


def test_an_answer_that_is_being_sent_comes_whole_though_it_is_taken_back(scoring: Scoring) -> None:
    manifest = {**MANIFEST, "input": {**MANIFEST["input"], "height": 512, "width": 512}}
    model_id = scoring.model(seed=13, manifest=manifest)
    blob = scoring.api.folder / "13.safetensors"
    url = str(scoring.api.settings.scoring_url)
    search = {
        "ask": "smallest",
        "tenant": "long",
        "model_id": model_id,
        "sha256": hashlib.sha256(blob.read_bytes()).hexdigest(),
        "positive": None,
        "spec": Manifest.model_validate(manifest).input.model_dump(),
        "form": "files",
        "data": [png(np.zeros((512, 512), np.uint8))],
        "below": 1e9,
    }

    async def unread_taken_back_and_read() -> list[dict[str, Any]]:
        line, other = await open_stream(url), await open_stream(url)
        try:
            await line.send({**search, "number": 1})
            for number in itertools.count():
                await other.send({"ask": "status", "number": number, "model_id": model_id})
                status = await other.read(max_bytes=2**20)
                if model_id in status["in_memory"] and status["waiting"] == 0:
                    break  # it is being sent: it is longer than all that lies in between
            await line.send({"ask": "cancel", "number": 1})
            await line.send({"ask": "status", "number": 2})
            async with asyncio.timeout(LIMIT_S):
                return [await line.read(max_bytes=2**26) for _ in range(2)]
        finally:
            line.close()
            other.close()

    found, status = asyncio.run(unread_taken_back_and_read())
    assert found["number"] == 1
    assert len(found["image"]) == len(found["changed"]) == 4 * 512 * 512
    assert status["number"] == 2


def test_while_a_search_goes_on_other_models_of_the_tenant_are_loaded(scoring: Scoring) -> None:
    searched, other = scoring.model(seed=11), scoring.model(seed=12)
    images = noise(1)
    values(score(scoring, searched, png(images[0])))
    process = scoring.network_processes()[-1]
    with ThreadPoolExecutor(1) as pool:
        suspend(process)
        asked = pool.submit(smallest, scoring, searched, png(images[0]), -1e6)
        wait_for(lambda: waiting(scoring) == 1, because="the search waits")
        found = values(score(scoring, other, png(images[0])))
        assert not asked.done()
        process.resume()
        assert asked.result().status_code == 200
    assert found == pytest.approx(scoring.expected(other, images / 255), abs=1e-5)


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [FEW_FIELDS - 1, FEW_FIELDS + 1, 100])
def test_images_of_a_form_keep_their_order_however_many_they_are(
    scoring: Scoring, count: int
) -> None:
    """Many are read in a thread, few in the loop; a large file is, too."""
    model, images = scoring.model(), noise(count)
    files = [png(image) for image in images]
    answer = score(scoring, model, *files)
    np.testing.assert_allclose(
        values(answer), scoring.expected(model, images / 255), rtol=1e-4, atol=1e-5
    )
    assert [one["file_name"] for one in answer.json()["scores"]] == [
        f"{i}.png" for i in range(count)
    ]


def as_form(images: Uint8) -> dict[str, Any]:
    files = [("images", (f"{i}.png", png(image))) for i, image in enumerate(images)]
    return {"files": files, "data": {"rank": "true"}}


def as_json(images: Uint8) -> dict[str, Any]:
    encoded = [base64.b64encode(png(image)).decode() for image in images]
    return {"json": {"images": encoded, "rank": True}}


def as_npz(array: NDArray[Any]) -> dict[str, Any]:
    content = {"content": npz(images=array), "params": {"rank": "true"}}
    return content | {"headers": {"content-type": "application/octet-stream"}}


@pytest.mark.parametrize(
    "body",
    [
        as_form,
        as_json,
        as_npz,
        lambda images: as_npz(images[:, None]),
        lambda images: as_npz(images[..., None]),
        lambda images: as_npz(images / 255),
        lambda images: as_npz((images / 255).astype(np.float32)),
    ],
    ids=["form", "json", "npz", "npz NCHW", "npz NHWC", "npz float64", "npz float32"],
)
def test_scores_are_those_of_each_image_alone_in_the_order_sent(
    scoring: Scoring, body: Callable[[Uint8], dict[str, Any]]
) -> None:
    model, images = scoring.model(), noise(70)  # more than a batch
    expected = scoring.expected(model, images / 255)
    answer = scoring.api.http.post(f"/v1/models/{model}/scores", **body(images))
    assert values(answer) == pytest.approx(expected, abs=1e-5)
    ranks = [item["rank"] for item in answer.json()["scores"]]
    assert np.argsort(ranks).tolist() == np.argsort(-np.array(expected)).tolist()
    names = [item["file_name"] for item in answer.json()["scores"]]
    assert names == ([f"{i}.png" for i in range(70)] if body is as_form else [None] * 70)


def test_floats_are_not_rounded_to_levels(scoring: Scoring) -> None:
    model, image = scoring.model(), np.full((1, 8, 8), 0.5004, np.float32)
    answer = scoring.api.http.post(f"/v1/models/{model}/scores", **as_npz(image))
    assert values(answer) == pytest.approx(scoring.expected(model, image), abs=1e-6)
    rounded = scoring.expected(model, np.rint(image * 255) / 255)
    assert values(answer) != pytest.approx(rounded, abs=1e-6)


def test_ranks_come_only_when_asked_for_and_equal_scores_keep_their_order(
    scoring: Scoring,
) -> None:
    model, (one, two) = scoring.model(), map(png, noise(2))
    plain = score(scoring, model, one, two, one).json()["scores"]
    assert [item["rank"] for item in plain] == [None] * 3
    ranked = [
        item["rank"] for item in score(scoring, model, one, two, one, rank="1").json()["scores"]
    ]
    assert ranked in ([1, 3, 2], [2, 1, 3])


def test_classes_may_be_named_in_each_kind_of_body(scoring: Scoring, problem: Check) -> None:
    model, images = scoring.model(manifest=CLASSIFIER), noise(3)
    with torch.no_grad():
        x = (torch.from_numpy(images)[:, None].float() / 255 - 0.5) / 0.5
        expected = torch.logit(scoring.networks[model](x).double().softmax(dim=1)[:, 1]).tolist()
    path = f"/v1/models/{model}/scores"
    form = score(scoring, model, *map(png, images), positive=["dog"])
    body = {"images": as_json(images)["json"]["images"], "positive": ["dog"]}
    named = [as_npz(images) | {"params": {"positive": text}} for text in ("dog", '["dog"]')]
    for answer in (
        form,
        scoring.api.http.post(path, json=body),
        *(scoring.api.http.post(path, **arrays) for arrays in named),
    ):
        assert values(answer) == pytest.approx(expected, abs=1e-5)
    problem(score(scoring, model, png(images[0])), 422, "invalid_config")
    query = scoring.api.http.post(path, json=body, params={"positive": "dog"})
    problem(query, 422, "invalid_request")


# --- batches and memory ---------------------------------------------------------------------------


def test_requests_of_the_same_moment_share_a_batch_and_change_no_score(scoring: Scoring) -> None:
    model, images = scoring.model(), noise(48, seed=1)
    expected = scoring.expected(model, images / 255)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda image: values(score(scoring, model, png(image))), images))
    assert [value for (value,) in answers] == pytest.approx(expected, abs=1e-5)
    assert np.argsort(answers, axis=0).ravel().tolist() == np.argsort(expected).tolist()
    status = scoring.status(model) or {}
    assert status["images"] == 48
    assert sum(status["batch_sizes"].values()) < 48, "no two of 48 requests shared a batch"


def test_the_model_that_was_used_least_recently_leaves_memory(scoring: Scoring) -> None:
    first, second, image = scoring.model(1), scoring.model(2), noise(1)
    values(score(scoring, scoring.model(3), png(image[0])))  # there is one to leave
    for model in (first, second, first):
        evicted = (scoring.status() or {})["evicted"]
        scored = values(score(scoring, model, png(image[0])))
        assert scored == pytest.approx(scoring.expected(model, image / 255), abs=1e-5)
        status = scoring.status() or {}
        assert status["in_memory"] == [model]
        assert status["evicted"] == evicted + 1


def test_a_removed_model_leaves_memory_and_scores_no_more(scoring: Scoring, problem: Check) -> None:
    model, image = scoring.model(), png(noise(1)[0])
    values(score(scoring, model, image))
    assert scoring.api.http.delete(f"/v1/models/{model}").status_code == 204
    wait_for(lambda: (scoring.status() or {})["in_memory"] == [], because="it is forgotten")
    problem(score(scoring, model, image), 404, "not_found")


def test_a_network_whose_file_is_lost_or_away_is_named_and_scores_once_it_is_back(
    scoring: Scoring, problem: Check
) -> None:
    image = png(noise(1)[0])
    blobs = scoring.api.settings.home / "blobs"

    lost = scoring.model(11)
    sha256 = scoring.api.http.get(f"/v1/models/{lost}").json()["sha256"]
    file = blobs / sha256[:2] / sha256
    file.rename(scoring.api.folder / "kept")
    refused = score(scoring, lost, image)
    assert sha256 in problem(refused, 503, "content_missing")["detail"]
    assert refused.headers["retry-after"] == "60"
    (scoring.api.folder / "kept").rename(file)
    assert len(values(score(scoring, lost, image))) == 1

    away = scoring.model(12)
    blobs.rename(blobs.with_name("away"))
    try:
        refused = score(scoring, away, image)
    finally:
        blobs.with_name("away").rename(blobs)
    problem(refused, 503, "storage_unavailable")
    assert refused.headers["retry-after"] == "5"
    assert len(values(score(scoring, away, image))) == 1


def test_another_tenants_model_is_not_there(scoring: Scoring, problem: Check) -> None:
    theirs = scoring.model(tenant="somebody-else")
    problem(score(scoring, theirs, png(noise(1)[0])), 404, "not_found")


def test_a_key_that_may_only_read_gets_no_scores(scoring: Scoring, problem: Check) -> None:
    model = scoring.model()
    with scoring.api.database.writing() as session:
        row, secret = keys.create(session, name="reader", tenant="local", scopes=["read"])
    try:
        answer = scoring.api.http.post(
            f"/v1/models/{model}/scores",
            **as_npz(noise(1)) | {"headers": {"authorization": f"Bearer {secret}"}},
        )
        problem(answer, 403, "forbidden")
    finally:
        with scoring.api.database.writing() as session:
            session.delete(session.merge(row))


# --- what cannot be scored ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"words", "b.png: expected a sound PNG, JPEG or WebP image"),
        (b"", "b.png: expected a sound PNG, JPEG or WebP image"),
        (png(noise(1)[0])[:60], "b.png: does not decode"),
        (
            png(np.zeros((9, 8), np.uint8)),
            "b.png: expected 8x8 pixels (width x height), as the model takes, got 8x9: ",
        ),
        (
            png(np.zeros((8, 7), np.uint8)),
            "b.png: expected 8x8 pixels (width x height), as the model takes, got 7x8: ",
        ),
        (png(np.zeros((8, 8, 3), np.uint8)), "b.png: expected a grey image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "b.png: expected a sound PNG"),
    ],
    ids=["words", "empty", "cut", "larger", "smaller", "colours", "eps"],
)
def test_an_image_that_cannot_be_scored_is_named_and_no_other(
    scoring: Scoring, problem: Check, image: bytes, sentence: str
) -> None:
    model, good = scoring.model(), png(noise(1)[0])
    files = [("images", ("a.png", good)), ("images", ("b.png", image))]
    answer = scoring.api.http.post(f"/v1/models/{model}/scores", files=files)
    body = problem(answer, 422, "invalid_data")
    assert sentence in body["detail"]
    assert [item["pointer"] for item in body["errors"]] == ["/body/images/1"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no zip", "expected a sound zip archive"),
        (npz(images=noise(2), labels=[0, 1]), "expected one array 'images' in the NPZ"),
        (npz(pictures=noise(2)), "expected one array 'images' in the NPZ"),
        (npz(images=np.full((2, 8, 8), np.nan)), "expected floats in [0, 1], got NaN or infinity"),
        (npz(images=noise(2) / 200), "expected floats in [0, 1], got values from"),
        (npz(images=noise(2).astype(np.int64)), "expected uint8, or float in [0, 1], got int64"),
        (npz(images=np.zeros((2, 8, 9), np.uint8)), "expected (N, 1, 8, 8), (N, 8, 8, 1) or"),
        (npz(images=np.zeros((0, 8, 8), np.uint8)), "expected 1 to 1000 images"),
        (npz(images=np.zeros((1001, 8, 8), np.uint8)), "expected 1 to 1000 images"),
        (npz(images=np.array([{"a": 1}], object)), "which are a pickle and are never opened"),
    ],
    ids=[
        *("no zip", "labels", "other name", "NaN", "above 1", "integers", "size", "none"),
        *("too many", "pickle"),
    ],
)
def test_an_npz_that_cannot_be_scored_is_refused_with_the_reason(
    scoring: Scoring, problem: Check, content: bytes, sentence: str
) -> None:
    answer = scoring.api.http.post(
        f"/v1/models/{scoring.model()}/scores",
        content=content,
        headers={"content-type": "application/octet-stream"},
    )
    assert sentence in problem(answer, 422, "invalid_data")["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"images": ["@@@@"]}, "/body/images/0"),
        ({"images": ["é"]}, "/body/images/0"),
        ({"images": []}, "/body/images"),
        ({"images": ["AAAA"] * 1001}, "/body/images"),
        ({"images": ["AAAA"], "rank": "yes"}, "/body/rank"),
        ({"images": ["AAAA"], "url": "http://example.org/a.png"}, "/body/url"),
        ([], "/body"),
    ],
)
def test_a_json_body_that_is_not_as_described_is_refused_where_it_is_wrong(
    scoring: Scoring, problem: Check, body: Any, pointer: str
) -> None:
    answer = scoring.api.http.post(f"/v1/models/{scoring.model()}/scores", json=body)
    assert problem(answer, 422, "invalid_request")["errors"][0]["pointer"] == pointer


def test_forms_types_and_sizes_that_are_not_taken_are_refused(
    scoring: Scoring, problem: Check
) -> None:
    model, image = scoring.model(), png(noise(1)[0])
    path = f"/v1/models/{model}/scores"
    post = scoring.api.http.post
    problem(post(path, content=b"x"), 415, "unsupported_media_type")
    problem(post(path, files={"photos": image}), 422, "invalid_request")
    problem(post(path, data={"images": "text"}, files={"x": b""}), 422, "invalid_request")
    problem(post(path, files=[("images", image)] * 1001), 422, "invalid_request")
    problem(post(path, files=[("images", bytes(500_000))]), 413, "too_large")
    headers = {"content-type": "application/json"}
    problem(post(path, content=b"{" * 1000, headers=headers), 422, "invalid_request")


def test_a_model_whose_logits_overflow_is_refused_and_takes_no_other_request_along(
    scoring: Scoring, problem: Check
) -> None:
    network = architectures.build("small_cnn", channels=1, seed=0).eval()
    with torch.no_grad():
        next(module for module in network if isinstance(module, torch.nn.Linear)).weight.fill_(3e38)
    path = scoring.api.folder / "overflow.safetensors"
    loading.save(network, path, Manifest.model_validate(MANIFEST))
    broken = scoring.api.model(content_sha256=open_blobs(scoring.api.settings).put(path))
    good, image = scoring.model(), png(noise(1)[0])
    with ThreadPoolExecutor(2) as pool:
        failing, fine = (pool.submit(score, scoring, model, image) for model in (broken, good))
        problem(failing.result(), 422, "invalid_model")
        assert len(values(fine.result())) == 1


# --- crashes and load -----------------------------------------------------------------------------


@contextlib.contextmanager
def held(scoring: Scoring, model: str) -> Iterator[list[psutil.Process]]:
    """The decoders stand still meanwhile, and so does what is asked."""
    values(score(scoring, model, png(noise(1)[0])))  # whose decoder lives, from here on
    decoders = scoring.decoders()
    with contextlib.ExitStack() as stack:
        for decoder in decoders:
            stack.callback(resume, decoder)
        suspend(*decoders)
        yield decoders


def resume(decoder: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        decoder.resume()


def kill(decoders: list[psutil.Process]) -> None:
    for decoder in decoders:
        with contextlib.suppress(psutil.NoSuchProcess):
            decoder.kill()


def waiting(scoring: Scoring) -> int | None:
    return (scoring.status() or {}).get("waiting")


def test_a_file_that_ends_the_decoder_fails_its_own_request_only(
    scoring: Scoring, problem: Check
) -> None:
    model, images = scoring.model(), noise(2)
    expected = scoring.expected(model, images / 255)

    def killed_whenever_it_lives() -> httpx.Response:  # as by a file that no parser survives
        with ThreadPoolExecutor(1) as pool, held(scoring, model):
            asked = pool.submit(score, scoring, model, png(images[0]))
            wait_for(lambda: waiting(scoring) == 1, because="it waits")
            while not asked.done():
                kill(scoring.decoders())
        return asked.result()

    for _ in range(10):
        answer = killed_whenever_it_lives()
        if answer.status_code != 200:  # else the second decoder was quicker than its killer
            break
    body = problem(answer, 422, "invalid_data")
    assert "expected images that decode, got the decoder's end" in body["detail"]
    assert values(score(scoring, model, *map(png, images))) == pytest.approx(expected, abs=1e-5)
    assert scoring.process.poll() is None


def test_a_decoder_that_is_killed_once_costs_nobody_the_scores(scoring: Scoring) -> None:
    model, images = scoring.model(), noise(3)
    with ThreadPoolExecutor(3) as pool, held(scoring, model) as decoders:
        asked = [pool.submit(score, scoring, model, png(image)) for image in images]
        wait_for(lambda: waiting(scoring) == 3, because="all three wait")
        kill(decoders)
        scored = [values(future.result())[0] for future in asked]
    assert scored == pytest.approx(scoring.expected(model, images / 255), abs=1e-5)


def test_after_the_scoring_process_was_killed_waiting_requests_fail_and_new_ones_succeed(
    scoring: Scoring, problem: Check
) -> None:
    model, image = scoring.model(), png(noise(1)[0])
    with ThreadPoolExecutor(2) as pool, held(scoring, model):
        asked = [pool.submit(score, scoring, model, image) for _ in range(2)]
        wait_for(lambda: waiting(scoring) == 2, because="both wait")
        started = psutil.Process(scoring.process.pid).children(recursive=True)
        scoring.process.kill()
        scoring.process.wait()
        for future in asked:
            answer = future.result()
            problem(answer, 503, "scoring_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        wait_for(
            lambda: not any(process.is_running() for process in started),
            because="decoders, and processes of models, end with their parent",
        )
    problem(score(scoring, model, image), 503, "scoring_unavailable")
    assert scoring.api.http.get("/readyz").json()["scoring"] == "unreachable"
    scoring.start()
    assert values(score(scoring, model, image)) == pytest.approx(
        scoring.expected(model, noise(1) / 255), abs=1e-5
    )
    wait_for(  # it counts as unreachable if its status takes longer than the API waits for it
        lambda: scoring.api.http.get("/readyz").json()["scoring"] == "ok", because="it is reached"
    )


def test_what_waits_too_long_or_is_too_much_is_refused_and_the_rest_is_scored(
    scoring: Scoring, problem: Check
) -> None:
    model, image = scoring.model(), png(noise(1)[0])
    hasty = scoring.api.settings.model_copy(update={"scoring_limit_s": 1.0})
    with running(hasty) as url, ThreadPoolExecutor(1) as pool, held(scoring, model):
        waits = pool.submit(score, scoring, model, *[image] * 100)
        wait_for(lambda: waiting(scoring) == 100, because="it waits")
        answer = score(scoring, model, *[image] * 51)
        problem(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) > 0
        late = httpx.post(
            f"{url}/v1/models/{model}/scores", files={"images": ("0.png", image)}, timeout=90
        )
        problem(late, 504, "timed_out")
        wait_for(lambda: waiting(scoring) == 100, because="it is taken back")
        assert not waits.done()
    assert len(values(waits.result())) == 100


def test_the_work_of_a_client_that_leaves_is_taken_back(scoring: Scoring) -> None:
    model = scoring.model()
    request = scoring.api.http.build_request(
        "POST", f"/v1/models/{model}/scores", files=[("images", png(noise(1)[0]))]
    )
    content = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with held(scoring, model):
        address = (request.url.host, request.url.port or 0)
        with socket.create_connection(address) as client:
            client.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + content)
            wait_for(lambda: waiting(scoring) == 1, because="it waits")
        wait_for(lambda: waiting(scoring) == 0, because="it is taken back", timeout_s=LIMIT_S / 2)


def test_health_answers_at_once_while_scoring_is_saturated(scoring: Scoring) -> None:
    model = scoring.model()
    body = as_npz(noise(WAITING // 5))
    stop = threading.Event()

    def ask() -> int:
        count = 0
        with httpx.Client(base_url=scoring.api.http.base_url, timeout=30) as http:
            while not stop.is_set():
                count += http.post(f"/v1/models/{model}/scores", **body).status_code == 200
        return count

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        try:
            wait_for(lambda: (waiting(scoring) or 0) >= 60, because="it is saturated")
            times = []
            for _ in range(50):
                started = time.perf_counter()
                assert scoring.api.http.get("/livez").status_code == 200
                times.append(time.perf_counter() - started)
        finally:
            stop.set()
        assert sum(future.result() for future in asked) > 0
    # milliseconds on a quiet machine; the test shares two cores with the load and other tests
    assert sorted(times)[25] < 0.1


def test_health_answers_while_nothing_is_scored(scoring: Scoring, problem: Check) -> None:
    model, image = scoring.model(), png(noise(1)[0])
    with ThreadPoolExecutor(4) as pool, held(scoring, model):
        asked = [pool.submit(score, scoring, model, *[image] * (WAITING // 4)) for _ in range(4)]
        wait_for(lambda: waiting(scoring) == 4 * (WAITING // 4), because="it is saturated")
        for _ in range(50):
            assert scoring.api.http.get("/livez").status_code == 200
        problem(score(scoring, model, *[image] * 4), 503, "overloaded")
        assert not any(future.done() for future in asked)
    for future in asked:
        assert len(values(future.result())) == WAITING // 4


def test_it_ends_when_told_to_after_it_has_answered(scoring: Scoring) -> None:
    model, image = scoring.model(), png(noise(1)[0])
    process = psutil.Process(scoring.process.pid)
    with ThreadPoolExecutor(1) as pool:
        with held(scoring, model):
            asked = pool.submit(score, scoring, model, image)
            wait_for(lambda: waiting(scoring) == 1, because="it waits")
            suspend(process)  # so that it is told before it hears of the decoder
            process.terminate()
        process.resume()
        assert len(values(asked.result())) == 1
    assert scoring.process.wait(20) == 0
    scoring.start()


def test_the_web_process_holds_no_torch_and_no_imaging(tmp_path: Path) -> None:
    code = "import api.main, sys; print(*sorted({'torch', 'PIL', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() in ([], ["numpy"])
