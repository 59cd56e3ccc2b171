"""Scores by what they depend on, on both databases."""

from pathlib import Path
from threading import Barrier, Thread

from sqlalchemy import select, update

from adap.store import scores
from adap.store.blobs import FolderBlobs
from adap.store.database import Database, now
from adap.store.garbage import collect
from adap.store.tables import ScoresRow


def known(database: Database, *keys: str) -> dict[str, str]:
    with database.writing() as session:
        return scores.find(session, keys)


def keep(database: Database, blobs: dict[str, str]) -> None:
    with database.writing() as session:
        scores.keep(session, blobs)


def make_old(database: Database, key: str, *, age_s: float) -> None:
    with database.writing() as session:
        changed = update(ScoresRow).where(ScoresRow.key == key)
        session.execute(changed.values(used_at=now() - age_s))


def test_what_was_kept_is_found_and_nothing_else(database: Database) -> None:
    assert known(database, "a", "b") == {}
    keep(database, {"a": "1" * 64, "b": "2" * 64})
    assert known(database, "a", "c") == {"a": "1" * 64}
    keep(database, {"a": "3" * 64})
    assert known(database, "a", "b") == {"a": "3" * 64, "b": "2" * 64}


def test_what_nobody_asks_for_is_forgotten(database: Database) -> None:
    keep(database, {"asked": "1" * 64, "idle": "2" * 64})
    for key in ("asked", "idle"):
        make_old(database, key, age_s=100)
    known(database, "asked")
    with database.writing() as session:
        scores.forget(session, unused_s=50)
    assert known(database, "asked", "idle") == {"asked": "1" * 64}


def test_a_blob_lives_as_long_as_its_row(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("scores")
    blobs = FolderBlobs(tmp_path / "blobs")
    sha256 = blobs.put(tmp_path / "file")
    keep(database, {"a": sha256})
    assert collect(database, blobs, grace_s=-1) == 0
    make_old(database, "a", age_s=100)
    with database.writing() as session:
        scores.forget(session, unused_s=50)
    assert collect(database, blobs, grace_s=-1) == 1
    assert not (blobs.root / sha256[:2] / sha256).exists()


def test_two_workers_may_keep_the_same_at_the_same_time(database: Database) -> None:
    keys = [f"{i:02d}" for i in range(40)]
    start, failures = Barrier(2), []

    def work(sha256: str) -> None:
        start.wait()
        try:
            keep(database, dict.fromkeys(keys, sha256))
        except Exception as error:  # noqa: BLE001 - a thread's failure must reach the test
            failures.append(error)

    threads = [Thread(target=work, args=(mark * 64,)) for mark in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.reading() as session:
        assert sorted(session.scalars(select(ScoresRow.key))) == keys
