"""The whole journey on photographs: CIFAR-10 images through the API of a running service."""

import io
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors
from sklearn.metrics import average_precision_score

pytestmark = pytest.mark.slow

TRAIN_PER_CLASS, TEST_PER_CLASS = 64, 16  # 800 images of ten classes
EXAMPLES = 10 * (TRAIN_PER_CLASS + TEST_PER_CLASS)


@pytest.fixture(scope="module")
def archive(shared: Path) -> bytes:
    """A zip of class folders below train/ and test/, as somebody would send it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for part, count, split in (
            ("cifar10-train.zip", TRAIN_PER_CLASS, "train"),
            ("cifar10-test.zip", TEST_PER_CLASS, "test"),
        ):
            with zipfile.ZipFile(shared / "data" / part) as source:
                taken: dict[str, int] = {}
                for name in source.namelist():
                    folder = name.split("/")[0]
                    if name.endswith(".jpg") and taken.get(folder, 0) < count:
                        taken[folder] = taken.get(folder, 0) + 1
                        made.writestr(f"{split}/{name}", source.read(name))
    return buffer.getvalue()


def finished(http: httpx.Client, job_id: str) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=30"}).json()
        if job["done"]:
            assert job["status"] == "succeeded", job["error"]
            return job


def test_upload_train_audit_report_and_rank(service: str, archive: bytes) -> None:
    with httpx.Client(base_url=service, timeout=120) as http:
        dataset = http.post("/v1/datasets", files={"file": ("photos.zip", archive)}).json()
        finished(http, dataset["job_id"])
        dataset = http.get(f"/v1/datasets/{dataset['id']}").json()
        assert dataset["summary"]["examples"] == EXAMPLES
        assert dataset["summary"]["splits"]["test"]["truck"] == TEST_PER_CLASS

        request = {
            "dataset_id": dataset["id"],
            "task": {"positive": ["truck"]},
            "method": "adap_lpn",
            "epochs": 3,
            "attack": {"steps": 3, "step_size": 0.015},
        }
        trained = finished(http, http.post("/v1/training-jobs", json=request).json()["id"])
        model_id = trained["result"]["model_id"]
        epochs = [
            event["data"]
            for event in http.get(f"/v1/jobs/{trained['id']}/events").json()["data"]
            if event["type"] == "epoch"
        ]
        assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]

        request = {
            "dataset_id": dataset["id"],
            "model_id": model_id,
            "attacks": ["pgd", {"name": "apgd", "steps": 10}],
        }
        audit = finished(http, http.post("/v1/audits", json=request).json()["id"])
        report = http.get(audit["links"]["report"]).json()
        (task,) = report["tasks"]
        assert (task["examples"], task["positives"]) == (10 * TEST_PER_CLASS, TEST_PER_CLASS)
        assert task["prevalence"] == pytest.approx(0.1)
        lowest = min(figure["ap"] for figure in task["attacks"].values())
        assert task["floor"] <= task["worst_case"]["ap"] <= lowest < task["clean"]["ap"]
        assert report["provenance"]["dataset"]["sha256"] == dataset["sha256"]
        found = {check["name"]: check["status"] for check in report["trust"]["checks"]}
        assert "fail" not in found.values(), "an honest network on photographs fails no check"
        page = http.get(audit["links"]["report"], headers={"Accept": "text/html"}).text
        assert "truck" in page

        request = {"dataset_id": dataset["id"], "model_id": model_id}
        ranking = finished(http, http.post("/v1/rankings", json=request).json()["id"])
        rows: list[dict[str, Any]] = []
        cursor = None
        while cursor is not None or not rows:
            query = {"limit": 100} | ({"after": cursor} if cursor else {})
            body = http.get(ranking["links"]["ranking"], params=query).json()
            rows += body["data"]
            cursor = body["next_cursor"]
        assert len(rows) == 10 * TEST_PER_CLASS
        judged = average_precision_score(
            [row["positive"] for row in rows], [row["score"] for row in rows]
        )
        assert judged == pytest.approx(task["clean"]["ap"], abs=1e-9)

        scores = http.get(audit["links"]["scores"], params={"limit": 100}).json()["data"]
        by_id = {row["example_id"]: row["score"] for row in rows}
        for row in scores:
            assert by_id[row["example_id"]] == pytest.approx(row["clean"], abs=1e-4)

        stored = load_safetensors(http.get(f"/v1/datasets/{dataset['id']}/content").content)
        assert stored["images"].shape == (EXAMPLES, 3, 32, 32)
        assert stored["images"].dtype == np.uint8


def test_a_model_and_a_data_set_in_one_request(service: str, archive: bytes) -> None:
    with httpx.Client(base_url=service, timeout=120) as http:
        dataset = http.post("/v1/datasets", files={"file": ("photos.zip", archive)}).json()
        finished(http, dataset["job_id"])
        request = {
            "dataset_id": dataset["id"],
            "task": {"positive": ["ship"]},
            "method": "ce",
            "epochs": 1,
        }
        trained = finished(http, http.post("/v1/training-jobs", json=request).json()["id"])
        weights = http.get(f"{trained['links']['model']}/content").content
        response = http.post(
            "/v1/audits",
            files={"model": ("ours.safetensors", weights), "dataset": ("photos.zip", archive)},
            data={
                "config": '{"attacks": [{"name": "pgd", "steps": 2}], "threat": {"epsilon": 0.01}}'
            },
        )
        assert response.status_code == 201, response.text
        audit = finished(http, response.json()["id"])
        report = http.get(audit["links"]["report"]).json()
        assert report["tasks"][0]["positive"] == ["ship"], "the task the model was trained for"
        assert report["provenance"]["model"]["sha256"]
