"""A single logit read for the opposite class is refused at every door; its own class is not."""

import json
from pathlib import Path
from shutil import make_archive

import pytest
from safetensors.numpy import load_file, save_file

from adap.client.client import Client, JobFailedError, ProblemError
from tests.client.conftest import Adap

SIDE = "has a single logit, which ranks cat first; got dog. "
WAYS = ("(--positive cat)", "(--other-positive)")


def test_the_opposite_class_of_a_single_logit_is_refused_at_every_door(
    client: Client, adap: Adap, model: str, dataset: str, images: Path, tmp_path: Path
) -> None:
    of = ("--model", model, "--dataset", dataset, "--positive", "dog")
    for line in (("audit", *of), ("audit", *of, "--dry-run"), ("rank", *of)):
        run = adap(*line)
        assert run.code == 1
        assert run.err.startswith(f"--positive: the model {SIDE}")
        assert all(way in run.err for way in WAYS)
    image = next((images / "test" / "cat").iterdir())
    with pytest.raises(ProblemError, match="has one logit, which ranks cat first; got dog"):
        client.score(model, [image], positive=["dog"])
    own = client.score(model, [image], positive=["cat"])
    assert own["scores"] == client.score(model, [image])["scores"]
    # what is stored of a training says it too, wherever the file comes again
    file = tmp_path / "cats.safetensors"
    client.models.export(model, file)
    again = client.models.create(file)
    with pytest.raises(ProblemError, match=SIDE):
        client.audits.estimate(model_id=again.id, dataset_id=dataset, positive="dog")


def test_a_single_logit_is_read_for_the_opposite_class_where_that_is_said(
    client: Client, adap: Adap, model: str, dataset: str
) -> None:
    of = ("--model", model, "--dataset", dataset, "--positive", "dog", "--other-positive")
    run = adap("--json", "audit", *of, "--attack", "fgsm", "--watch")
    assert run.code == 0
    report = client.report(run.json["id"])
    said = "The model's single logit ranks cat first; as asked, it was read for dog all the same."
    assert said in report["warnings"]
    (check,) = [c for c in report["trust"]["checks"] if c["name"] == "positive_class"]
    assert (check["status"], check["message"]) == ("caution", said)
    (task,) = report["tasks"]
    assert (task["upside_down"] is None) == (task["clean"]["ap"] >= task["chance"])


def test_what_an_upload_is_said_to_rank_first_is_held_to(
    client: Client, adap: Adap, model: str, dataset: str, tmp_path: Path
) -> None:
    file = tmp_path / "cats.safetensors"
    client.models.export(model, file)
    shape = ("--size", "8", "--channels", "1")
    run = adap("--json", "model", "add", str(file), *shape, "--positive", "dog", "--watch")
    assert run.code == 0
    assert run.json["manifest"]["positive"] == ["dog"]
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(file), bare)  # without the manifest that says it
    plain = adap("model", "add", bare, *shape, "--watch")
    assert "not known: `adap model add --positive` says which class" in plain.out
    with pytest.raises(ProblemError, match="ranks dog first; got cat"):
        client.audits.estimate(model_id=run.json["id"], dataset_id=dataset, positive="cat")
    run = adap("model", "add", str(file), *shape, "--positive", "dog", "--classes", "cat,dog")
    assert run.code == 1
    assert "\n--positive: expected positive for a model of one logit alone" in run.err


def test_an_audit_of_files_is_held_to_it_before_and_after_they_are_read(
    client: Client, model: str, images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "cats.safetensors"
    client.models.export(model, file)
    archive = Path(make_archive(str(tmp_path / "pets"), "zip", images))
    config = json.dumps({"task": {"positive": ["dog"]}, "attacks": ["fgsm"]})
    parts = {
        "model": (file.name, file.read_bytes()),
        "dataset": (archive.name, archive.read_bytes()),
    }
    answer = client.http.post("/v1/audits", files=parts, data={"config": config})
    assert answer.status_code == 201, answer.text
    with pytest.raises(JobFailedError, match=SIDE):
        client.jobs.wait(answer.json()["id"])
    spec = {"channels": 1, "height": 8, "width": 8, "mean": [0.0], "std": [1.0]}
    told = {"config": config, "input": json.dumps(spec), "positive": "cat"}
    refused = client.http.post("/v1/audits", files=parts, data=told)
    assert refused.status_code == 422
    assert f"the model {SIDE}" in refused.json()["detail"]


def test_what_is_missing_is_asked_for_by_all_that_names_it(adap: Adap) -> None:
    run = adap("rank")
    assert run.code == 1
    said = "expected its name, its id or the start of it, or @latest; got none"
    assert run.err == f"--model: {said}\n  - --dataset: {said}\n"
