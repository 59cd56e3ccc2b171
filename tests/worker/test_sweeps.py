"""Searches under real workers: every trial is made once, whoever dies, and what was asked ends."""

from typing import Any

from sqlalchemy import select

from adap.core.training.sweeps import SweepRequest
from adap.store import jobs, sweeps
from adap.store.tables import LIVE, JobRow, JobStatus, SweepRow, TrialRow
from adap.worker.sweeps import advance
from tests.worker.conftest import Plant

SPACE = {
    "method.lambda": {"low": 0.1, "high": 10, "log": True},
    "method": ["adap_ln", "adap_lpn"],
}


def start(plant: Plant, *, epochs: int = 1, **search: Any) -> str:
    """A search without trials, as after a crash between its row and the first of them."""
    dataset = plant.dataset()
    request = SweepRequest.model_validate(
        {
            "training": {
                "dataset_id": dataset,
                "task": {"positive": ["positive"]},
                "epochs": epochs,
                "batch_size": 32,
                "attack": {"steps": 1},
            },
            "search": {"kind": "tpe", "parameters": SPACE, "trials": 5, "at_once": 2, **search},
        }
    )
    with plant.database.writing() as session:
        return sweeps.create(
            session,
            tenant="local",
            name=None,
            request=request.as_json(),
            dataset_id=dataset,
            planned=request.planned,
        ).id


def trials(plant: Plant, sweep_id: str) -> list[tuple[TrialRow, JobRow]]:
    with plant.database.reading() as session:
        return list(sweeps.trials(session, sweep_id))


def wait_ended(plant: Plant, sweep_id: str, *, timeout_s: float = 120) -> None:
    def ended() -> bool:
        with plant.database.reading() as session:
            open_ = session.get_one(SweepRow, sweep_id).unfinished
        return not open_ and all(job.status not in LIVE for _, job in trials(plant, sweep_id))

    plant.wait(ended, timeout_s=timeout_s, because="the sweep to end")


def test_a_search_runs_to_its_end_with_no_more_at_once_than_asked(plant: Plant) -> None:
    sweep_id = start(plant)
    plant.start_worker()
    plant.start_worker()
    most = 0

    def ended() -> bool:
        nonlocal most
        present = trials(plant, sweep_id)
        most = max(most, sum(job.status in LIVE for _, job in present))
        return len(present) == 5 and all(job.status not in LIVE for _, job in present)

    plant.wait(ended, timeout_s=120)
    present = trials(plant, sweep_id)
    assert [row.number for row, _ in present] == [0, 1, 2, 3, 4]
    assert most == 2
    with plant.database.reading() as session:
        assert len(session.scalars(select(JobRow)).all()) == 5
    for row, job in present:
        assert job.status == JobStatus.SUCCEEDED, job.error
        assert job.request["method"]["lambda"] == row.parameters["method.lambda"]
        assert job.request["method"]["name"] == row.parameters["method"]
        best = (job.result or {})["summary"]["best"]
        assert 0 <= best["robust_ap"] <= best["clean_ap"] <= 1
    assert len({row.parameters["method.lambda"] for row, _ in present}) == 5


def test_a_search_goes_on_after_the_worker_that_ran_a_trial_was_killed(plant: Plant) -> None:
    sweep_id = start(plant, epochs=40, trials=2, at_once=1)
    first = plant.start_worker()
    plant.wait(lambda: trials(plant, sweep_id), because="the first trial")
    plant.wait_epoch(trials(plant, sweep_id)[0][1].id, 1)
    first.kill()
    assert len(trials(plant, sweep_id)) == 1, "it ended before its worker could be killed"
    plant.end_leases(first)
    plant.start_worker()
    wait_ended(plant, sweep_id)
    present = trials(plant, sweep_id)
    assert [row.number for row, _ in present] == [0, 1]
    assert [job.status for _, job in present] == [JobStatus.SUCCEEDED] * 2
    assert present[0][1].attempt == 2


def test_the_next_trial_is_made_for_one_that_was_cancelled_by_hand(plant: Plant) -> None:
    sweep_id = start(plant, trials=2, at_once=1)
    with plant.database.writing() as session:
        (job,) = advance(session, sweep_id)
        assert advance(session, sweep_id) == [], "one at once"
        jobs.request_cancel(session, job.id)
    plant.start_worker()
    wait_ended(plant, sweep_id)
    assert [job.status for _, job in trials(plant, sweep_id)] == [
        JobStatus.CANCELLED,
        JobStatus.SUCCEEDED,
    ]


def test_a_cancelled_search_makes_no_more_trials(plant: Plant) -> None:
    sweep_id = start(plant, epochs=1000)
    plant.start_worker()
    plant.wait(lambda: trials(plant, sweep_id))
    plant.wait_epoch(trials(plant, sweep_id)[0][1].id, 1)
    with plant.database.writing() as session:
        assert sweeps.cancel(session, sweep_id)
    wait_ended(plant, sweep_id, timeout_s=10)
    assert {job.status for _, job in trials(plant, sweep_id)} == {JobStatus.CANCELLED}
    with plant.database.writing() as session:
        assert advance(session, sweep_id) == []


def test_a_trial_does_not_depend_on_who_makes_it_or_when_it_is_asked_again(plant: Plant) -> None:
    made = []
    for _ in range(2):
        sweep_id = start(plant, trials=2, at_once=2)
        with plant.database.writing() as session:
            advance(session, sweep_id)
        made.append([row.parameters for row, _ in trials(plant, sweep_id)])
    assert made[0] == made[1]
    assert made[0][0] != made[0][1]


def test_a_search_that_cannot_be_read_holds_nobody_up(plant: Plant) -> None:
    """A row that a newer version wrote, for example."""
    broken = start(plant)
    with plant.database.writing() as session:
        session.get_one(SweepRow, broken).request = {"written": "by a newer version"}
    other = start(plant, trials=1)
    plant.start_worker()
    wait_ended(plant, other)
    assert trials(plant, broken) == []
    assert "sweep.not_advanced" in plant.log_of(0)


def test_no_trial_is_made_of_a_sweep_that_went_meanwhile(plant: Plant) -> None:
    with plant.database.writing() as session:
        assert advance(session, "swp_gone") == []
