"""PostgreSQL, the broker and the API go away, at their worst moments too: nothing is lost."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text

from adap.store import jobs
from adap.store.database import Database
from adap.store.tables import IdempotencyRow, JobRow, JobStatus
from adap.worker.embedded import held_port
from tests.postgres import postgres_server
from tests.worker.conftest import Plant, broker, plant_on, ringing

POSTS = 12
AWAY_S = 2.0
LOOK_S = 10.0


@contextmanager
def api_process(plant: Plant, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The API as a process of its own on the plant's home and database."""
    home = plant.settings.home
    with held_port("127.0.0.1", 0) as port, (home / "api.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "adap.api"],
            env={
                **os.environ,
                "ADAP_HOME": str(home),
                "ADAP_DATABASE_URL": plant.settings.database,
                "ADAP_BROKER_URL": plant.settings.broker_url or "",
                "ADAP_PORT": str(port),
                **environment,
            },
            stderr=log,
        )
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, (home / "api.log").read_text()[-2000:]
            with suppress(httpx.TransportError):
                return httpx.get(f"{url}/livez").is_success
            return False

        try:
            plant.wait(answers)
            yield url, process
        finally:
            process.kill()
            process.wait()


def training(dataset: str, **fields: Any) -> dict[str, Any]:
    return {
        "dataset_id": dataset,
        "task": {"positive": ["positive"]},
        "epochs": 1,
        "batch_size": 32,
        "attack": {"steps": 1},
        **fields,
    }


def count(database: Database, table: Any) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize(
    ("leave", "come_back"), [("stop", "start"), ("freeze", "thaw")], ids=["restarted", "frozen"]
)
def test_an_outage_of_postgresql_under_load_costs_time_and_nothing_else(
    tmp_path: Path, leave: str, come_back: str
) -> None:
    with postgres_server() as server, plant_on(tmp_path, database_url=server.url) as plant:
        dataset = plant.dataset()
        limit = {"ADAP_DATABASE_LIMIT_S": str(AWAY_S / 4)}
        plant.start_worker(ADAP_LEASE_S="20", **limit)
        with (
            api_process(plant, **limit) as (url, api),
            httpx.Client(base_url=url, timeout=30) as http,
        ):
            long = http.post("/v1/training-jobs", json=training(dataset, epochs=40)).json()["id"]
            plant.wait_epoch(long, 1)
            answers: list[tuple[int, float, httpx.Headers]] = []
            over = threading.Event()

            def ask() -> None:
                while not over.is_set():
                    asked(http.get("/v1/jobs"))
                    time.sleep(0.05)

            def asked(response: httpx.Response) -> httpx.Response:
                answers.append(
                    (response.status_code, response.elapsed.total_seconds(), response.headers)
                )
                return response

            def post(number: int) -> str:
                """A client that sends again until it is taken, under one key."""
                time.sleep(number * 2 * AWAY_S / POSTS)
                while True:
                    response = asked(
                        http.post(
                            "/v1/training-jobs",
                            json=training(dataset, seed=number),
                            headers={"Idempotency-Key": f"job-{number}"},
                        )
                    )
                    if response.status_code == 201:
                        return str(response.json()["id"])
                    assert response.status_code == 503, response.text
                    time.sleep(0.2)

            with ThreadPoolExecutor(POSTS + 1) as pool, at_last(over.set):
                asking = pool.submit(ask)
                posting = [pool.submit(post, number) for number in range(POSTS)]
                time.sleep(AWAY_S / 2)
                getattr(server, leave)()
                time.sleep(AWAY_S)
                getattr(server, come_back)()
                queued = [future.result() for future in posting]
                over.set()
                asking.result()
            assert {status for status, _, _ in answers} == {200, 201, 503}
            assert all("retry-after" in headers for status, _, headers in answers if status == 503)
            assert max(seconds for _, seconds, _ in answers) < 10
            assert len(set(queued)) == POSTS
            assert count(plant.database, JobRow) == POSTS + 1
            for job in (long, *queued):
                row = plant.wait_done(job)
                assert (row.status, row.lost) == (JobStatus.SUCCEEDED, 0), row.error
            names = [data["epoch"] for name, data in plant.events(long) if name == "epoch"]
            assert sorted(set(names)) == [*range(1, 41)]
            assert api.poll() is None
            assert plant.processes[0].poll() is None, "neither was started again"
        plant.database.dispose()


def test_a_broker_that_is_emptied_and_killed_under_load_loses_no_job(
    plant: Plant, tmp_path: Path
) -> None:
    """A bell is needed for nothing but speed; and the worker hears again without a restart."""
    url = f"redis+socket://{tmp_path}/v.sock"
    plant.settings = plant.settings.model_copy(update={"broker_url": url})
    dataset, moments = plant.dataset(), random.Random(0)
    with ringing(plant.settings) as bells:

        def post() -> str:
            job = plant.train(dataset, epochs=1)
            bells.ring(plant.read(job))
            return job

        with broker(tmp_path) as client:
            worker = plant.start_worker(ADAP_SWEEP_S=str(LOOK_S))
            plant.wait(lambda: "worker.ready" in plant.log_of(0))
            queued = []
            for _ in range(15):
                queued.append(post())
                time.sleep(moments.uniform(0, 0.3))
                client.flushall()
        queued += [post() for _ in range(5)]  # while there is none
        with broker(tmp_path):
            for job in queued:
                row = plant.wait_done(job)
                assert (row.status, row.attempt) == (JobStatus.SUCCEEDED, 1), row.error
            plant.wait(lambda: all(rung_and_started(plant, post()) for _ in range(8)))
        assert worker.poll() is None


