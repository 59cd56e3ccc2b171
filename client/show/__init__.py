"""Tables for people of the service's answers, a function for each thing that a command prints."""

from adap.client.show.findings import (
    estimate,
    leaderboard,
    ranking,
    report,
    scores,
    smallest_changes,
    verification,
)
from adap.client.show.parts import figure, size, table, when
from adap.client.show.service import keys, problem, queues
from adap.client.show.uploads import dataset, datasets, input_spec, model, models, reasons
from adap.client.show.work import job, job_progress, jobs, sweep, sweeps

__all__ = [
    "dataset",
    "datasets",
    "estimate",
    "figure",
    "input_spec",
    "job",
    "job_progress",
    "jobs",
    "keys",
    "leaderboard",
    "model",
    "models",
    "problem",
    "queues",
    "ranking",
    "reasons",
    "report",
    "scores",
    "size",
    "smallest_changes",
    "sweep",
    "sweeps",
    "table",
    "verification",
    "when",
]
