"""A floor far above chance, proven by the service of weights that somebody sent it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adap.client.client import Client
from adap.client.verify.reports import verify
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.certify.bounds import certified_bounds
from adap.core.scores import load_scores
from adap.models.wrappers import Scorer
from benchmarks.certified import Pictures, digits, input_spec, interval_logits, trained_on_bounds


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return digits()


@pytest.fixture(scope="module")
def network(pictures: Pictures) -> torch.nn.Module:
    trained = slice(None, -pictures.held_out)
    return trained_on_bounds(
        pictures.images[trained], pictures.targets[trained], epsilon=pictures.epsilon, epochs=25
    )


@pytest.fixture(scope="module")
def client(service: str) -> Iterator[Client]:
    with Client(service) as client:
        yield client


def test_training_sees_the_bounds_that_are_certified(
    pictures: Pictures, network: torch.nn.Module
) -> None:
    x = torch.tensor(pictures.images[-20:]).double() / 255
    lo, hi = interval_logits(network.double(), x, pictures.epsilon)
    scorer = Scorer(network.float(), input_spec(pictures.images)).eval()
    threat = ThreatModel("linf", pictures.epsilon)
    found = certified_bounds(scorer, x, threat=threat, method="ibp")
    # certified ones are widened by what float32 adds to a perturbation, times a slope of some 100
    for certified, expected in zip(found, (lo, hi), strict=True):
        torch.testing.assert_close(certified, expected.detach(), atol=1e-3, rtol=0)


def test_a_report_of_the_service_proves_a_floor_far_above_chance(
    client: Client, pictures: Pictures, network: torch.nn.Module, tmp_path: Path
) -> None:
    upload = tmp_path / "digits.zip"
    upload.write_bytes(pictures.archive())
    dataset = client.datasets.add(upload)
    client.jobs.wait(dataset["job_id"])
    weights = tmp_path / "thin.safetensors"
    save_file(network.float().state_dict(), weights)
    model = client.models.add(
        weights, architecture="thin_cnn", input_spec=input_spec(pictures.images).model_dump()
    )
    client.jobs.wait(model["job_id"])
    request: dict[str, Any] = {
        "model_id": model["id"],
        "dataset_id": dataset["id"],
        "split": "test",
        "task": {"positive": pictures.positive},
        "threat": {"epsilon": pictures.epsilon},
        "attacks": [{"name": "apgd", "steps": 30}],
        "checks": "off",
        "shard_size": 200,  # three shards, which all must decide alike
        "thresholds": ["certified_floor >= 0.5"],
    }
    job = client.jobs.wait(client.audit(request)["id"])
    report = client.report(job["id"])
    (task,) = report["tasks"]
    floor = task["certified_floor"]
    assert (task["examples"], floor["method"]) == (597, "crown_ibp")
    assert task["chance"] < 0.11
    assert 0.6 < floor["ap"] <= task["worst_case"]["ap"] <= task["clean"]["ap"]
    assert floor["proven_pairs"] > 0.9
    assert report["thresholds"][0]["passed"]
    assert "Proven: at least" in client.report_as(job["id"], "text/html").decode()

    path = tmp_path / "scores"
    client.save_scores(job["id"], path)
    (scores,) = load_scores(path)
    assert scores.bounds is not None
    lo, hi = scores.bounds
    for logits in (scores.clean, scores.attacked["apgd"]):
        # float32 logits, which differ from those of real numbers by some 1e-6
        assert (lo - 1e-4 <= logits).all()
        assert (logits <= hi + 1e-4).all()
    assert all(line.ok for line in verify(report, path.read_bytes()))
