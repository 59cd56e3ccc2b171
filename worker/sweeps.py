"""The next trials of a search, made by whichever worker is at hand when one has ended."""

from sqlalchemy.orm import Session

from adap.core.training.search import suggest
from adap.core.training.sweeps import Search, SweepRequest, outcome, trial
from adap.store import sweeps
from adap.store.tables import LIVE, JobRow


def advance(session: Session, sweep_id: str) -> list[JobRow]:
    """Make the trials of a sweep that may be made now; ring for these jobs after the commit.

    Under the lock of the sweep's row, so that each trial is made once. A grid has made all of its
    trials at once.
    """
    sweep = sweeps.lock(session, sweep_id)
    if sweep is None:
        return []
    request = SweepRequest.model_validate(sweep.request)
    if not sweep.unfinished or not isinstance(request.search, Search):
        return []
    present = sweeps.trials(session, sweep_id)
    live = sum(job.status in LIVE for _, job in present)
    seen = [
        outcome(row.number, row.parameters, job.result)
        for row, job in present
        if job.status not in LIVE
    ]
    made = []
    for _ in range(min(request.search.at_once - live, sweep.planned - sweep.made)):
        parameters = suggest(request.search, number=sweep.made, seen=seen)
        training = trial(request, parameters, number=sweep.made)
        made.append(
            sweeps.add_trial(session, sweep, parameters=parameters, request=training.as_json())
        )
    return made
