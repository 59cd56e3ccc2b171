"""An audit with all that it can show, through the public API of a real service."""

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from adap.client.verify.reports import verify
from adap.models import architectures
from tests.worker.archives import grouped, pack

QUICK = {"attacks": [{"name": "pgd", "steps": 3}], "threat": {"epsilon": 0.05}, "checks": "off"}


@pytest.fixture(scope="module")
def http(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=120) as client:
        yield client


def finished(http: httpx.Client, job_id: str) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=30"}).json()
        if job["done"]:
            assert job["status"] == "succeeded", job["error"]
            return job


def add_dataset(http: httpx.Client, name: str, content: bytes) -> str:
    added = http.post("/v1/datasets", files={"file": (name, content)})
    assert added.status_code == 201, added.text
    finished(http, added.json()["job_id"])
    return str(added.json()["id"])


def train(http: httpx.Client, dataset: str, method: str, **fields: Any) -> str:
    request = {
        "dataset_id": dataset,
        "task": {"positive": ["cat"]},
        "method": method,
        "epochs": 3,
        "batch_size": 16,
        **fields,
    }
    job = http.post("/v1/training-jobs", json=request)
    assert job.status_code == 201, job.text
    return str(finished(http, job.json()["id"])["result"]["model_id"])


def audit(http: httpx.Client, model: str, dataset: str, **fields: Any) -> dict[str, Any]:
    request = {"model_id": model, "dataset_id": dataset, **QUICK, **fields}
    job = http.post("/v1/audits", json=request)
    assert job.status_code == 201, job.text
    return finished(http, job.json()["id"])


