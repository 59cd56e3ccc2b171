"""The command `adap`, as a process of its own, against a real service.

The judges: the service's own HTTP answers, read without our client; the files that were sent or
saved, read by the libraries that own the formats; sentences written out here.
"""

import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas
import pytest
import torch
from pandas.testing import assert_frame_equal
from PIL import Image, ImageOps
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sqlalchemy import update

from adap.client import show
from adap.client.client import Client, ClientError
from adap.client.commands.models import InputOptions
from adap.store import jobs
from adap.store.tables import JobRow
from tests.api.conftest import running_alone, running_in
from tests.client.conftest import ADAP, SIDE, TINY, Adap, Run
from tests.published import celeba
from tests.worker.archives import grouped, pack, png, two_classes

NO_DATASET = f"ds_{'0' * 26}"
NO_MODEL = f"mdl_{'0' * 26}"
NO_JOB = f"job_{'0' * 26}"
NO_KEY = f"key_{'0' * 26}"
NO_SWEEP = f"swp_{'0' * 26}"
COMMANDS = """
    up  demo  doctor  backup  restore  dataset add|list|show|edit|remove
    model add|list|show|export|edit|remove  train  sweep  sweeps list|show|watch|cancel  audit  rank
    leaderboard  score  jobs list|show|watch|cancel|retry
    report show|open|save|remove|keygen|canonical|sign|verify
    queue show|pause|drain|resume  key create|list|revoke
"""


def get(service: str, path: str) -> Any:
    """What the service answers, without our client."""
    return httpx.get(f"{service}{path}", trust_env=False).raise_for_status().json()


def training(dataset: str, **changes: Any) -> list[str]:
    """Options of a training that takes no time."""
    request = {**TINY, **changes}
    options = [f"--set={name}={json.dumps(value)}" for name, value in request.items()]
    return ["--dataset", dataset, "--positive", "cat", *options]


def one_id(text: str, kind: str) -> str:
    """The only id of its kind in a text."""
    (found,) = set(re.findall(rf"{kind}_[0-9a-z]{{26}}", text))
    return str(found)


# --- every command --------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    named = [entry.partition(" ") for entry in re.split(r"\s{2,}", COMMANDS.strip())]
    assert {name for name, _, _ in named} == listed_by_help()
    for name, _, subcommands in named:
        if subcommands:
            assert set(subcommands.split("|")) == listed_by_help(name)


def listed_by_help(*group: str) -> set[str]:
    """The commands that a help page lists in its last box."""
    shown = subprocess.run([ADAP, *group, "--help"], capture_output=True, text=True, check=True)
    _, _, commands = shown.stdout.partition("Commands")
    return set(re.findall(r"^│ (\w+) ", commands, re.M))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (f"dataset show {NO_DATASET}", f"There is no data set {NO_DATASET}."),
        (f"dataset remove {NO_DATASET}", f"There is no data set {NO_DATASET}."),
        (f"model show {NO_MODEL}", f"There is no model {NO_MODEL}."),
        (f"model remove {NO_MODEL}", f"There is no model {NO_MODEL}."),
        (f"model export {NO_MODEL}", f"There is no model {NO_MODEL}."),
        (f"train --dataset {NO_DATASET} --positive cat", f"There is no data set {NO_DATASET}."),
        (f"rank --model {NO_MODEL} --dataset {NO_DATASET}", f"There is no model {NO_MODEL}."),
        (f"sweeps show {NO_SWEEP}", f"There is no sweep {NO_SWEEP}."),
        (f"sweeps watch {NO_SWEEP}", f"There is no sweep {NO_SWEEP}."),
        (f"sweeps cancel {NO_SWEEP}", f"There is no sweep {NO_SWEEP}."),
        (
            f"sweep --dataset {NO_DATASET} --vary seed=0,1 --preset quick",
            f"There is no data set {NO_DATASET}.",
        ),
        (f"jobs show {NO_JOB}", f"There is no job {NO_JOB}."),
        (f"jobs watch {NO_JOB}", f"There is no job {NO_JOB}."),
        (f"jobs cancel {NO_JOB}", f"There is no job {NO_JOB}."),
        (f"jobs retry {NO_JOB}", f"There is no job {NO_JOB}."),
        (f"report show {NO_JOB}", f"There is no audit {NO_JOB}."),
        (f"report open {NO_JOB}", f"There is no audit {NO_JOB}."),
        (f"report save {NO_JOB}", f"There is no audit {NO_JOB}."),
        (f"report verify {NO_JOB}", f"There is no audit {NO_JOB}."),
        (f"key revoke {NO_KEY}", f"There is no valid API key {NO_KEY}."),
        (
            f"audit --model {NO_MODEL} --dataset {NO_DATASET} --epsilon -1",
            "--epsilon: expected at least 0, got -1.0",
        ),
        (
            "dataset list --after nonsense!",
            "--after: expected a `next_cursor` that this list has given",
        ),
        (
            "model list --after nonsense!",
            "--after: expected a `next_cursor` that this list has given",
        ),
        (
            "jobs list --status sad",
            "--status: expected one of queued, running, cancelling, succeeded, failed, cancelled, "
            "got 'sad'",
        ),
    ],
)
def test_a_problem_is_said_in_its_own_sentence(adap: Adap, command: str, sentence: str) -> None:
    run = adap(*command.split())
    assert (run.code, run.out, run.err) == (1, "", f"{sentence}\n")


def test_further_faults_of_a_request_are_listed(adap: Adap, dataset: str) -> None:
    run = adap("train", *training(dataset, epochs=2000, batch_size=0))
    assert run.code == 1
    assert run.err.splitlines() == [
        "--epochs: expected at most 1000, got 2000",
        "  - --set batch_size: expected at least 2, got 0",
    ]


def test_with_json_a_problem_is_also_printed_as_it_came(adap: Adap) -> None:
    run = adap("jobs", "show", NO_JOB, "--json")
    assert run.code == 1
    assert run.json["code"] == "not_found"
    assert run.json["status"] == 404
    assert run.json["request_id"].startswith("req_")
    assert run.err == f"There is no job {NO_JOB}.\n"


