"""What must hold after a soak, read from the rows and files themselves."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from adap.store import garbage, results
from adap.store.artifacts import open_blobs
from adap.store.blobs import Blobs
from adap.store.settings import child_environment
from adap.store.tables import (
    TERMINAL,
    DatasetRow,
    JobEventRow,
    JobFileRow,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
)
from tests.soak.ground import Ground
from tests.soak.tenants import Accepted
from tests.worker.conftest import same_weights

PATIENCE_S = 60.0  # for an answer of the store of files
ENDS = {JobStatus.SUCCEEDED: "succeeded", JobStatus.CANCELLED: "cancelled"}


@dataclass(frozen=True)
class Verdict:
    """What was found: `faults` are sentences."""

    lost: int
    doubled: int
    equal: int  # trainings with the weights of an undisturbed one
    faults: list[str]


def examine(ground: Ground, accepted: list[Accepted]) -> Verdict:
    """Everything, once no job runs; the workers still do."""
    with ground.database.reading() as session:
        rows = {row.id: row for row in session.scalars(select(JobRow))}
        lost = [job for job in accepted if not _ended_well(job, rows)]
        known = {job.id for job in accepted}
        doubled = [row.id for row in rows.values() if row.parent_id is None and row.id not in known]
        faults = [f"lost: {job} {_said(rows.get(job.id))}" for job in lost]
        faults += [f"made without being asked for: {name}" for name in doubled]
        faults += _events(session, rows.values())
        faults += _results(session, rows.values())
        faults += _bytes(ground, session)
    equal, different = _weights(ground, accepted)
    faults += [*different, *_garbage(ground), *_doctor(ground)]
    return Verdict(len(lost), len(doubled), equal, faults)


def _blobs(ground: Ground) -> Blobs:
    """The store, with time to answer: nothing cuts it off any more, and the machine is shared."""
    return open_blobs(ground.settings.model_copy(update={"blobs_limit_s": PATIENCE_S}))


def _ended_well(job: Accepted, rows: dict[str, JobRow]) -> bool:
    row = rows.get(job.id)
    good = {JobStatus.SUCCEEDED} | ({JobStatus.CANCELLED} if job.what == "cancel" else set())
    return row is not None and row.tenant == job.tenant and row.status in good


def _said(row: JobRow | None) -> str:
    return "no row" if row is None else f"{row.status}, attempt {row.attempt}: {row.error}"


def _events(session: Session, rows: Iterable[JobRow]) -> Iterator[str]:
    """Numbered without a gap, one end each, and it is the last."""
    for row in rows:
        events = session.scalars(
            select(JobEventRow).where(JobEventRow.job_id == row.id).order_by(JobEventRow.seq)
        ).all()
        if [event.seq for event in events] != list(range(1, row.last_event + 1)):
            yield f"events of {row.id} have a gap: {[event.seq for event in events]}"
        ends = [event.type for event in events if event.type in (*ENDS.values(), "failed")]
        if row.status in ENDS and (ends != [ENDS[row.status]] or events[-1].type != ends[0]):
            yield f"{row.id} is {row.status}, and its events end {ends} with {events[-1].type}"
        if row.status not in TERMINAL:
            yield f"{row.id} has not ended: {row.status}"


def _results(session: Session, rows: Iterable[JobRow]) -> Iterator[str]:
    """One model of each training that succeeded, one data set of each upload."""
    models = Counter(session.scalars(select(ModelRow.job_id)))
    datasets = Counter(session.scalars(select(DatasetRow.job_id)))
    for row in rows:
        made = row.status == JobStatus.SUCCEEDED
        if row.kind == JobKind.TRAIN and models[row.id] != made:
            yield f"the training {row.id} ({row.status}) has {models[row.id]} models"
        if row.kind == JobKind.VALIDATE_DATASET and datasets[row.id] != 1:
            yield f"the upload {row.id} has {datasets[row.id]} data sets"
        if made and row.result is None:
            yield f"{row.id} succeeded without a result"


def _bytes(ground: Ground, session: Session) -> Iterator[str]:
    """What counts for a tenant's quota is what its files weigh."""
    blobs = _blobs(ground)

    def weight(name: str) -> int:
        return blobs.local_path(name).stat().st_size

    weights: Counter[str] = Counter()
    for table in (DatasetRow, ModelRow):
        for row in session.scalars(select(table)):
            name = row.content_sha256 or row.upload_sha256
            weights[row.tenant] += weight(name) if name else 0
    files = select(JobRow.tenant, JobFileRow.sha256).join(JobRow, JobRow.id == JobFileRow.job_id)
    for tenant, name in session.execute(files.where(JobRow.parent_id.is_(None))):
        weights[tenant] += weight(name)
    for tenant, heavy in weights.items():
        if (counted := results.stored_bytes(session, tenant)) != heavy:
            yield f"{tenant} has files of {heavy} bytes, and {counted} count for the quota"


def _weights(ground: Ground, accepted: list[Accepted]) -> tuple[int, list[str]]:
    """Every training beside the first of its seed, which nothing disturbed."""
    blobs = _blobs(ground)
    first: dict[int, str] = {}
    equal, faults = 0, []
    with ground.database.reading() as session:
        contents = dict(session.execute(select(ModelRow.job_id, ModelRow.content_sha256)).all())
    for job in accepted:
        name = contents.get(job.id)
        if job.seed is None or name is None:
            continue
        if job.seed not in first:
            first[job.seed] = name
        elif same_weights(blobs.local_path(first[job.seed]), blobs.local_path(name)):
            equal += 1
        else:
            faults.append(f"the training {job.id} of seed {job.seed} has other weights")
    return equal, faults


def _garbage(ground: Ground) -> Iterator[str]:
    """After both phases what is stored is what rows refer to, and nothing else."""
    blobs = _blobs(ground)
    time.sleep(1.1)  # times of files are in seconds on a bucket
    garbage.condemn(ground.database, blobs, older_s=0)
    time.sleep(0.1)
    garbage.delete_condemned(ground.database, blobs, older_s=0)
    with ground.database.reading() as session:
        needed = set(garbage.all_referred(session))
    there = set(blobs.older_than(0))
    yield from (f"nothing refers to the file {name}" for name in sorted(there - needed))
    yield from (f"the file {name} is missing" for name in sorted(needed - there))


def _doctor(ground: Ground) -> Iterator[str]:
    """What the operator is told; the walls of the sandbox are the machine's affair."""
    told = subprocess.run(
        [sys.executable, "-P", "-m", "adap.worker.doctor", "--json", "--no-device"],
        env={**os.environ, **child_environment(ground.settings)},
        capture_output=True,
        check=False,
        text=True,
    )
    for check in json.loads(told.stdout)["checks"]:
        if not check["ok"] and check["part"] != "sandbox":
            yield f"doctor: {check['part']}: {check['said']}"
