"""A folder without splits: what follows is said before a training, and an option mends it."""

from pathlib import Path
from shutil import copytree

import pytest

from adap.client.client import Client
from tests.client.conftest import Adap

SAID = "The data set has no test split: every image is trained on or chooses the epoch"


@pytest.fixture
def unsplit(images: Path, tmp_path: Path) -> Path:
    return copytree(images / "train", tmp_path / "photos")


def test_a_training_on_a_folder_without_a_test_split_says_what_follows(
    client: Client, adap: Adap, unsplit: Path
) -> None:
    assert adap("dataset", "add", unsplit, "--name", "all of them", "--watch").code == 0
    train = ("train", "--dataset", "all of them", "--positive", "cat", "--preset", "quick")
    before = adap(*train, "--sample", "16", "--dry-run")
    assert "on a sample of about 16 of 24 images, each class in its share" in before.out
    assert f"caution   {SAID}" in before.out
    assert "--hold-out 0.2" in before.out
    small = ("--sample", "16", "--epochs", "3", "--set", "batch_size=16", "--set", "attack.steps=1")
    run = adap("--json", *train, *small, "--watch")
    assert run.code == 0
    assert run.err.count(SAID) == 1
    facts = run.json["result"]["summary"]["facts"]
    assert [fact["code"] for fact in facts[:2]] == ["no_test_split", "trained_on_a_sample"]
    assert "A sample of 16 of 24 examples was trained on" in run.err
    learned = ("train_examples", "validation_examples")
    assert sum(run.json["result"]["summary"][part] for part in learned) == 16
    history = run.json["result"]["summary"]["history"]
    select_by = run.json["result"]["summary"]["select_by"]
    best = max(record[select_by] for record in history)
    tied = sum(record[select_by] == best for record in history)
    assert ("tied_epochs" in {fact["code"] for fact in facts}) == (tied > 1)
    model = client.models.show(run.json["result"]["model_id"])
    assert model["manifest"]["training"]["facts"] == facts
    assert "all of them, a sample of about 16 images" in adap("model", "show", model["id"]).out


def test_hold_out_keeps_a_share_back_that_no_training_sees(adap: Adap, unsplit: Path) -> None:
    line = ("dataset", "add", unsplit, "--name", "held", "--hold-out", "0.25", "--watch")
    run = adap("--json", *line)
    assert run.code == 0
    assert run.json["summary"]["split_examples"] == {"train": 18, "test": 6}
    assert run.json["summary"]["splits"]["test"] == {"cat": 3, "dog": 3}
    train = ("train", "--dataset", "held", "--positive", "cat", "--dry-run")
    assert "caution" not in adap(*train).out
    refused = adap("dataset", "add", unsplit, "--hold-out", "1.5")
    assert refused.code == 1
    assert "--hold-out: expected" in refused.err
