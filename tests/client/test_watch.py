"""Progress for people: off a terminal something is said every so often, and why a job waits."""

import io
import re
import time

from rich.console import Console

from adap.client.base import Event
from adap.client.client import Client
from adap.client.values import Progress, progress_of
from adap.client.watch import open_board, queued_text
from tests.client.conftest import TINY, Adap


def test_off_a_terminal_a_line_that_says_nothing_new_repeats_itself_until_it_ends() -> None:
    said = io.StringIO()
    with open_board(Console(file=said, width=200), sign_of_life_s=0.02) as board:
        line = board.line("audit")
        line.show("queued", completed=0, total=1, text="queued, 2 ahead")
        while said.getvalue().count("\n") < 3:
            time.sleep(0.01)
        line.end("done in 1 s", well=True)
        lines = said.getvalue().splitlines()
        time.sleep(0.1)  # five times as long as before a word
        assert said.getvalue().splitlines() == lines
    assert lines[0] == "audit: queued, 2 ahead"
    assert re.fullmatch(r"audit: queued, 2 ahead \(after \d+ s\)", lines[1])
    assert lines[-1] == "audit: done in 1 s"


def test_a_job_that_waits_says_its_place_and_what_runs_before_it(
    client: Client, dataset: str
) -> None:
    long = {**TINY, "epochs": 1000, "dataset_id": dataset, "task": {"positive": ["cat"]}}
    first, second, third = (client.train({**long, "seed": seed}) for seed in range(3))
    try:
        while client.jobs.show(first["id"])["progress"] is None:
            time.sleep(0.1)
        queued = [
            job for job in (second, third) if client.jobs.show(job["id"])["status"] == "queued"
        ]
        assert queued, "the service of the tests has a worker or two"
        last = queued[-1]
        text = queued_text(client, last["id"])
        ahead = client.jobs.show(last["id"])["queue_position"]
        assert text.startswith(f"queued, {ahead} ahead" if ahead else "queued")
        assert re.search(r"; now running: train training [\d,]+/1,000 epochs", text), text
    finally:
        for job in (third, second, first):
            client.jobs.cancel(job["id"])


def test_a_job_that_was_cancelled_is_not_called_failed(
    client: Client, adap: Adap, dataset: str
) -> None:
    asked = {**TINY, "epochs": 1000, "seed": 9, "dataset_id": dataset}
    job = client.train({**asked, "task": {"positive": ["cat"]}})
    client.jobs.cancel(job["id"])
    run = adap("jobs", "watch", job["id"])
    assert run.code == 1
    assert "train adap_lpn: cancelled\n" in run.err
    assert f"The job {job['id']} was cancelled." in run.err
    assert "failed" not in run.err


def test_progress_is_told_while_a_job_is_queued_too() -> None:
    waiting = {"status": "queued", "progress": None, "queue_position": 3}
    assert progress_of(Event("progress", waiting, None)) == Progress(
        phase="queued", completed=0, total=3, unit="jobs ahead", eta_s=None
    )
    assert progress_of(Event("epoch", {}, 1)) is None


def test_the_progress_of_an_audit_counts_its_images(
    adap: Adap, client: Client, model: str, dataset: str
) -> None:
    run = adap(
        *("audit", "--model", model, "--dataset", dataset, "--seed", 77),
        *("--attack", "pgd", "--attack", "apgd", "--watch"),
    )
    assert run.code == 0, run.err
    first, *_ = run.err.splitlines()
    assert re.fullmatch(r"audit: job_[0-9a-z]{26}", first)
    images = client.get(f"/v1/audits/{first.split()[1]}/report")["tasks"][0]["examples"]
    assert set(re.findall(r"attacking [\d,]+/([\d,]+) images", run.err)) <= {str(images)}
