"""The doctor: every fault on a real home is named with what to do, and what is safe is mended."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from adap.store import queues
from adap.store.artifacts import open_blobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import AssetStatus, DatasetRow, ScoresRow
from adap.worker.doctor import Doctor


def doctor(home: Path, *options: str, code: int) -> dict[str, Any]:
    """What `adap doctor --json` says of a home."""
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "adap"), "doctor", "--json", "--home", home, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def examined(home: Path, *, repair: bool = False) -> dict[str, str]:
    """What the doctor finds wrong, without the device, which takes long to try."""
    patient = Doctor(Settings(home=home))
    if repair:
        patient.repair()
    return {check.part: check.said for check in patient.examine(with_device=False) if not check.ok}


def faults(answer: dict[str, Any]) -> dict[str, str]:
    return {check["part"]: check["said"] for check in answer["checks"] if not check["ok"]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A service that is stopped: a data set and kept scores, each with its file."""
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    database, blobs = Database(settings), open_blobs(settings)
    migrate(database)
    for content in (b"images", b"scores"):
        (tmp_path / content.decode()).write_bytes(content)
    images, scores = blobs.put(tmp_path / "images"), blobs.put(tmp_path / "scores")
    with database.writing() as session:
        session.add(
            DatasetRow(
                id=new_id("ds"), tenant="local", name="photos", status=AssetStatus.READY,
                content_sha256=images, summary={},
            )
        )  # fmt: skip
        session.add(ScoresRow(key="k", blob_sha256=scores))
    database.dispose()
    return settings.home


def blob(home: Path, content: bytes) -> Path:
    """The file of this content."""
    return next(path for path in (home / "blobs").glob("??/*") if path.read_bytes() == content)


def test_a_service_that_runs_well_has_no_fault(service: str, service_home: Path) -> None:
    answer = doctor(service_home, code=0)
    assert {check["part"] for check in answer["checks"]} == {
        *("versions", "disk", "database", "clock", "files", "garbage", "workers", "broker"),
        *("queues", "sandbox", "device"),
    }, service
    assert faults(answer) == {}


def test_what_is_wrong_with_a_service_that_is_down_is_named_and_the_safe_part_mended(
    home: Path,
) -> None:
    kept = blob(home, b"images")
    lost = blob(home, b"scores")
    lost.unlink()
    (home / "incoming").mkdir()
    part = home / "incoming" / "ab.part"
    part.write_bytes(b"half")
    os.utime(part, (0, 0))
    orphan = blob(home, b"images").with_name("ff" * 32)
    orphan.write_bytes(b"orphan")

    found = examined(home)
    assert set(found) == {"disk", "files", "workers", "broker"}
    assert lost.name in found["files"]
    assert kept.name not in found["files"]
    assert "adap doctor --repair" in found["files"]
    assert "'compute'" in found["workers"]
    assert "ADAP_BROKER_URL" in found["broker"]
    assert part.exists()

    repaired = doctor(home, "--repair", "--no-device", code=1)
    assert set(faults(repaired)) == {"workers", "broker"}
    assert len(repaired["repaired"]) == 2
    assert not part.exists()
    assert kept.exists()
    assert orphan.exists()  # too young to be deleted
    with Database(Settings(home=home)).reading() as session:
        assert session.scalars(select(ScoresRow)).all() == []
        assert session.scalars(select(DatasetRow.content_sha256)).all() == [kept.name]


def test_content_that_nobody_can_make_again_is_left_to_the_operator(home: Path) -> None:
    lost = blob(home, b"images")
    lost.unlink()
    found = examined(home, repair=True)
    assert lost.name in found["files"]
    assert "put them back" in found["files"]


def test_a_disk_of_files_that_is_not_mounted_is_not_taken_for_lost_files(home: Path) -> None:
    (home / "blobs").rename(home / "elsewhere")
    assert "mount its disk" in examined(home, repair=True)["files"]
    with Database(Settings(home=home)).reading() as session:
        assert session.scalars(select(ScoresRow.key)).all() == ["k"]


def test_a_database_of_another_version_is_named_and_left_alone(home: Path) -> None:
    database = Database(Settings(home=home))
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.dispose()
    found = examined(home, repair=True)
    assert "a newer AdAP has upgraded it" in found["database"]
    assert "files" not in found


def test_a_home_that_is_not_there_is_a_fault_and_is_not_made(tmp_path: Path) -> None:
    assert "ADAP_HOME" in examined(tmp_path / "none", repair=True)["disk"]
    assert not (tmp_path / "none").exists()


def test_a_paused_queue_is_named_with_its_reason(home: Path) -> None:
    database = Database(Settings(home=home))
    with database.writing() as session:
        queues.pause(session, "compute", reason="new disks")
    assert examined(home)["queues"].startswith("the queue 'compute' is paused: new disks.")
    with database.writing() as session:
        queues.resume(session, "compute")
    database.dispose()
    assert "queues" not in examined(home)
