"""Backups: whole or not at all, of either database, without secrets, and restored to the same."""

import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from adap.store import backup, garbage, jobs, keys
from adap.store.artifacts import open_blobs
from adap.store.backup import BackupError
from adap.store.blobs import Blobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import AssetStatus, DatasetRow, JobKind, JobRow, JobStatus, Table


def rows(database: Database) -> dict[str, list[Any]]:
    """All that a backup keeps, by table."""
    with database.reading() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table))]
            for table in Table.metadata.sorted_tables
            if table.name not in backup.PASSING
        }


def fill(database: Database, blobs: Blobs, folder: Path) -> tuple[str, str]:
    """A data set, a job that is done, one that runs from a checkpoint; the names of their files."""
    (folder / "content").write_bytes(b"images")
    (folder / "checkpoint").write_bytes(b"weights")
    content, checkpoint = blobs.put(folder / "content"), blobs.put(folder / "checkpoint")
    with database.writing() as session:
        keys.create(session, name="k", scopes=["read"])
        dataset = DatasetRow(
            id=new_id("ds"), tenant="local", name="photos", status=AssetStatus.READY,
            content_sha256=content, summary={"classes": ["a", "ü"], "ratio": 0.1},
        )  # fmt: skip
        session.add(dataset)
        for _ in range(2):
            jobs.enqueue(session, JobKind.TRAIN, tenant="local", request={"dataset_id": dataset.id})
        done = jobs.claim_next(session, "compute", worker="w", lease_s=60)
        assert done is not None
        jobs.succeed(session, done, {"blobs": {}, "summary": {"ap": 1 / 3}})
        runs = jobs.claim_next(session, "compute", worker="w", lease_s=3600)
        assert runs is not None
        jobs.save_checkpoint(session, runs, checkpoint, epoch=3)
    return content, checkpoint


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Database, Blobs]:
    """An empty service on another disk."""
    settings = Settings(home=tmp_path / "elsewhere")
    settings.home.mkdir()
    made = Database(settings)
    migrate(made)
    return made, open_blobs(settings)


def test_what_is_restored_is_what_was_there(
    database: Database, blobs: Blobs, tmp_path: Path, elsewhere: tuple[Database, Blobs]
) -> None:
    content, checkpoint = fill(database, blobs, tmp_path)
    before = rows(database)
    target = tmp_path / "adap.backup"
    made = backup.make(database, blobs, Settings(home=tmp_path), target, with_files=True)
    assert (made.files, made.left_out) == (2, [])
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".*.part"))
    restored, files = elsewhere
    summary = backup.restore(restored, files, target)
    assert (summary.files, summary.left_out) == (2, [])
    assert files.local_path(content).read_bytes() == b"images"
    assert files.local_path(checkpoint).read_bytes() == b"weights"
    after = rows(restored)
    assert {name: len(found) for name, found in after.items()} == {
        **{name: len(found) for name, found in before.items()},
        "job_events": len(before["job_events"]) + 1,
    }
    for name in before.keys() - {"jobs", "job_events"}:
        assert after[name] == before[name]
    with restored.writing() as session:
        runs = session.scalars(select(JobRow).where(JobRow.checkpoint_epoch == 3)).one()
        assert (runs.status, runs.lost, runs.worker) == (JobStatus.QUEUED, 0, None)
        assert jobs.claim_next(session, "compute", worker="w", lease_s=60) is not None


def test_files_may_be_left_where_they_are_and_what_is_missing_is_named(
    database: Database, blobs: Blobs, tmp_path: Path, elsewhere: tuple[Database, Blobs]
) -> None:
    content, checkpoint = fill(database, blobs, tmp_path)
    target = tmp_path / "adap.backup"
    made = backup.make(database, blobs, Settings(home=tmp_path), target, with_files=False)
    assert made.files == 0
    summary = backup.restore(elsewhere[0], elsewhere[1], target)
    assert sorted(summary.left_out) == sorted([content, checkpoint])
    blobs.delete(checkpoint)
    made = backup.make(database, blobs, Settings(home=tmp_path), target, with_files=True)
    assert (made.files, made.left_out) == (1, [checkpoint])


