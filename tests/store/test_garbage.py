"""Collecting garbage, with uploads of the same content at every moment of it."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import select, update

from adap.store import chores, garbage, jobs
from adap.store.blobs import Blobs
from adap.store.database import Database
from adap.store.garbage import ContentGoneError
from adap.store.ids import new_id
from adap.store.tables import AssetStatus, ChoreRow, CondemnedRow, DatasetRow, JobFileRow, JobKind

AT_ONCE = -2.0  # an age that everything has; S3 keeps whole seconds
CONTENT = b"what is stored twice"


class Watched:
    """A store that calls somebody just before and just after it deletes a file."""

    def __init__(self, blobs: Blobs, *, before: Callable[[], None], after: Callable[[], None]):
        self._blobs, self._before, self._after = blobs, before, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def delete(self, name: str) -> None:
        self._before()
        self._blobs.delete(name)
        self._after()


def nothing() -> None:
    """Do nothing."""


def dataset(sha256: str) -> DatasetRow:
    return DatasetRow(
        id=new_id("ds"), tenant="t", name="n", status=AssetStatus.READY, content_sha256=sha256
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


class Uploader:
    """Stores the content, then makes a row refer to it, again where it was told to."""

    def __init__(self, database: Database, blobs: Blobs, source: Path) -> None:
        self.database, self.blobs, self.source = database, blobs, source
        self.refused = 0

    def steps(self) -> list[Callable[[], object]]:
        return [self.store, self.refer]

    def store(self) -> None:
        self.sha256 = self.blobs.put(self.source)

    def refer(self) -> None:
        while True:
            try:
                with self.database.writing() as session:
                    garbage.refer(session, self.blobs, [self.sha256])
                    session.add(dataset(self.sha256))
                return
            except ContentGoneError:
                self.refused += 1
                self.store()


def interleaved(
    first: Sequence[Callable[[], object]], second: Sequence[Callable[[], object]]
) -> Iterator[list[Callable[[], object]]]:
    """Every order of both in which each keeps its own."""
    places = range(len(first) + len(second))
    for of_first in combinations(places, len(first)):
        a, b = iter(first), iter(second)
        yield [next(a) if place in of_first else next(b) for place in places]


def test_an_upload_between_any_two_steps_of_a_collection_keeps_its_content(
    database: Database, blobs: Blobs, source: Path
) -> None:
    uploader = Uploader(database, blobs, source)
    collector: list[Callable[[], object]] = [
        lambda: garbage.condemn(database, blobs, older_s=AT_ONCE),
        lambda: garbage.delete_condemned(database, blobs, older_s=AT_ONCE),
        lambda: garbage.condemn(database, blobs, older_s=AT_ONCE),
        lambda: garbage.delete_condemned(database, blobs, older_s=3600),
    ]
    for number, order in enumerate(interleaved(uploader.steps(), collector)):
        source.write_bytes(CONTENT + bytes([number]))
        sha256 = blobs.put(source)  # of somebody who never came to refer to it
        for step in order:
            step()
        with blobs.open(sha256) as file:
            assert file.read() == source.read_bytes()
        garbage.collect(database, blobs, grace_s=AT_ONCE)
        assert blobs.exists(sha256), "a row refers to it"
    assert uploader.refused > 0, "some were too late, and stored it again"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_upload_in_the_middle_of_the_deletion_keeps_its_content(
    database: Database, blobs: Blobs, source: Path, moment: str
) -> None:
    uploader = Uploader(database, blobs, source)
    sha256 = blobs.put(source)
    garbage.condemn(database, blobs, older_s=AT_ONCE)
    stored = Event()

    def upload() -> None:
        uploader.store()
        stored.set()
        uploader.refer()  # waits for the transaction of the deletion

    thread = Thread(target=upload)

    def come() -> None:
        thread.start()
        assert stored.wait(60)

    hooks = {"before": nothing, "after": nothing, moment: come}
    assert garbage.delete_condemned(database, Watched(blobs, **hooks), older_s=AT_ONCE) == 1
    thread.join(60)
    assert not thread.is_alive()
    assert uploader.refused == (moment == "before"), "stored before it was deleted: once more"
    with blobs.open(sha256) as file:
        assert file.read() == CONTENT


def test_garbage_is_what_is_old_and_not_referred_to(
    database: Database, blobs: Blobs, tmp_path: Path
) -> None:
    names = ("kept", "result", "lost")
    for name in names:
        (tmp_path / name).write_text(name)
    kept, result, lost = (blobs.put(tmp_path / name) for name in names)
    with database.writing() as session:
        session.add(dataset(kept))
        job = jobs.enqueue(session, JobKind.RANK, tenant="t", request={})
        claim = jobs.claim(session, job.id, worker="w", lease_s=60)
        assert claim is not None
        jobs.succeed(session, claim, {"blobs": {"ranking": result}})
    assert garbage.collect(database, blobs, grace_s=3600) == 0, "young files are spared"
    assert garbage.condemn(database, blobs, older_s=AT_ONCE) == 1
    assert garbage.delete_condemned(database, blobs, older_s=3600) == 0, "condemned just now"
    assert blobs.exists(lost)
    assert garbage.delete_condemned(database, blobs, older_s=AT_ONCE) == 1
    assert [blobs.exists(sha256) for sha256 in (kept, result, lost)] == [True, True, False]
    with database.writing() as session:
        session.execute(update(JobFileRow).values(sha256="0" * 64))
    assert garbage.collect(database, blobs, grace_s=AT_ONCE) == 1
    assert [blobs.exists(sha256) for sha256 in (kept, result)] == [True, False]


def test_notes_go_when_they_are_needed_no_more(
    database: Database, blobs: Blobs, source: Path
) -> None:
    blobs.put(source)
    for expected in ([True], []):
        garbage.collect(database, blobs, grace_s=AT_ONCE)
        with database.reading() as session:
            assert list(session.scalars(select(CondemnedRow.gone))) == expected


def test_a_checkpoint_that_its_job_has_again_is_not_discarded(
    database: Database, blobs: Blobs, source: Path
) -> None:
    sha256 = blobs.put(source)
    with database.writing() as session:
        job = jobs.enqueue(session, JobKind.TRAIN, tenant="t", request={}, checkpoint_sha256=sha256)
    for checkpoint, left in ((sha256, True), (None, False)):
        with database.writing() as session:
            session.merge(job).checkpoint_sha256 = checkpoint
            session.flush()
            garbage.discard(session, blobs, job.id, sha256)
        assert blobs.exists(sha256) is left


def test_a_chore_is_done_by_one_at_a_time_and_no_clock_puts_it_off(database: Database) -> None:
    def take() -> bool:
        with database.writing() as session:
            return chores.take(session, "sweep", every_s=3600)

    def set_due(in_s: float) -> None:
        with database.writing() as session:
            session.execute(update(ChoreRow).values(due_at=ChoreRow.due_at + in_s))

    assert [take(), take()] == [False, False]
    set_due(-7200)
    assert [take(), take()] == [True, False]
    set_due(+7200)  # as after a clock that was set back by two hours
    assert [take(), take()] == [True, False]