def report_of(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = http.get(job["links"]["report"]).json()
    return report


@pytest.fixture(scope="module")
def pets(http: httpx.Client) -> str:
    return add_dataset(http, "pets.zip", pack(grouped("day", "dusk")))


def test_groups_curves_bounds_checks_and_thresholds(http: httpx.Client, pets: str) -> None:
    model = train(http, pets, "ce")
    job = audit(
        http,
        model,
        pets,
        surrogate={"train_on": pets},
        attacks=["pgd", {"name": "apgd", "steps": 4, "loss": "bce", "label": "bce"}, "transfer"],
        epsilons=[0.0, 0.02, 0.05],
        checks="quick",
        certify="ibp",
        thresholds=["clean_ap >= 0.5", "worst_case_ap > 0.999"],
    )
    report = report_of(http, job)
    (task,) = report["tasks"]
    assert list(task["attacks"]) == ["pgd", "bce", "transfer"]
    assert {group["group"] for group in task["groups"]["groups"]} == {"day", "dusk"}
    curve = [point["ap"] for point in task["epsilon_curve"]["points"]]
    assert curve[0] == task["clean"]["ap"]
    assert curve == sorted(curve, reverse=True)
    assert task["floor"] <= task["certified_floor"]["ap"] <= task["worst_case"]["ap"]
    budget = task["budget_curve"]
    assert budget[-1]["both"] == pytest.approx(task["worst_case"]["ap"])
    assert report["trust"]["checks"]
    assert [result["passed"] for result in report["thresholds"]] == [True, False]
    surrogate = report["provenance"]["surrogate"]
    assert surrogate["id"] != model
    assert http.get(f"/v1/models/{surrogate['id']}").json()["status"] == "ready"
    page = http.get(job["links"]["report"], headers={"Accept": "text/html"}).text
    assert "dusk" in page
    accepted = {"Accept": "application/vnd.safetensors"}
    lines = verify(report, http.get(job["links"]["scores"], headers=accepted).content)
    assert [line for line in lines if not line.ok] == []
    named = {line.figure for line in lines}
    assert {"trust.monotone.ap_clean", "trust.noise_weaker.status", "budget_curve.5.both"} <= named
    assert {"groups.dusk.clean.interval", "groups.worst_case_gap.interval"} <= named
    again = http.post(
        "/v1/audits",
        json={
            "model_id": model,
            "dataset_id": pets,
            **QUICK,
            "attacks": ["transfer"],
            "surrogate": {"train_on": pets},
        },
    ).json()
    assert report_of(http, finished(http, again["id"]))["provenance"]["surrogate"] == surrogate


def test_a_leaderboard_compares_models_on_the_same_images(http: httpx.Client) -> None:
    pets = add_dataset(
        http, "pets.zip", pack(grouped("dawn", "noon"))
    )  # of its own: every audit counts
    models = [train(http, pets, method, seed=7) for method in ("ce", "pgd", "trades")]
    strong: dict[str, Any] = {"attacks": [{"name": "apgd", "steps": 10}], "checks": "quick"}
    jobs = [audit(http, model, pets, epsilons=[], certify="off", **strong) for model in models[:2]]
    # by FGSM alone, unchecked; at another epsilon
    weaker = [audit(http, model, pets, attacks=["fgsm"], certify="off") for model in models[1:]]
    audit(http, models[0], pets, threat={"epsilon": 0.01}, certify="off")
    board = http.get("/v1/leaderboard", params={"dataset_id": pets}).json()
    expected = {"positive": ["cat"], "split": "test", "norm": "linf", "epsilon": 0.05}
    expected |= {"pipeline": [], "sample": None, "sample_seed": None}
    assert board["setting"] == expected
    assert board["other_settings"] == [expected | {"epsilon": 0.01}]
    assert http.get("/v1/leaderboard", params={"dataset_id": pets, "epsilon": "1/100"}).json()[
        "setting"
    ] == (expected | {"epsilon": 0.01})
    leader, second, below = board["contenders"]
    assert [row["rank"] for row in board["contenders"]] == [1, 2, None]
    assert {leader["job_id"], second["job_id"]} == {job["id"] for job in jobs}
    assert leader["worst_case"]["ap"] >= second["worst_case"]["ap"]
    assert (below["job_id"], below["to_leader"]) == (weaker[1]["id"], None)
    assert below["missing"] == ["apgd with 10 steps, 1 restarts", "trust checks: none were run"]
    found = {row["model_id"]: row for row in board["contenders"]}
    for model, job in zip(models, jobs, strict=False):
        clean = np.array([row["clean"] for row in rows(http, job)])
        targets = [row["target"] for row in rows(http, job)]
        assert found[model]["clean"]["ap"] == pytest.approx(average_precision_score(targets, clean))
        (task,) = report_of(http, job)["tasks"]
        assert found[model]["worst_case"]["interval"] == task["worst_case"]["interval"]
    assert leader["to_leader"] is None
    assert second["to_leader"]["value"] == pytest.approx(
        second["worst_case"]["ap"] - leader["worst_case"]["ap"]
    )
    interval = second["to_leader"]["interval"]
    assert interval["low"] <= second["to_leader"]["value"] <= interval["high"]
    assert http.get("/v1/leaderboard", params={"dataset_id": "ds_" + 26 * "0"}).status_code == 404


def rows(http: httpx.Client, job: dict[str, Any]) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = http.get(job["links"]["scores"], params={"limit": 100}).json()[
        "data"
    ]
    return data


def test_every_class_of_a_network_with_an_output_for_each(http: httpx.Client) -> None:
    digits = load_digits()
    kept = digits.target < 3
    arrays = io.BytesIO()
    images = np.rint(digits.images[kept][:90] * 255 / 16).astype(np.uint8)
    labels = np.array(["zero", "one", "two"])[digits.target[kept][:90]]
    np.savez(arrays, images=images, labels=labels)
    dataset = add_dataset(http, "digits.npz", arrays.getvalue())
    network = architectures.build("thin_cnn", channels=1, seed=3, outputs=3).eval()
    classes = ["two", "zero", "one"]
    added = http.post(
        "/v1/models",
        files={"file": ("k.safetensors", save(network.state_dict()))},
        data={
            "architecture": "thin_cnn",
            "input": '{"channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.3]}',
            "output": '{"kind": "multiclass", "classes": ["two", "zero", "one"]}',
        },
    ).json()
    finished(http, added["job_id"])
    job = audit(http, added["id"], dataset, threat={"epsilon": 0.001}, certify="crown_ibp")
    report = report_of(http, job)
    assert sorted(task["positive"][0] for task in report["tasks"]) == sorted(classes)
    x = (torch.tensor(images)[:, None].float() / 255 - 0.3) / 0.3
    with torch.no_grad():
        p = torch.softmax(network(x).double(), dim=1).numpy()
    for task in report["tasks"]:
        (name,) = task["positive"]
        judged = average_precision_score(labels == name, p[:, classes.index(name)])
        assert task["clean"]["ap"] == pytest.approx(judged, abs=1e-6)
        assert task["worst_case"]["ap"] < task["clean"]["ap"]
        floor = task["certified_floor"]
        assert floor["proven_pairs"] > 0
        assert task["floor"] < floor["ap"] <= task["worst_case"]["ap"]
    means = [task["worst_case"]["ap"] for task in report["tasks"]]
    assert report["mean"]["worst_case"] == pytest.approx(np.mean(means))


def test_a_sample_is_audited_as_such_and_compared_with_its_like_alone(http: httpx.Client) -> None:
    known = load_digits()
    arrays = io.BytesIO()
    images = np.rint(known.images[:300] * 255 / 16).astype(np.uint8)
    labels = np.where(known.target[:300] < 2, "low", "rest")
    np.savez(arrays, images=images, labels=labels, clusters=np.arange(300) // 3)
    dataset = add_dataset(http, "digits.npz", arrays.getvalue())
    network = architectures.build("small_cnn", channels=1, seed=3).eval()
    added = http.post(
        "/v1/models",
        files={"file": ("k.safetensors", save(network.state_dict()))},
        data={
            "architecture": "small_cnn",
            "input": '{"channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.3]}',
            "output": '{"kind": "logit"}',
        },
    ).json()
    finished(http, added["job_id"])
    asked: dict[str, Any] = {
        "task": {"positive": ["low"]},
        "attacks": ["fgsm"],
        "certify": "off",
        "checks": "quick",
        "shard_size": 32,
    }
    whole = audit(http, added["id"], dataset, **asked)
    part = audit(http, added["id"], dataset, sample=80, **asked)
    all_rows = {row["example_id"]: row for row in rows(http, whole)}
    found = rows(http, part)
    (of_all,), (of_part,) = (report_of(http, job)["tasks"] for job in (whole, part))
    positives = round(80 * of_all["positives"] / 300)
    assert (of_part["examples"], of_part["positives"]) == (80, positives)
    assert len({row["example_id"] for row in found}) == 80
    for row in found:
        same = all_rows.get(row["example_id"])  # the first hundred of all are at hand
        assert same is None or row["clean"] == pytest.approx(same["clean"], abs=1e-5)
    judged = average_precision_score(
        [row["target"] for row in found], [row["clean"] for row in found]
    )
    assert of_part["clean"]["ap"] == pytest.approx(judged)
    widths = [
        task["clean"]["interval"]["high"] - task["clean"]["interval"]["low"]
        for task in (of_part, of_all)
    ]
    assert widths[0] > 1.2 * widths[1]
    said = "A random sample of 80 of 300 examples was audited (seed 0), each side in its share"
    assert report_of(http, part)["warnings"][0].startswith(said)
    assert of_all["clusters"]["clusters"] == 100
    assert {row["cluster"] for row in all_rows.values()} <= {str(i) for i in range(100)}
    for media_type in ("text/html", "text/markdown"):
        shown = http.get(part["links"]["report"], headers={"Accept": media_type}).text
        assert said.partition(" (")[0] in shown
    refused = http.post(
        "/v1/audits", json={"model_id": added["id"], "dataset_id": dataset, **asked, "sample": 6}
    )
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_data")
    assert "got 1 positives (low) and 5 negatives in a sample of 6 of 300" in refused.text
    accepted = {"Accept": "application/vnd.safetensors"}
    kept = http.get(part["links"]["scores"], headers=accepted).content
    assert [line for line in verify(report_of(http, part), kept) if not line.ok] == []
    board = http.get("/v1/leaderboard", params={"dataset_id": dataset}).json()
    settings = [board["setting"], *board["other_settings"]]
    assert [(it["sample"], it["sample_seed"]) for it in settings] == [(None, None), (80, 0)]


@pytest.fixture(scope="module")
def digits(http: httpx.Client) -> str:
    """240 real digits of three classes, a quarter of them for testing."""
    known = load_digits()
    rows = np.flatnonzero(known.target < 3)[:240]
    arrays = io.BytesIO()
    np.savez(
        arrays,
        images=np.rint(known.images[rows] * 255 / 16).astype(np.uint8),
        labels=np.array(["zero", "one", "two"])[known.target[rows]],
        split=np.array(["train", "train", "train", "test"])[np.arange(len(rows)) % 4],
    )
    return add_dataset(http, "digits.npz", arrays.getvalue())


MEAN_AP = {"task": {"each": True}, "epochs": 4, "batch_size": 32, "attack": {"steps": 2}}


def test_a_network_trained_on_the_mean_ap_of_all_classes_is_audited_class_by_class(
    http: httpx.Client, digits: str
) -> None:
    model = train(http, digits, "adap_lpn", optimizer={"lr": 0.01}, **MEAN_AP)
    made = http.get(f"/v1/models/{model}").json()["manifest"]
    assert made["output"] == {"kind": "multilabel", "classes": ["one", "two", "zero"]}
    assert made["positive"] is None
    training = made["training"]
    assert training["task"] == {"each": True}
    assert training["select_by"] == "robust_ap"
    assert 0 < training["best"]["metrics"]["surrogate_ap"] < 1
    strong = {"threat": {"epsilon": 0.3}, "attacks": ["pgd", "transfer"], "certify": "off"}
    job = audit(http, model, digits, surrogate={"train_on": digits}, **strong)
    report = report_of(http, job)
    assert [task["positive"] for task in report["tasks"]] == [["one"], ["two"], ["zero"]]
    assert report["mean"]["clean"] > 0.8, "three digits in four epochs"
    for task in report["tasks"]:
        assert task["worst_case"]["ap"] < task["clean"]["ap"]
    surrogate = http.get(f"/v1/models/{report['provenance']['surrogate']['id']}").json()["manifest"]
    assert surrogate["output"] == made["output"]
    assert surrogate["training"]["method"]["name"] == "ce"
    weights = http.get(f"/v1/models/{model}/content").content
    assert report["mean"]["clean"] == pytest.approx(mean_ap(weights, made), abs=1e-6)


def mean_ap(weights: bytes, manifest: dict[str, Any]) -> float:
    """The mean AP of a downloaded network on the digits kept for testing, without our code."""
    network = architectures.build("small_cnn", channels=1, seed=0, outputs=3).eval()
    network.load_state_dict(load(weights))
    known = load_digits()
    rows = np.flatnonzero(known.target < 3)[:240][3::4]
    pixels = torch.tensor(np.rint(known.images[rows] * 255 / 16) / 255, dtype=torch.float32)
    spec = manifest["input"]
    with torch.no_grad():
        logits = network((pixels[:, None] - spec["mean"][0]) / spec["std"][0]).double().numpy()
    names = np.array(["zero", "one", "two"])[known.target[rows]]
    return float(
        np.mean(
            [
                average_precision_score(names == name, logits[:, k])
                for k, name in enumerate(manifest["output"]["classes"])
            ]
        )
    )


def test_ap_is_fine_tuned_from_ce_with_a_fresh_last_layer(http: httpx.Client, digits: str) -> None:
    ce = train(http, digits, "ce", optimizer={"lr": 0.01}, **MEAN_AP)
    still: dict[str, Any] = {
        **MEAN_AP,
        "epochs": 1,
        # steps so small that the last layer shows where it started
        "optimizer": {"name": "sgd", "lr": 1e-9, "momentum": 0.0, "weight_decay": 0.0},
        "validation": {"patience": 1},
        "ema": 0.5,
    }
    fresh = train(http, digits, "ap", warm_start={"model_id": ce}, **still)
    kept = train(http, digits, "adap_mm", warm_start={"model_id": ce}, **still)
    start, first, second = (
        load(http.get(f"/v1/models/{model}/content").content) for model in (ce, fresh, kept)
    )
    for name, value in start.items():
        if "norm" in name:
            continue
        same = torch.allclose(first[name], value, atol=1e-6)
        assert same != name.startswith("fc."), name
        assert torch.allclose(second[name], value, atol=1e-6), name
    made = [http.get(f"/v1/models/{model}").json()["manifest"] for model in (ce, fresh)]
    assert made[1]["input"] == made[0]["input"]
    assert made[1]["training"]["warm_start"]["model"]["id"] == ce
    assert made[1]["training"]["warm_start"]["fresh_head"] is True
    job = http.get("/v1/jobs", params={"kind": "train", "limit": 1}).json()["data"][0]
    assert job["links"]["model"].endswith(kept), "its result, not what it started from"
    other = http.post(
        "/v1/training-jobs",
        json={"dataset_id": digits, "task": {"positive": ["one"]}, "warm_start": {"model_id": ce}},
    )
    assert other.status_code == 422
    assert other.json()["code"] == "invalid_config"
    assert "with one logit to start from" in other.json()["detail"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": ["worst_ap >= 0.4"]}, "worst_case_ap"),
        ({"task": {"each": True}}, "single output"),
        ({"surrogate": {"train_on": "ds_" + 26 * "0"}}, "ds_"),
        ({"surrogate": {}}, "either model_id or train_on"),
        ({"attacks": ["pgd", "pgd"]}, "labels"),
    ],
)
def test_what_cannot_work_is_refused_before_any_attack(
    http: httpx.Client, pets: str, change: dict[str, Any], message: str
) -> None:
    models = http.get("/v1/models").json()["data"]
    model = next(m["id"] for m in models if m["manifest"] and m["manifest"]["positive"] == ["cat"])
    answer = http.post(
        "/v1/audits", json={"model_id": model, "dataset_id": pets, **QUICK, **change}
    )
    assert answer.status_code in (404, 422), answer.text
    assert message in answer.text
