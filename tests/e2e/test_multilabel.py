"""Images with several labels, of several sizes, through the public API of a real service."""

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from sklearn.metrics import average_precision_score

from adap.models import architectures
from tests.e2e.test_audit import add_dataset, audit, finished, report_of, train
from tests.worker.archives import encode, metadata

CLASSES = ["bright", "left", "right"]
RULE = {"height": 8, "width": 8, "fit": "stretch"}


@pytest.fixture(scope="module")
def http(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=120) as client:
        yield client


def scenes(count: int = 80) -> tuple[bytes, NDArray[np.uint8], NDArray[np.float32]]:
    """Grey images of two sizes, any of three labels each: a zip, (N, K), pixels (N, 1, 8, 8)."""
    random = np.random.default_rng(5)
    matrix = random.integers(0, 2, (count, 3), np.uint8)
    buffer, rows, pixels = BytesIO(), [], []
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, (bright, left, right) in enumerate(matrix):
            side = 8 if i % 2 else 16
            image = random.integers(0, 60, (side, side)) + 60 * int(bright)
            image[:, : side // 4] += 90 * int(left)
            image[:, -side // 4 :] += 90 * int(right)
            made = Image.fromarray(image.astype(np.uint8))
            name = f"{i:03d}.png"
            archive.writestr(name, encode(made))
            pixels.append(np.asarray(made.resize((8, 8), Image.Resampling.BILINEAR)))
            names = "|".join(c for c, has in zip(CLASSES, matrix[i], strict=True) if has)
            split = "test" if i % 4 == 0 else "train"
            rows.append({"file_name": name, "labels": names, "split": split})
        archive.writestr("metadata.csv", metadata(rows))
    return buffer.getvalue(), matrix, np.stack(pixels)[:, None].astype(np.float32) / 255


def test_sizes_without_a_rule_are_refused_with_the_option(http: httpx.Client) -> None:
    content, _, _ = scenes()
    added = http.post("/v1/datasets", files={"file": ("scenes.zip", content)}).json()
    http.get(f"/v1/jobs/{added['job_id']}", headers={"Prefer": "wait=30"})
    while (row := http.get(f"/v1/datasets/{added['id']}").json())["status"] == "validating":
        pass
    assert row["status"] == "rejected"
    assert "declare how with `resize`" in row["reasons"][-1]


def test_each_of_several_labels_is_audited_and_trained_for(http: httpx.Client) -> None:
    content, matrix, pixels = scenes()
    added = http.post(
        "/v1/datasets",
        files={"file": ("scenes.zip", content)},
        data={"resize": json.dumps(RULE)},
    ).json()
    finished(http, added["job_id"])
    dataset = added["id"]
    summary = http.get(f"/v1/datasets/{dataset}").json()["summary"]
    assert (summary["multilabel"], summary["resize"]) == (True, RULE)
    assert summary["sizes"] == {"16x16": 40, "8x8": 40}
    assert summary["classes"] == dict(zip(CLASSES, matrix.sum(axis=0).tolist(), strict=True))
    assert summary["prevalence"] == pytest.approx(
        dict(zip(CLASSES, matrix.mean(axis=0).tolist(), strict=True))
    )
    assert summary["split_examples"] == {"train": 60, "test": 20}

    network = architectures.build("small_cnn", channels=1, seed=3, outputs=3).eval()
    model = http.post(
        "/v1/models",
        files={"file": ("k.safetensors", save(network.state_dict()))},
        data={
            "architecture": "small_cnn",
            "input": '{"channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.3]}',
            "output": json.dumps({"kind": "multilabel", "classes": CLASSES}),
        },
    ).json()
    finished(http, model["job_id"])
    report = report_of(http, audit(http, model["id"], dataset))
    with torch.no_grad():
        logits = network((torch.tensor(pixels) - 0.3) / 0.3).double().numpy()
    test = np.arange(80) % 4 == 0
    assert [task["positive"] for task in report["tasks"]] == [[name] for name in CLASSES]
    for k, task in enumerate(report["tasks"]):
        judged = average_precision_score(matrix[test, k], logits[test, k])
        assert task["clean"]["ap"] == pytest.approx(judged, abs=1e-6)

    trained = train(http, dataset, "ce", task={"positive": ["left", "right"]}, epochs=6)
    ranking = http.post("/v1/rankings", json={"model_id": trained, "dataset_id": dataset}).json()
    finished(http, ranking["id"])
    rows: list[dict[str, Any]] = http.get(f"/v1/rankings/{ranking['id']}").json()["data"]
    assert len(rows) == 20
    for row in rows:
        labels = matrix[int(row["example_id"].removesuffix(".png"))]
        assert row["label"] == "|".join(c for c, has in zip(CLASSES, labels, strict=True) if has)
        assert row["positive"] == bool(labels[1:].any())
    report = report_of(http, audit(http, trained, dataset))
    judged = average_precision_score([row["positive"] for row in rows], [r["score"] for r in rows])
    assert report["tasks"][0]["clean"]["ap"] == pytest.approx(judged)


def test_a_network_is_trained_on_every_label_at_once(http: httpx.Client) -> None:
    content, _, _ = scenes()
    form = {"resize": json.dumps(RULE)}
    added = http.post("/v1/datasets", files={"file": ("s.zip", content)}, data=form).json()
    finished(http, added["job_id"])
    model = train(http, added["id"], "ce", task={"each": True}, epochs=1)
    output = http.get(f"/v1/models/{model}").json()["manifest"]["output"]
    assert (output["kind"], output["classes"]) == ("multilabel", CLASSES)
    report = report_of(http, audit(http, model, added["id"]))
    assert [task["positive"] for task in report["tasks"]] == [[name] for name in CLASSES]


def test_parquet_is_a_data_set_too(http: httpx.Client) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, matrix, pixels = scenes()
    files = [encode((image[0] * 255).astype(np.uint8)) for image in pixels]
    names = ["bright" if bright else "dark" for bright in matrix[:, 0]]
    buffer = BytesIO()
    pq.write_table(pa.table({"image": files, "label": names}), buffer, row_group_size=7)
    dataset = add_dataset(http, "scenes.parquet", buffer.getvalue())
    counts = http.get(f"/v1/datasets/{dataset}").json()["summary"]["classes"]
    assert counts == {"bright": names.count("bright"), "dark": names.count("dark")}