@pytest.mark.parametrize(
    "command",
    [
        "dataset add nowhere.zip",
        f"dataset add {__file__} --labels weather",
        "model add nowhere.safetensors",
        f"model add {__file__} --multilabel",
        "jobs list --limit 0",
        "train --set epochs",
        "train --set epochs=1 --set epochs.more=2",
        "sweep",
        "sweep --vary seed",
        "sweep --vary seed=1..5",
        "sweep --vary seed=1,2 --at-once 2",
        "sweep --vary optimizer.lr=1e-5..1e-2:square --trials 3",
        "audit --epsilon a/b",
        f"report save {NO_JOB} -o report.pdf",
        f"model export {NO_MODEL} -o weights.bin",
        "rank --after cursor",
        "nonsense",
        "score",
        "up --port many",
    ],
)
def test_a_wrong_command_line_exits_with_2(adap: Adap, command: str) -> None:
    run = adap(*command.split())
    assert (run.code, run.out) == (2, "")
    assert "Error" in run.err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("audit --sample 2", "--sample': expected at least 4, got 2"),
        ("up --port 99999", "--port': expected at most 65535, got 99999"),
        ("train --epochs some", "--epochs': expected a whole number, got some"),
        ("audit --each --positive cat", "--each: expected --each or --positive, got both"),
    ],
)
def test_a_value_that_no_option_takes_is_refused_with_what_was_expected_and_what_came(
    adap: Adap, command: str, said: str
) -> None:
    run = adap(*command.split())
    assert (run.code, run.out) == (2, "")
    assert said in run.err


def test_without_a_service_the_sentence_says_how_to_start_one(adap: Adap) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets this port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        run = adap("jobs", "list", "--url", url)
    assert run.code == 1
    assert run.err == (
        f"No service answers at {url} ([Errno 111] Connection refused). Start one with `adap up`, "
        "or name another with --url or ADAP_URL.\n"
    )


# --- data sets and models -------------------------------------------------------------------------


def test_a_folder_becomes_a_data_set_and_goes_again(adap: Adap, service: str, images: Path) -> None:
    (images / ".DS_Store").write_text("not an image")
    added = adap("dataset", "add", images, "--watch")
    assert added.code == 0
    assert "upload: " in added.err
    assert "validate dataset: done in " in added.err
    dataset_id = one_id(added.out, "ds")
    counts = dict(re.findall(r"^(cat|dog|all) +(\d+)", added.out, re.M))
    files = {name: len(list(images.glob(f"*/{name}/*.png"))) for name in ("cat", "dog")}
    assert counts == {name: str(count) for name, count in files.items()} | {
        "all": str(sum(files.values()))
    }

    shown = adap("dataset", "show", dataset_id, "--json")
    assert shown.json == get(service, f"/v1/datasets/{dataset_id}")
    assert shown.json["name"] == "pets"
    assert re.search(rf"{dataset_id} +pets +ready", adap("dataset", "list").out)

    removed = adap("dataset", "remove", dataset_id)
    assert (removed.code, removed.out) == (0, f"Removed {dataset_id}.\n")
    assert adap("dataset", "show", dataset_id).code == 1


def test_a_folder_with_a_table_is_shown_with_its_groups(adap: Adap, tmp_path: Path) -> None:
    for name, content in grouped("north", "south", per_class=3).items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    added = adap("dataset", "add", "pets", "--watch")
    assert re.findall(r"^(north|south) +(\d+)$", added.out, re.M) == [
        ("north", "12"),
        ("south", "12"),
    ]
    shown = adap("dataset", "show", one_id(added.out, "ds"), "--json")
    assert shown.json["summary"]["groups"] == {"north": 12, "south": 12}


def test_a_published_data_set_is_packed_and_sent(adap: Adap, service: str, tmp_path: Path) -> None:
    celeba(tmp_path / "faces")
    options = ["--from", "celeba", "--labels", "Mustache", "--size", 16]
    added = adap("dataset", "add", "faces", *options, "--watch", "--json")
    assert added.code == 0, added.err
    dataset = get(service, f"/v1/datasets/{added.json['id']}")
    assert dataset["name"] == "celeba Mustache"
    assert dataset["summary"]["classes"] == {"other": 5, "Mustache": 4}
    assert {split: sum(n.values()) for split, n in dataset["summary"]["splits"].items()} == {
        "train": 3,
        "validation": 3,
        "test": 3,
    }
    assert (dataset["summary"]["height"], dataset["summary"]["channels"]) == (16, 3)


def test_a_published_data_set_with_a_file_missing_is_not_sent(adap: Adap, tmp_path: Path) -> None:
    celeba(tmp_path / "faces")
    (tmp_path / "faces" / "celeba" / "list_attr_celeba.txt").unlink()
    run = adap("dataset", "add", "faces", "--from", "celeba")
    assert (run.code, run.out) == (1, "")
    missing, said = run.err.splitlines()
    assert "list_attr_celeba.txt, got no such file; it comes from https://mmlab" in missing
    assert said == "The data set in faces was not packed; nothing was sent."


def test_a_data_set_that_cannot_be_read_is_refused_with_the_reason(
    adap: Adap, tmp_path: Path
) -> None:
    (tmp_path / "pets.zip").write_text("not a zip")
    run = adap("dataset", "add", "pets.zip", "--watch")
    dataset_id = one_id(run.err, "ds")
    assert run.code == 1
    assert run.err.endswith(
        f"The data set {dataset_id} was rejected.\n"
        "  - expected a zip or tar of class folders, an NPZ or Parquet, "
        "got a file of a kind that is not known here: put the images into class folders, and send "
        "the folder (adap dataset add FOLDER)\n"
    )