def test_a_backup_that_is_cut_off_or_changed_is_refused_and_nothing_is_restored(
    tmp_path: Path, elsewhere: tuple[Database, Blobs]
) -> None:
    settings = Settings(home=tmp_path)
    database, blobs = Database(settings), open_blobs(settings)
    migrate(database)
    fill(database, blobs, tmp_path)
    target = tmp_path / "adap.backup"
    backup.make(database, blobs, settings, target, with_files=True)
    whole = target.read_bytes()
    offsets = {
        "images": whole.index(b"images", whole.index(b"blobs/")),
        "row": whole.index(b'"photos"') + 1,
    }
    for damaged in (
        whole[: len(whole) // 2],
        b"",
        b"not a tar at all" * 100,
        *(whole[:at] + b"X" + whole[at + 1 :] for at in offsets.values()),
    ):
        target.write_bytes(damaged)
        with pytest.raises(BackupError):
            backup.restore(elsewhere[0], elsewhere[1], target)
        assert not any(rows(elsewhere[0]).values())
    with pytest.raises(BackupError, match="no file"):
        backup.restore(elsewhere[0], elsewhere[1], tmp_path / "nowhere")
    target.write_bytes(whole)
    with pytest.raises(BackupError, match="empty database, got one with"):
        backup.restore(database, blobs, target)
    database.dispose()


def test_settings_come_without_secrets(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {
            "home": tmp_path,
            "database_url": "postgresql+psycopg://adap:sesame@db/adap",
            "s3_secret_access_key": "sesame",
            "bootstrap_admin_key": "sesame" * 8,
            "lease_s": 20,
        }
    )
    kept = backup.without_secrets(settings)
    assert "sesame" not in str(kept)
    assert kept["lease_s"] == 20
    assert kept["database_url"] == "postgresql+psycopg://adap:***@db/adap"


def test_what_leaves_soonest_is_named_first(
    database: Database, blobs: Blobs, tmp_path: Path
) -> None:
    content, checkpoint = fill(database, blobs, tmp_path)
    with database.reading() as session:
        assert garbage.all_referred(session) == [checkpoint, content]


def test_a_backup_opens_with_tar(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    database, blobs = Database(settings), open_blobs(settings)
    migrate(database)
    target = tmp_path / "adap.backup"
    backup.make(database, blobs, settings, target, with_files=True)
    with tarfile.open(target) as archive:
        assert {"manifest.json", "tables/jobs.ndjson", "end.json"} <= set(archive.getnames())
    database.dispose()


def test_an_operator_backs_up_loses_the_disk_and_restores(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    settings = Settings(home=home)
    database, blobs = Database(settings), open_blobs(settings)
    migrate(database)
    content, _ = fill(database, blobs, tmp_path)
    before = rows(database)
    database.dispose()
    file = tmp_path / "adap.backup"

    def adap(*command: str) -> str:
        run = subprocess.run(
            [str(Path(sys.executable).with_name("adap")), *command, str(file), "--home", str(home)],
            capture_output=True,
            text=True,
            check=False,
        )
        return run.stdout + run.stderr

    assert "2 files of 13 bytes" in adap("backup")
    assert "empty database" in adap("restore"), "never mixed with what is there"
    shutil.rmtree(home)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "Expected" in adap("restore")
    assert not home.exists(), "what cannot be restored makes nothing"
    file.write_bytes(whole)
    assert "2 files restored" in adap("restore")
    restored = Database(settings)
    assert rows(restored)["datasets"] == before["datasets"]
    assert open_blobs(settings).local_path(content).read_bytes() == b"images"
    restored.dispose()
