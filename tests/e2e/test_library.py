"""The library and the service audit the same network, images and configuration: equal bits."""

import io
import json

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save
from sklearn.datasets import load_digits

import adap
from adap.models import architectures
from tests.e2e.test_audit import add_dataset, finished, http, report_of

__all__ = ["http"]  # the fixture

MEAN, STD = [0.3], [0.25]


PIPELINE = [
    {"name": "jpeg", "quality": 90},
    {"name": "crop", "height": 6, "width": 7},
    {"name": "resize", "height": 8, "width": 8},
]


@pytest.mark.parametrize(
    ("architecture", "outputs", "shards", "pipeline"),
    [("small_cnn", 1, 40, []), ("thin_cnn", 3, 1024, PIPELINE)],
)
def test_the_library_gives_the_figures_of_the_service_bit_for_bit(
    http: httpx.Client, architecture: str, outputs: int, shards: int, pipeline: list[object]
) -> None:
    digits = load_digits()
    kept = np.flatnonzero(digits.target < 3)[:90]
    images = np.rint(digits.images[kept] * 255 / 16).astype(np.uint8)
    labels = digits.target[kept]
    network = architectures.build(architecture, channels=1, seed=5, outputs=outputs).eval()
    positive = "1" if outputs == 1 else "2"
    arrays = io.BytesIO()
    np.savez(arrays, images=images, labels=labels.astype(str))
    dataset = add_dataset(http, "digits.npz", arrays.getvalue())
    spec = {"channels": 1, "height": 8, "width": 8, "mean": MEAN, "std": STD}
    kinds = {1: {"kind": "logit"}, 3: {"kind": "multiclass", "classes": ["0", "1", "2"]}}
    added = http.post(
        "/v1/models",
        files={"file": ("k.safetensors", save(network.state_dict()))},
        data={
            "architecture": architecture,
            "input": json.dumps(spec),
            "output": json.dumps(kinds[outputs]),
        },
    ).json()
    finished(http, added["job_id"])
    attacks = [{"name": "pgd", "steps": 4}, {"name": "apgd", "steps": 6, "restarts": 2}]
    common = {"attacks": [*attacks, {"name": "square", "queries": 20}], "epsilons": [0.01, 0.05]}
    job = http.post(
        "/v1/audits",
        json={
            "model_id": added["id"],
            "dataset_id": dataset,
            "task": {"positive": [positive]},
            "threat": {"epsilon": 8 / 255},
            "checks": "quick",
            "batch_size": 32,
            "shard_size": shards,
            "pipeline": pipeline,
            "smallest_changes": {"k": 60, "steps": 20},
            "universal": {"rounds": 5, "images": 40},
            "seed": 3,
            **common,
        },
    ).json()
    theirs = report_of(http, finished(http, job["id"]))

    def audit(**given: object) -> adap.Audit:
        return adap.audit(
            network,
            positive=int(positive),
            mean=MEAN,
            std=STD,
            attacks=[
                adap.PGD(steps=4),
                adap.APGD(steps=6, restarts=2),
                adap.Square(queries=20),
            ],
            epsilons=[0.01, 0.05],
            checks="quick",
            batch_size=32,
            shard_size=shards,
            pipeline=pipeline,
            smallest_changes={"k": 60, "steps": 20},
            universal={"rounds": 5, "images": 40},
            seed=3,
            **given,  # type: ignore[arg-type]
        )

    least = theirs["tasks"][0].pop("smallest_changes")
    assert least["searched"] > 0
    shared = theirs["tasks"][0].pop("universal")
    assert shared["searched"] == 40
    assert theirs["mean"].pop("universal") == shared["ap"]
    as_tensors = torch.tensor(images)[:, None].float() / 255
    for ours in (audit(images=images, labels=labels), audit(images=as_tensors, labels=labels)):
        found = json.loads(ours.report.model_dump_json())
        # A search by the gradient's length, not its signs, shows on how many threads it was summed.
        sizes = found["tasks"][0].pop("smallest_changes")
        assert sizes.pop("curve") == [pytest.approx(point, abs=1e-5) for point in least["curve"]]
        for name, value in sizes.items():
            assert least[name] == value or least[name] == pytest.approx(value, abs=1e-5), name
        universal = found["tasks"][0].pop("universal")  # signs of sums, which a last digit may turn
        assert universal["searched"] == 40
        assert universal["ap"] == pytest.approx(shared["ap"], abs=0.02)
        found["mean"].pop("universal")
        assert found["tasks"] == theirs["tasks"]
        assert found["mean"] == theirs["mean"]
        # what the service knows of files, nobody knows of arrays; one is of that perturbation
        of_files = {"data_set", "model_file", "leakage", "seen_in_training", "positive_class"}
        of_files |= {"universal_no_worse"}
        mine, other = (
            [check for check in report["trust"]["checks"] if check["name"] not in of_files]
            for report in (found, theirs)
        )
        assert mine == other
        assert len(mine) >= 11
