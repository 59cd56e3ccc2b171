"""A database that this version must not touch is refused with a sentence, by every process."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import ProgrammingError

from adap.store import disk
from adap.store.database import Database
from adap.store.migrate import migrate
from adap.store.settings import Settings, child_environment
from adap.store.start import UnusableDatabaseError, open_database
from tests.postgres import Postgres

# /proc/self/mountinfo as Linux writes it, with a local disk below a network one and the reverse
MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
31 22 0:27 / /mnt/lab rw,relatime shared:9 - nfs4 server:/lab rw,vers=4.2
32 31 254:2 / /mnt/lab/scratch rw,relatime shared:10 - xfs /dev/vdb1 rw
33 22 0:28 / /people/ann/my\\040share rw - cifs //server/share rw
34 22 0:29 / /srv rw - ext4 /dev/vdc rw
35 34 0:30 / /srv rw - fuse.sshfs ann@server: rw
"""


@pytest.mark.parametrize(
    ("home", "kind"),
    [
        ("/people/ann/adap", None),
        ("/mnt/lab/adap", "nfs4"),
        ("/mnt/lab2/adap", None),
        ("/mnt/lab/scratch/adap", None),
        ("/people/ann/my share/adap", "cifs"),
        ("/srv/adap", "fuse.sshfs"),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(home: str, kind: str | None) -> None:
    assert disk.network_file_system(Path(home), mounts=MOUNTS) == kind


def test_sqlite_on_a_network_file_system_is_refused_and_postgresql_is_not_asked(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = disk.network_file_system(tmp_path)
    assert here is None, "these tests need a local disk"
    monkeypatch.setattr(disk, "NETWORK", {kind_of(tmp_path)})  # as if ours were one
    with pytest.raises(UnusableDatabaseError, match="SQLite loses data"):
        open_database(Settings(home=tmp_path), migrated=False)
    assert not (tmp_path / "adap.db").exists()
    open_database(Settings(home=tmp_path, database_url=postgres_url), migrated=False).dispose()


def kind_of(folder: Path) -> str:
    """The type of the file system of a folder, as `stat` of the system says it."""
    table = subprocess.run(
        ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    return table.stdout.strip()


def run(settings: Settings, *module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *module],
        env=child_environment(settings),
        capture_output=True,
        text=True,
    )


def test_every_process_refuses_tables_that_are_not_of_its_version(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, broker_url="redis://127.0.0.1:1/0", port=0)
    for module in ("api", "worker"):
        refused = run(settings, module)
        assert refused.returncode == 1
        assert "run `python -m adap.store` first" in refused.stderr
    assert run(settings, "store").returncode == 0
    database = Database(settings)
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.dispose()
    for module in ("store", "api", "worker"):
        refused = run(settings, module)
        assert refused.returncode == 1
        assert "got 9999: a newer AdAP has upgraded it" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_every_process_says_in_a_sentence_that_no_database_answers(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        broker_url="redis://127.0.0.1:1/0",
        port=0,
        database_url="postgresql+psycopg://adap:secret@127.0.0.1:1/adap",
        database_wait_s=0.1,
    )
    for module in ("store", "api", "worker"):
        refused = run(settings, module)
        assert refused.returncode == 1
        assert "Expected a database that answers, got: connection" in refused.stderr
        assert "secret" not in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_worker_and_the_migration_wait_for_their_server_and_say_so(
    tmp_path: Path, postgres_server: Postgres, postgres_url: str
) -> None:
    settings = Settings(
        home=tmp_path,
        broker_url="redis://127.0.0.1:1/0",
        database_url=postgres_url,
        database_wait_s=600,
    )
    for module, ends in (("store", ""), ("worker", "worker.started")):
        postgres_server.stop()
        with subprocess.Popen(
            [sys.executable, "-m", f"adap.{module}"],
            env=child_environment(settings),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                lines = iter(process.stderr.readline, "")
                first = next(lines)
                assert "database.waited_for" in first
                assert "Expected a database that answers" in first
                postgres_server.start()
                if ends:
                    assert any(ends in line for line in lines)
                else:
                    assert process.wait() == 0
            finally:
                process.kill()
                postgres_server.start()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"username": "somebody"}, 'role "somebody" does not exist'),
    ],
)
def test_what_a_server_that_runs_refuses_is_said_and_not_waited_for(
    wrong: dict[str, str],
    said: str,
    tmp_path: Path,
    postgres_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = make_url(postgres_url).set(**wrong)
    settings = Settings(home=tmp_path, database_url=url.render_as_string(hide_password=False))
    with pytest.raises(UnusableDatabaseError, match=f"{said}.* Look at the user, the password"):
        open_database(settings, wait_s=600)
    assert "database.waited_for" not in caplog.text


@pytest.fixture(params=["sqlite", "postgres"])
def migrated(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a database of each kind with the tables of this version."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    settings = Settings(home=tmp_path, database_url=url)
    database = Database(settings)
    migrate(database)
    database.dispose()
    return settings


def changed(settings: Settings, *statements: str) -> None:
    database = Database(settings)
    with database.writing() as session:
        for statement in statements:
            session.execute(text(statement))
    database.dispose()


def test_tables_of_another_make_under_the_same_number_are_refused(migrated: Settings) -> None:
    changed(migrated, "ALTER TABLE models DROP COLUMN note")
    with pytest.raises(
        UnusableDatabaseError, match=r"differ in models\.note\), .* choose another "
    ):
        open_database(migrated, migrated=False)
    changed(migrated, "ALTER TABLE jobs ADD COLUMN priority BIGINT", "DROP TABLE chores")
    with pytest.raises(UnusableDatabaseError, match=r"in chores, jobs\.priority, models\.note\)"):
        open_database(migrated)


def test_tables_of_other_programs_and_indexes_of_an_operator_are_let_be(migrated: Settings) -> None:
    changed(
        migrated,
        "CREATE TABLE invoices (total BIGINT)",
        "CREATE INDEX by_name ON models (name)",
        "DROP INDEX ix_models_tenant",
    )
    open_database(migrated).dispose()


def test_a_database_of_another_program_is_not_filled(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    database = Database(settings)
    with database.writing() as session:
        session.execute(text("CREATE TABLE jobs (id BIGINT)"))
    database.dispose()
    refused = run(settings, "store")
    assert refused.returncode == 1
    assert "got tables that another program made (jobs)" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_missing_table_is_not_taken_for_a_database_that_is_away(database: Database) -> None:
    with pytest.raises(ProgrammingError), database.reading() as session:
        session.execute(text("SELECT note FROM nowhere"))
