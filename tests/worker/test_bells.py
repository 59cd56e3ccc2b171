"""Bells are rung from a thread of their own, whatever happens to the broker meanwhile."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adap.store.settings import Settings
from adap.store.tables import JobKind, JobRow, JobStatus
from adap.worker.app import AWAY_S, Bells
from tests.worker.conftest import broker, ringing


def wait(what: object, *, seconds: float = 10) -> None:
    assert callable(what)
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def bells(tmp_path: Path) -> Iterator[Bells]:
    with ringing(Settings(home=tmp_path, broker_url=f"redis+socket://{tmp_path}/v.sock")) as made:
        yield made


def job(number: int) -> JobRow:
    return JobRow(
        id=f"job_{number}", kind=JobKind.TRAIN, queue="compute", status=JobStatus.QUEUED, tenant="t"
    )


def test_every_bell_is_heard_in_its_order(bells: Bells, tmp_path: Path) -> None:
    with broker(tmp_path) as client:
        bells.ring(job(0))
        wait(lambda: client.llen("compute") == 1)
        connections = client.info("stats")["total_connections_received"]
        for number in range(1, 50):
            bells.ring(job(number))
        wait(lambda: client.llen("compute") == 50)
        heard = [str(message) for message in reversed(client.lrange("compute", 0, -1))]
        assert [f"job_{number}" in text for number, text in enumerate(heard)] == [True] * 50
        assert client.info("stats")["total_connections_received"] == connections


def test_a_broker_that_comes_back_is_rung_again(bells: Bells, tmp_path: Path) -> None:
    with broker(tmp_path) as client:
        bells.ring(job(1))
        wait(lambda: client.llen("compute") == 1)
    with broker(tmp_path) as client:  # the kept connection has broken, and nobody noticed
        bells.ring(job(2))
        wait(lambda: client.llen("compute") == 1)


def test_who_rings_waits_for_no_broker_that_is_away(
    bells: Bells, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    for number in range(1000):
        bells.ring(job(number))
    assert time.monotonic() - started < 1
    wait(lambda: [r for r in caplog.records if r.message == "doorbell.failed"])
    with broker(tmp_path) as client:
        time.sleep(AWAY_S)
        bells.ring(job(1000))
        wait(lambda: client.llen("compute") >= 1)
        assert client.llen("compute") == 1  # none was kept for its return