def test_what_was_found_in_a_data_set_is_shown(adap: Adap, tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(pack(two_classes(**{"dog/again.png": png(1)})))
    added = adap("dataset", "add", "pets.zip", "--watch")
    assert added.code == 0, added.err
    lines = [" ".join(line.split()) for line in added.out.splitlines()]
    assert "images 8x8, 3 channels" in lines
    assert "duplicates 1 (1 with other labels)" in lines
    assert lines[-4:] == [
        "class examples prevalence",
        "cat 2 40.00%",
        "dog 3 60.00%",
        "all 5",
    ]


def test_the_first_hundred_reasons_are_listed_by_file(adap: Adap, tmp_path: Path) -> None:
    bad = {f"cat/{i:03d}.png": b"GIF89a" for i in range(120)}
    (tmp_path / "pets.zip").write_bytes(pack({**two_classes(), **bad}))
    run = adap("dataset", "add", "pets.zip", "--watch")
    dataset_id = one_id(run.err, "ds")
    listed = [
        *(
            f"'cat/{i:03d}.png': expected a sound PNG, JPEG or WebP image, got a GIF image that is "
            "damaged, or of a kind that is not read: convert to PNG, as PNG, JPEG, WEBP, BMP, GIF, "
            "TIFF are read"
            for i in range(100)
        ),
        "(the first 100; there may be more)",
    ]
    assert run.code == 1
    said = f"The data set {dataset_id} was rejected.\n"
    assert run.err.endswith(said + "".join(f"  - {line}\n" for line in listed))
    shown = adap("dataset", "show", dataset_id)
    for line in listed:
        assert line in shown.out
    assert adap("dataset", "show", dataset_id, "--json").json["reasons"] == listed[:-1]


def test_without_watch_an_upload_says_how_to_watch_it(
    adap: Adap, service: str, tmp_path: Path
) -> None:
    (tmp_path / "weights.safetensors").write_text("no weights")
    run = adap("model", "add", "weights.safetensors", "--name", "mine")
    model_id, job_id = one_id(run.out, "mdl"), one_id(run.out, "job")
    assert (run.code, run.out) == (
        0,
        f"{model_id} is being checked. Watch it: adap jobs watch {job_id}\n"
        f"Then see what it holds: adap model show {model_id}\n",
    )
    watched = adap("jobs", "watch", job_id)
    assert watched.code == 1
    assert watched.err.splitlines()[-1].startswith(
        f"The job {job_id} failed: expected a safetensors file, got a file of a kind"
    )


def test_a_model_is_exported_and_added_again(
    adap: Adap, service: str, model: str, tmp_path: Path
) -> None:
    exported = adap("model", "export", model, "--output", "copy.safetensors")
    assert (exported.code, exported.out) == (0, "Saved copy.safetensors.\n")
    assert not list(tmp_path.glob("*.part"))
    with safe_open(tmp_path / "copy.safetensors", "numpy") as file:
        manifest = json.loads(file.metadata()["adap"])
    assert manifest["architecture"] == "small_cnn"

    added = adap("model", "add", "copy.safetensors", "--watch", "--json")
    assert added.code == 0
    assert added.json == get(service, f"/v1/models/{added.json['id']}")
    assert added.json["status"] == "ready"
    assert added.json["manifest"]["positive"] == ["cat"]
    shown = adap("model", "show", added.json["id"])
    assert re.search(r"^positive +cat *$", shown.out, re.M)
    assert added.json["id"] in adap("model", "list").out
    assert added.json["id"] not in adap("model", "list", "--status", "rejected").out
    noted = adap("model", "edit", added.json["id"], "--name", "a copy", "--note", "of\nthe first")
    assert noted.code == 0, noted.err
    assert re.search(r"^note +of *\n +the first *$", adap("model", "show", "a copy").out, re.M)
    neither = adap("model", "edit", "a copy")
    assert neither.code == 2
    assert "expected --name, --note or both" in neither.err
    assert adap("model", "remove", added.json["id"]).out == f"Removed {added.json['id']}.\n"


def test_a_model_is_exported_as_a_state_dict_that_pytorch_alone_reads(
    adap: Adap, client: Client, model: str, tmp_path: Path
) -> None:
    adap("model", "export", model, "-o", "model.safetensors")
    run = adap("model", "export", model, "-o", "model.pt")
    assert (run.code, run.out) == (0, "Saved model.pt.\n"), run.err
    read = torch.load(tmp_path / "model.pt", weights_only=True)
    wanted = load_file(tmp_path / "model.safetensors")
    assert list(read) == list(wanted)
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model.safetensors"]

    adap("model", "export", model, "-o", "model.onnx")
    graph = adap("model", "add", "model.onnx", "--watch", "--json")
    refused = adap("model", "export", graph.json["id"], "-o", "graph.pt")
    assert refused.code == 2
    assert "expected a name ending in .onnx, got 'graph.pt'" in refused.err
    assert not (tmp_path / "graph.pt").exists()
    with pytest.raises(ClientError, match=r"ending in \.safetensors or \.onnx, got 'm\.pt'"):
        client.models.export(model, tmp_path / "m.pt")


def test_a_state_dict_that_cannot_be_written_is_told_in_a_sentence(
    adap: Adap, model: str, audited: str, tmp_path: Path
) -> None:
    for name in ("gone/model.pt", "gone/model.safetensors"):
        nowhere = adap("model", "export", model, "-o", name)
        assert nowhere.code == 2
        said = " ".join(nowhere.err.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", "").split())
        assert f"--output: expected a name in a folder that is there, got '{name}'" in said
    (tmp_path / "taken.pt").mkdir()
    taken = adap("model", "export", model, "-o", "taken.pt")
    assert (taken.code, taken.err) == (1, "taken.pt: Is a directory.\n")
    elsewhere = adap("report", "save", audited, "-o", "gone/report.html")
    assert elsewhere.code == 1
    assert re.fullmatch(r"gone/report.html\S*: No such file or directory.\n", elsewhere.err)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('half installed')\n")
    run = adap("model", "export", model, "-o", "model.pt", PYTHONPATH=str(broken))
    assert (run.code, run.err) == (
        1,
        f"The weights of {model} could not be written for PyTorch (ImportError: half installed): "
        "export them as .safetensors\n",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "taken.pt"]


def test_a_size_is_width_by_height_as_everywhere() -> None:
    given = InputOptions("320x240", channels=None, imagenet=False, pixels=None, bgr=False)
    spec = given.as_json()
    assert spec is not None
    assert (spec["width"], spec["height"]) == (320, 240)
    assert show.input_spec(spec).startswith("320x240 (width x height), 3 channels")


def test_weights_without_architecture_are_described_on_the_command_line(
    adap: Adap, model: str, tmp_path: Path
) -> None:
    adap("model", "export", model, "-o", "copy.safetensors")
    save_file(load_file(tmp_path / "copy.safetensors"), tmp_path / "bare.safetensors")
    spec = {"channels": 1, "height": 8, "width": 8, "mean": [0.4], "std": [0.2]}
    described = ("--architecture", "small_cnn", "--input", json.dumps(spec))
    run = adap("model", "add", "bare.safetensors", *described, "--watch", "--json")
    assert run.json["manifest"]["input"] == spec

    wrong = adap("model", "add", "bare.safetensors", "--architecture", "nope", "--input", "{}")
    assert wrong.err.splitlines()[-1] == (
        "--architecture: expected one of small_cnn, resnet18, resnet18_3x3, thin_cnn, onnx, "
        "torchvision/NAME, timm/NAME; got 'nope'"
    )


def test_a_network_with_a_logit_a_class_is_added_shown_and_scored(
    adap: Adap, service: str, classifier: Path, images: Path
) -> None:
    spec = {"channels": 1, "height": 8, "width": 8, "mean": [0.4], "std": [0.2]}
    add = ("model", "add", classifier, "--architecture", "small_cnn", "--input", json.dumps(spec))
    twice = adap(*add, "--classes", "cow, dog,cow ")  # the same name, once it is trimmed
    assert twice.err.splitlines()[-1] == "--classes: expected each class once"

    added = adap(*add, "--classes", '["cow, red", "dog", "cat"]', "--multilabel", "--watch")
    assert added.code == 0, added.err
    model = one_id(added.out, "mdl")
    assert re.search(r"^output +multilabel: cow, red, dog, cat *$", added.out, re.M)
    output = {"kind": "multilabel", "classes": ["cow, red", "dog", "cat"]}
    assert get(service, f"/v1/models/{model}")["manifest"]["output"] == output

    image = images / "test/cat/00.png"
    refused = adap("score", model, image)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == (
        "expected positive classes, as the model has a logit for each of cow, red, dog, cat; "
        "got none\n"
    )
    assert adap("score", model, image, "--positive", "cow, red").code == 0


# --- work -----------------------------------------------------------------------------------------


def test_training_is_watched_epoch_by_epoch(adap: Adap, service: str, dataset: str) -> None:
    options = training(dataset, epochs=2)
    run = adap("train", *options, "--method", "adap_lpn", "--set", "method.lambda=2", "--watch")
    assert run.code == 0
    epochs = re.findall(r"^train adap_lpn: epoch (\d)/2  surrogate AP .*  robust AP", run.err, re.M)
    assert epochs == ["1", "2"]
    model_id = one_id(run.out.split("Attack it:")[1], "mdl")
    trained = get(service, f"/v1/models/{model_id}")["manifest"]["training"]
    assert trained["method"]["lambda"] == 2
    assert "lambda 2" in run.out
    best = trained["best"]
    assert re.search(rf"^clean AP +{best['clean_ap']:.4f} *$", run.out, re.M)


def test_a_training_of_all_classes_and_one_that_starts_from_a_model_are_shown_as_made(
    adap: Adap, service: str, dataset: str
) -> None:
    options = ("--dataset", dataset, "--set", "batch_size=8", "--set", "attack.steps=1", "--watch")
    still = ("--set", "optimizer.name=sgd", "--set", "optimizer.lr=1e-9")
    run = adap(
        *("train", *options, *still, "--each", "--method", "ce", "--epochs", "50"),
        *("--set", "validation.patience=1", "--set", "ema=0.5"),
    )
    assert run.code == 0, run.err
    source = one_id(run.out.split("Attack it:")[1], "mdl")
    made = get(service, f"/v1/models/{source}")["manifest"]
    assert made["training"]["task"] == {"each": True}
    best, done = made["training"]["best"]["epoch"], len(made["training"]["history"])
    assert done == best + 1 < 50
    assert re.search(rf"^best epoch +{best} of {done} *$", run.out, re.M)
    chosen = "validation clean AP of averaged weights (decay 0.5), stopped after 1 epochs without"
    assert chosen in re.sub(r"\s+", " ", run.out)
    assert f"stops early: no epoch was better than {best}" in run.err
    run = adap(
        *("train", *options, "--positive", "cat", "--method", "ap", "--epochs", "1"),
        *("--start-from", source),
    )
    assert run.code == 0, run.err
    assert re.search(rf"^started from +{source}, with a fresh last layer *$", run.out, re.M)
    assert re.search(r"^optimiser +adam \(", run.out, re.M)
    both = adap("train", "--dataset", dataset, "--each", "--positive", "cat")
    assert both.code == 2
    assert "expected --each or --positive, got both" in both.err


def test_a_request_is_a_file_changed_by_options_changed_by_set(
    adap: Adap, dataset: str, tmp_path: Path
) -> None:
    (tmp_path / "request.json").write_text(
        json.dumps({**TINY, "dataset_id": dataset, "method": "ce", "epochs": 9, "seed": 3})
    )
    run = adap(
        *("train", "--config", "request.json", "--positive", "cow", "--epochs", "2"),
        *("--set", "task.positive.0=cat", "--set", "optimizer.lr=1e-4", "--json"),
    )
    asked = run.json["request"]
    assert asked["task"] == {"positive": ["cat"]}
    assert (asked["epochs"], asked["seed"], asked["method"]["name"]) == (2, 3, "ce")
    assert (asked["optimizer"]["lr"], asked["batch_size"]) == (1e-4, TINY["batch_size"])


def test_an_unknown_method_is_refused_with_the_known_ones(adap: Adap, dataset: str) -> None:
    run = adap("train", "--dataset", dataset, "--positive", "cat", "--method", "nope")
    assert run.code == 1
    assert re.fullmatch(r"--method: expected one of ce, .*, adap_lpn, got 'nope'\n", run.err)


def test_an_audit_is_watched_and_shown(adap: Adap, service: str, dataset: str, model: str) -> None:
    run = adap(
        *("audit", "--model", model, "--dataset", dataset, "--attack", "pgd", "--attack", "apgd"),
        *("--epsilon", "8/255", "--set", "attacks.0.steps=3", "--watch"),
    )
    assert run.code == 0
    job_id = one_id(run.out, "job")
    report = get(service, f"/v1/audits/{job_id}/report")
    assert report["provenance"]["config"]["threat"]["epsilon"] == pytest.approx(8 / 255)
    task = report["tasks"][0]
    assert task["attacks"]["pgd"]["attack"]["steps"] == 3
    shown = dict(
        re.findall(r"^(clean|pgd|apgd|worst case|chance|floor) +(\d\.\d{4})", run.out, re.M)
    )
    assert shown == {
        "clean": f"{task['clean']['ap']:.4f}",
        "pgd": f"{task['attacks']['pgd']['ap']:.4f}",
        "apgd": f"{task['attacks']['apgd']['ap']:.4f}",
        "worst case": f"{task['worst_case']['ap']:.4f}",
        "chance": f"{task['chance']:.4f}",
        "floor": f"{task['floor']:.4f}",
    }


def test_a_leaderboard_is_asked_for_one_of_several_settings(
    adap: Adap, service: str, dataset: str, audited: str
) -> None:
    assert audited
    board = adap("leaderboard", dataset, "--json").json
    assert board["setting"]["positive"] == ["cat"]
    assert adap("leaderboard", dataset, "--each", "--json").json == get(
        service, f"/v1/leaderboard?dataset_id={dataset}&each=true"
    )
    none = adap("leaderboard", dataset, "--each")
    assert (none.code, none.out) == (0, "No finished audit on this data set fits.\n")
    both = adap("leaderboard", dataset, "--each", "--positive", "cat")
    assert both.code == 2
    assert "expected --each or --positive, got both" in both.err
    out = io.StringIO()
    two = board | {"other_settings": [board["setting"]]}
    Console(file=out, width=400).print(show.leaderboard(two))
    (hint,) = re.findall(r"Ask for one by (.*)\.", out.getvalue())
    options = set(re.findall(r"--\w+", hint))
    assert options == {
        *("--norm", "--epsilon", "--pipeline", "--sample", "--split", "--positive", "--each")
    }


def test_a_threshold_that_is_not_met_fails_the_command(
    adap: Adap, service: str, dataset: str, model: str
) -> None:
    audit = ("audit", "--model", model, "--dataset", dataset, "--attack", "pgd")
    met, unmet = "worst_case_ap >= 0", "cat.worst_case_ap > 1"
    run = adap(*audit, "--require", met, "--require", unmet, "--watch")
    report = get(service, f"/v1/audits/{one_id(run.out, 'job')}/report")
    got = f"{report['tasks'][0]['worst_case']['ap']:.4f}"
    assert re.search(rf"^{met} +{got} +met *$", run.out, re.M)
    assert re.search(rf"^{unmet} +{got} +not met *$", run.out, re.M)
    assert (run.code, run.err.splitlines()[-1]) == (1, f"Not met: {unmet}")
    assert adap(*audit, "--require", met, "--watch").code == 0

    refused = adap(*audit, "--require", "worst_case >= 0.4")
    assert refused.code == 1
    assert "did you mean worst_case_ap?" in refused.err
    refused = adap(*audit, "--require", "worst_case_ap")
    assert refused.err.startswith("--require: expected a threshold such as")


def test_a_watched_job_that_fails_makes_the_command_fail(
    adap: Adap, service: str, dataset: str
) -> None:
    # each step makes every weight nine times as large, until none is finite
    growing = {"name": "sgd", "lr": 10, "weight_decay": 1, "milestones": []}
    options = training(dataset, epochs=60, optimizer=growing)
    run = adap("train", *options, "--watch")
    assert (run.code, run.out) == (1, "")
    job = get(service, "/v1/jobs?kind=train&limit=1")["data"][0]
    assert job["error"]["code"] == "training_failed"
    assert run.err.endswith(f"The job {job['id']} failed: {job['error']['message']}\n")


def test_a_ranking_is_shown_best_first(adap: Adap, service: str, dataset: str, model: str) -> None:
    run = adap("rank", "--model", model, "--dataset", dataset, "--watch", "--limit", "5")
    assert run.code == 0
    job = get(service, "/v1/jobs?kind=rank&limit=1")["data"][0]
    best = get(service, f"/v1/rankings/{job['id']}?limit=5")["data"]
    lines = [line.split() for line in run.out.splitlines()[1:]]
    assert [line[-1] for line in lines] == [row["example_id"] for row in best]
    assert [line[1] for line in lines] == [f"{row['score']:.4f}" for row in best]

    later = adap("rank", "--job", job["id"], "--limit", "5", "--json")
    assert later.json["data"] == best
    assert f"There is more: adap rank --job {job['id']} --after " in later.err


def test_a_ranking_is_saved_in_the_form_that_its_name_says(
    adap: Adap, model: str, dataset: str, tmp_path: Path
) -> None:
    asked = ("rank", "--model", model, "--dataset", dataset, "--positive", "cat")
    run = adap(*asked, "-o", "all.parquet", "--json")
    assert run.code == 0, run.err
    table = pandas.read_parquet(tmp_path / "all.parquet")
    job = adap("jobs", "list", "--kind", "rank", "--json").json["data"][0]
    assert adap("rank", "--job", job["id"], "-o", "all.csv").out == "Saved all.csv.\n"
    assert adap("rank", "--job", job["id"], "-o", "all.ndjson").code == 0
    for other in (
        pandas.read_csv(tmp_path / "all.csv"),
        pandas.read_json(tmp_path / "all.ndjson", lines=True, precise_float=True),
    ):
        assert_frame_equal(other, table, check_dtype=False)
    assert table["score"].is_monotonic_decreasing
    refused = adap("rank", "--job", job["id"], "-o", "all.xlsx")
    assert (refused.code, "expected a name ending in .csv" in refused.err) == (2, True)


def test_images_are_scored_in_the_order_given(adap: Adap, model: str, images: Path) -> None:
    files = [images / "test/dog/00.png", images / "test/cat/00.png"]
    run = adap("score", model, *files)
    assert run.code == 0
    rows = [line.split() for line in run.out.splitlines()[1:]]
    assert [row[0] for row in rows] == [str(file) for file in files]
    answer = adap("score", model, *files, "--json").json
    assert [row[1] for row in rows] == [f"{item['score']:.4f}" for item in answer["scores"]]
    assert sorted(item["rank"] for item in answer["scores"]) == [1, 2]


def test_an_image_of_another_size_is_fitted_as_asked(
    adap: Adap, model: str, tmp_path: Path
) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (24, 32), np.uint8)
    large = Image.fromarray(noise)
    large.save(tmp_path / "large.png")
    ImageOps.fit(large, (SIDE, SIDE), Image.Resampling.BILINEAR).save(tmp_path / "fitted.png")
    refused = adap("score", model, "large.png")
    assert refused.code == 1
    assert refused.err.startswith("large.png: expected 8x8 pixels (width x height), as the model")
    assert "got 32x24" in refused.err
    cropped = adap("score", model, "large.png", "--resize", "crop", "--json").json["scores"]
    fitted = adap("score", model, "fitted.png", "--json").json["scores"]
    assert cropped[0]["score"] == fitted[0]["score"]


def test_the_version_is_said_without_a_service(adap: Adap) -> None:
    run = adap("--version", ADAP_URL="http://127.0.0.1:1")
    assert run.out == f"adap {version('adap-audit')}\n"


def test_an_image_that_cannot_be_scored_is_named(adap: Adap, model: str, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no image")
    run = adap("score", model, "words.png")
    assert (run.code, run.out) == (1, "")
    assert run.err == (
        "words.png: expected a sound PNG, JPEG or WebP image, got a file of a kind that is not "
        "known here: convert to PNG, as PNG, JPEG, WEBP, BMP, GIF, TIFF are read\n"
    )


# --- sweeps ---------------------------------------------------------------------------------------


def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    pairs = [(one[name], other[name]) for name in ("clean_ap", "robust_ap")]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def test_a_grid_is_trained_and_shown_with_its_pareto_front(
    adap: Adap, service: str, dataset: str
) -> None:
    varied = ["--vary", "method=ce,adap_lpn", "--vary", "optimizer.lr=0.01,0.0001"]
    run = adap("sweep", *training(dataset), *varied, "--name", "first", "--watch")
    assert run.code == 0, run.err
    assert re.search(r"^sweep: \d/4 trials, \d running$", run.err, re.M)
    assert run.err.endswith("sweep: succeeded\n")
    assert len(re.findall(r"sweep: trial \d  method .* clean AP \d.* robust AP \d", run.err)) == 4

    found = get(service, f"/v1/sweeps/{one_id(run.out, 'swp')}")
    rows = re.findall(
        r"^ *(\d) +succeeded +(\w+) +([\d.]+) +([\d.]+) +([\d.]+) +1 +(\*?) +(mdl_\w+)",
        run.out,
        re.M,
    )
    assert rows == [
        (
            str(trial["number"]),
            trial["parameters"]["method"],
            f"{trial['parameters']['optimizer.lr']:.4g}",
            f"{trial['clean_ap']:.4f}",
            f"{trial['robust_ap']:.4f}",
            "*" if trial["on_front"] else "",
            trial["model_id"],
        )
        for trial in found["trials"]
    ]
    for trial in found["trials"]:
        beaten = any(dominates(other, trial) for other in found["trials"])
        assert trial["on_front"] == (not beaten)
    for trial in found["trials"]:  # the figures are those of the models
        best = get(service, f"/v1/models/{trial['model_id']}")["manifest"]["training"]["best"]
        assert (trial["clean_ap"], trial["robust_ap"]) == (best["clean_ap"], best["robust_ap"])

    assert adap("sweeps", "show", found["id"], "--json").json == found
    assert re.search(rf"{found['id']} +first +succeeded +4 +4 ", adap("sweeps", "list").out)


def test_a_search_is_asked_for_cancelled_and_shown(adap: Adap, service: str, dataset: str) -> None:
    varied = ["--vary", "method.lambda=0.1..10:log", "--trials", 6, "--at-once", 1]
    options = training(dataset, epochs=1000)
    made = adap("sweep", *options, "--set", "method=adap_lpn", *varied, "--json").json
    assert made["request"]["search"] == {
        "kind": "tpe",
        "parameters": {"method.lambda": {"low": 0.1, "high": 10, "log": True}},
        "trials": 6,
        "at_once": 1,
        "maximise": "both",
        "seed": 0,
    }
    assert len(made["trials"]) == 1
    cancelled = adap("sweeps", "cancel", made["id"])
    assert cancelled.code == 0
    watched = adap("sweeps", "watch", made["id"])
    assert watched.code == 1
    assert watched.err.endswith(f"The sweep {made['id']} has ended cancelled.\n")
    assert get(service, f"/v1/sweeps/{made['id']}")["counts"] == {"cancelled": 1}


# --- queues ---------------------------------------------------------------------------------------


def test_a_drain_ends_when_what_runs_has_ended_and_what_came_meanwhile_waits(
    adap: Adap, service: str, dataset: str
) -> None:
    running = adap("train", *training(dataset, epochs=1000), "--json").json["id"]
    with httpx.stream(
        "GET",
        f"{service}/v1/jobs/{running}/events",
        headers={"Accept": "text/event-stream"},
        timeout=120,
        trust_env=False,
    ) as events:
        assert any(line == "event: epoch" for line in events.iter_lines())
    drain = [ADAP, "--url", service, "queue", "drain", "compute", "--reason", "upgrade"]
    with subprocess.Popen(
        drain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as draining:
        assert draining.stdout is not None
        assert draining.stderr is not None
        try:
            assert draining.stderr.readline() == "drain: 1 running\n"
            waiting = adap("train", *training(dataset), "--json").json["id"]
            why = "the queue 'compute' is paused: upgrade"
            assert get(service, f"/v1/jobs/{waiting}")["waiting_for"] == why
            adap("jobs", "cancel", running)
            shown = draining.stdout.read()
            assert draining.wait(120) == 0
            assert get(service, f"/v1/jobs/{running}")["status"] == "cancelled"
            assert re.search(r"^compute +no, paused since \S+ \S+ +1 +0 +upgrade", shown, re.M)
            assert get(service, f"/v1/jobs/{waiting}")["attempt"] == 0
            assert re.search(r"^intake +yes", adap("queue", "show").out, re.M)
        finally:
            draining.kill()
            adap("jobs", "cancel", running)
            resumed = adap("queue", "resume")
    assert [line.split()[:2] for line in resumed.out.splitlines()[1:]] == [
        ["compute", "yes"],
        ["intake", "yes"],
    ]
    assert adap("jobs", "watch", waiting).code == 0


def test_whoever_drains_is_told_that_another_has_resumed_the_queue(
    adap: Adap, service: str, dataset: str
) -> None:
    running = adap("train", *training(dataset, epochs=1000), "--json").json["id"]
    while get(service, f"/v1/jobs/{running}")["status"] != "running":
        time.sleep(0.05)
    with subprocess.Popen(
        [ADAP, "--url", service, "queue", "drain"], stderr=subprocess.PIPE, text=True
    ) as draining:
        assert draining.stderr is not None
        try:
            draining.stderr.readline()
            adap("queue", "resume")
            assert "The queue compute was resumed meanwhile." in draining.stderr.read()
            assert draining.wait(120) == 1
        finally:
            draining.kill()
            adap("queue", "resume")
            adap("jobs", "cancel", running)
    adap("jobs", "watch", running)


# --- jobs -----------------------------------------------------------------------------------------


def test_jobs_are_listed_shown_and_watched(
    adap: Adap, service: str, trained: dict[str, Any], audited: str
) -> None:
    audits = ("jobs", "list", "--kind", "audit", "--status", "succeeded")
    assert adap(*audits, "--json").json == get(service, "/v1/jobs?kind=audit&status=succeeded")
    assert re.search(rf"^{audited} .*audit +succeeded", adap(*audits).out, re.M)
    shown = adap("jobs", "show", trained["id"])
    assert max(len(line.rstrip()) for line in shown.out.splitlines()) <= 100
    assert re.search(r"^(request)? +method adap_lpn \(margin ", shown.out, re.M)
    assert re.search(rf"^model +{trained['result']['model_id']} *$", shown.out, re.M)
    watched = adap("jobs", "watch", trained["id"], audited, "--json")
    assert [job["id"] for job in watched.json] == [trained["id"], audited]
    assert "train adap_lpn: epoch 1/1" in watched.err


def test_ctrl_c_leaves_the_job_at_work_and_cancel_ends_it(
    adap: Adap, service: str, dataset: str, tmp_path: Path
) -> None:
    queued = adap("train", *training(dataset, epochs=1000), "--json").json
    job_id = queued["id"]
    watching = subprocess.Popen(
        [ADAP, "--url", service, "jobs", "watch", job_id], stderr=subprocess.PIPE, text=True
    )
    assert watching.stderr is not None
    with watching.stderr as lines:
        while "epoch 1/1000" not in lines.readline():
            pass
        watching.send_signal(signal.SIGINT)
        rest = lines.read()
    assert watching.wait(10) == 130
    assert rest.splitlines()[-2:] == [
        f"{job_id} goes on without you. Watch it again: adap jobs watch {job_id}",
        f"Stop it: adap jobs cancel {job_id}",
    ]
    assert get(service, f"/v1/jobs/{job_id}")["status"] == "running"

    cancelled = adap("jobs", "cancel", job_id)
    assert (cancelled.code, cancelled.out) == (0, f"{job_id} is cancelling.\n")
    ended = adap("jobs", "watch", job_id)
    assert (ended.code, ended.err.splitlines()[-1]) == (1, f"The job {job_id} was cancelled.")
    assert (
        adap("jobs", "cancel", job_id).err
        == f"The job {job_id} has ended already: it is cancelled.\n"
    )

    retried = adap("jobs", "retry", job_id)
    again = re.findall(r"job_[0-9a-z]{26}", retried.out)[0]
    assert retried.out == f"{again} is queued. Watch it: adap jobs watch {again}\n"
    assert get(service, f"/v1/jobs/{again}")["retry_of"] == job_id
    assert adap("jobs", "cancel", again).code == 0


def test_all_that_failed_by_one_code_is_run_again_once_and_what_cannot_be_is_named(
    tmp_path: Path,
) -> None:
    with running_in(tmp_path) as api:
        fails = {"away": "storage_unavailable", "removed": "storage_unavailable", "boom": "boom"}
        failed = {}
        for name, code in fails.items():
            dataset = api.dataset()
            request = {"dataset_id": dataset, "task": {"positive": ["cat"]}}
            failed[name] = api.http.post("/v1/training-jobs", json=request).json()["id"]
            with api.database.writing() as session:
                claim = jobs.claim(session, failed[name], worker="w", lease_s=60)
                assert claim is not None
                jobs.fail(session, claim, jobs.JobError(code, "It failed.", retryable=True))
            if name == "removed":
                assert api.http.delete(f"/v1/datasets/{dataset}").status_code == 204

        def retry_all(*options: str) -> Any:
            command = [ADAP, "jobs", "retry", *options, "--json", "--url", str(api.http.base_url)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return json.loads(done.stdout)

        again = retry_all("--failed-since", "2h", "--code", "storage_unavailable")
        assert [job["retry_of"] for job in again["retried"]] == [failed["away"]]
        assert [job["id"] for job in again["left"]] == [failed["removed"]]
        assert "removed since" in again["left"][0]["reason"]
        rest = retry_all("--failed-since", "2h")
        assert [job["retry_of"] for job in rest["retried"]] == [failed["boom"]]
        with api.database.writing() as session:
            session.execute(update(JobRow).values(finished_at=JobRow.created_at - 7201))
        assert retry_all("--failed-since", "2h") == {"retried": [], "left": []}


def test_a_queued_job_shows_what_it_goes_on_from() -> None:
    done = {"phase": "training", "completed": 3, "total": 8, "unit": "epochs"}
    job = {"status": "queued", "queue_position": 2, "done": False, "progress": done}
    assert show.job_progress(job) == "2 ahead, goes on from training 3/8 epochs"
    assert show.job_progress({**job, "progress": None}) == "2 ahead"
    assert show.job_progress({**job, "status": "running"}) == "training 3/8 epochs"
    assert show.job_progress({**job, "status": "failed", "done": True}) == ""


def test_a_job_that_has_not_failed_is_not_retried(adap: Adap, trained: dict[str, Any]) -> None:
    run = adap("jobs", "retry", trained["id"])
    assert (run.code, run.err) == (
        1,
        "Expected a job that failed or was cancelled, got succeeded.\n",
    )


# --- reports and keys -----------------------------------------------------------------------------


def test_a_report_is_shown_saved_and_opened(
    adap: Adap, service: str, audited: str, tmp_path: Path
) -> None:
    url = f"{service}/v1/audits/{audited}/report"
    page = httpx.get(url, headers={"Accept": "text/html"}, trust_env=False).content
    figures = get(service, f"/v1/audits/{audited}/report")

    assert (
        f"clean        {figures['tasks'][0]['clean']['ap']:.4f}"
        in adap("report", "show", audited).out
    )
    assert adap("report", "show", audited, "--json").json == figures
    assert adap("report", "save", audited).out == f"Saved {audited}.html.\n"
    assert (tmp_path / f"{audited}.html").read_bytes() == page
    assert adap("report", "save", audited, "-o", "figures.json").code == 0
    assert json.loads((tmp_path / "figures.json").read_text()) == figures

    for suffix, form in (
        *(("md", "text/markdown"), ("xml", "application/xml")),
        ("sarif", "application/sarif+json"),
    ):
        assert adap("report", "save", audited, "-o", f"report.{suffix}").code == 0
        served = httpx.get(url, headers={"Accept": form}, trust_env=False).content
        assert (tmp_path / f"report.{suffix}").read_bytes() == served

    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    opened = adap("report", "open", audited, "--json", BROWSER=str(browser), TMPDIR=str(tmp_path))
    assert opened.json["opened"] is True
    assert Path(opened.json["path"]).read_bytes() == page
    assert (tmp_path / "opened").read_text() == f"file://{opened.json['path']}\n"


def test_keys_are_made_used_and_revoked_and_the_machine_itself_always_gets_in(
    adap: Adap, tmp_path: Path
) -> None:
    with running_alone(tmp_path) as (api, _):

        def run(*arguments: str, **environment: str) -> Run:
            return adap("key", *arguments, ADAP_URL=str(api.http.base_url), **environment)

        refused = run("create", "--name", "me")
        assert (refused.code, refused.err) == (
            1,
            "The first key must have the scope 'admin', or nobody could create another.\n",
        )
        made = run("create", "--name", "me", "--scope", "admin", "--json").json
        assert made["scopes"] == ["read", "write", "admin"]
        locked = run("list")
        assert (locked.code, locked.err) == (
            1,
            "Expected an API key (--api-key, or ADAP_API_KEY in the environment), got none.\n",
        )
        listed = run("list", ADAP_API_KEY=made["key"])
        assert re.search(rf"^{made['id']} +me +local +read, write, admin", listed.out, re.M)
        assert made["key"] not in listed.out
        reader = run(
            *("create", "--name", "guest", "--scope", "read", "--expires-days", "1"),
            *("--api-key", made["key"]),
        )
        guest = reader.out.split()[0]
        assert reader.out.endswith(f"export ADAP_API_KEY={guest}\n")
        denied = run("list", "--api-key", guest)
        assert denied.err == "This needs an API key with the scope 'admin'.\n"
        guest_id = run("list", "--json", "--api-key", made["key"]).json["data"][0]["id"]
        run("revoke", guest_id, "--api-key", made["key"])
        ended = run("list", "--api-key", guest)
        assert ended.err == "This API key is unknown, revoked or expired.\n"

        last = run("revoke", made["id"], "--api-key", made["key"])
        assert last.code == 1
        assert "create another first" in last.err
        revoked = run("revoke", made["id"], "--allow-no-admin", "--api-key", made["key"])
        assert revoked.out == f"Revoked {made['id']}.\n"
        assert run("list").code == 1  # it does not fall open

        elsewhere = run("create", "--name", "me", "--scope", "admin", "--home", str(tmp_path))
        assert elsewhere.code == 1
        assert "Nor could the key be made on this machine: " in elsewhere.err
        home = str(api.settings.home)
        again = run("create", "--name", "me", "--scope", "admin", "--json", ADAP_HOME=home)
        assert f"So the key was made in sqlite:///{home}/adap.db itself." in again.err
        assert run("list", ADAP_API_KEY=again.json["key"]).code == 0


# --- the service itself ---------------------------------------------------------------------------


def read_until(stream: Any, wanted: str, *, limit_s: float = 60) -> str:
    """What comes on a pipe, up to a text."""
    text, deadline = "", time.monotonic() + limit_s
    while wanted not in text:
        assert time.monotonic() < deadline, text
        if select.select([stream], [], [], 0.5)[0]:
            chunk = os.read(stream.fileno(), 4096).decode()
            assert chunk, text
            text += chunk
    return text


def test_up_says_where_it_is_and_what_to_try_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [ADAP, "up", "--port", "0", "--home", tmp_path / "home"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        with process.stdout as out:
            text = read_until(out, "adap audit")
        url = re.findall(r"http://127\.0\.0\.1:\d+", text)[0]
        assert get(url, "/readyz")["status"] == "ok"
        tried = [line.split() for line in text.splitlines() if "adap" in line.partition(" --")[0]]
        assert [words[1] for words in tried if Path(words[0]).name == "adap"] == [
            "dataset",
            "train",
            "audit",
        ]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_up_says_when_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [ADAP, "up", "--port", str(port), "--home", tmp_path],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode == 1
    assert run.stderr == (
        f"Cannot listen on 127.0.0.1:{port}: Address already in use. Choose another with --port; "
        "--port 0 takes any free one.\n"
    )