def rung_and_started(plant: Plant, job: str) -> bool:
    """Whether a job that was rung for began long before an idle worker looks by itself."""
    row = plant.wait_done(job)
    assert (row.status, row.attempt) == (JobStatus.SUCCEEDED, 1)
    assert row.started_at is not None
    return row.started_at - row.created_at < LOOK_S / 4


def test_a_stream_of_events_goes_on_at_another_api_when_one_is_killed(plant: Plant) -> None:
    job, moments = plant.train(plant.dataset()), random.Random(0)
    with plant.database.writing() as session:
        claim = jobs.claim(session, job, worker="w", lease_s=600)
    assert claim is not None
    over = threading.Event()

    def record() -> None:
        while not over.is_set():
            with plant.database.writing() as session:
                jobs.record(session, claim, "tick", {})
            time.sleep(0.01)
        with plant.database.writing() as session:
            jobs.succeed(session, claim, {})

    got: list[int] = []
    with (
        ThreadPoolExecutor(1) as pool,
        at_last(over.set),
        api_process(plant) as (still_there, _),
    ):
        recording = pool.submit(record)
        for _ in range(3):
            with api_process(plant) as (url, process):
                threading.Timer(moments.uniform(0.1, 0.6), process.kill).start()
                got += followed(url, job, after=got[-1] if got else 0)
            for _ in range(4):
                got += followed(
                    still_there, job, after=got[-1] if got else 0, most=moments.randint(1, 20)
                )
        over.set()
        recording.result()
        got += followed(still_there, job, after=got[-1])
    assert got == list(range(1, len(plant.events(job)) + 1))


@contextmanager
def at_last(what: Callable[[], object]) -> Iterator[None]:
    """Do this at the end, whatever happens before."""
    try:
        yield
    finally:
        what()


def followed(url: str, job: str, *, after: int, most: int | None = None) -> list[int]:
    """The numbers of the events of a job's stream after one, up to so many, or to its end."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
    numbers: list[int] = []
    with (
        suppress(httpx.TransportError),  # the end of the API that sent it
        httpx.stream("GET", f"{url}/v1/jobs/{job}/events", headers=headers, timeout=20) as stream,
    ):
        number = None
        for line in stream.iter_lines():
            if line.startswith("id:"):
                number = int(line.removeprefix("id:"))
            elif not line and number is not None:  # the event is whole
                numbers.append(number)
                number = None
                if len(numbers) == most:
                    break
    return numbers


def test_an_api_that_is_killed_in_the_transaction_has_made_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    with plant_on(tmp_path, database_url=postgres_url) as plant:
        body = training(plant.dataset())
        key = {"Idempotency-Key": "mine"}

        def post(url: str) -> httpx.Response:
            return httpx.post(f"{url}/v1/training-jobs", json=body, headers=key, timeout=60)

        with api_process(plant) as (url, process), ThreadPoolExecutor(1) as pool:
            with plant.database.writing() as session:
                # the row of the job is in, its first event waits for this lock
                session.execute(text("LOCK TABLE job_events IN EXCLUSIVE MODE"))
                answer = pool.submit(post, url)
                plant.wait(lambda: waits_for_a_lock(plant.database), because="it is in between")
                process.kill()
                process.wait()
            with pytest.raises(httpx.TransportError):
                answer.result()
        plant.wait(lambda: not waits_for_a_lock(plant.database))
        assert (count(plant.database, JobRow), count(plant.database, IdempotencyRow)) == (0, 0)
        with api_process(plant) as (url, _):
            with ThreadPoolExecutor(20) as pool:  # the client sends it again, and many times
                again = [pool.submit(post, url) for _ in range(20)]
            answers = [future.result() for future in again]
        assert {answer.status_code for answer in answers} <= {201, 409}
        made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
        assert len(made) == count(plant.database, JobRow) == 1


def waits_for_a_lock(database: Database) -> bool:
    with database.reading() as session:
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(session.scalar(waiting))


def test_an_api_that_is_killed_before_it_can_ring_has_made_a_job_that_runs(plant: Plant) -> None:
    dataset = plant.dataset()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        # a broker that takes connections and never says a word
        broker = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with api_process(plant, ADAP_BROKER_URL=broker) as (url, process):
            silent.settimeout(20)
            answer: Future[httpx.Response] = pool.submit(
                httpx.post, f"{url}/v1/training-jobs", json=training(dataset), timeout=60
            )
            ringing, _ = silent.accept()
            with ringing:
                process.kill()
                process.wait()
        with suppress(httpx.TransportError):  # it may have been answered by then
            assert answer.result().status_code == 201
    with plant.database.reading() as session:
        (job,) = session.scalars(select(JobRow.id)).all()
    plant.start_worker()
    row = plant.wait_done(job)
    assert (row.status, row.attempt) == (JobStatus.SUCCEEDED, 1)
