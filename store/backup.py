"""A backup: the tables as they were at one moment, and the files that they name.

A tar archive: `manifest.json`, `tables/<name>.ndjson` for each table, `blobs/<sha256>` for each
file that is taken along, and last `end.json` with what must be there. It is made while the service
runs. Files are named by their content and never change, so only the tables need one moment: one
snapshot of the database. It can be restored into a database and a store of either kind.
"""

import argparse
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum as PythonEnum
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

from pydantic import SecretStr
from sqlalchemy import Enum, Table, func, insert, make_url, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from adap.store import garbage, home, jobs
from adap.store.artifacts import open_blobs
from adap.store.blobs import CHUNK_BYTES, Blobs
from adap.store.database import UNHURRIED, Database
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.start import UnusableDatabaseError, open_database, revision_of
from adap.store.storage import BlobsAwayError, MissingContentError
from adap.store.tables import JobRow, JobStatus
from adap.store.tables import Table as Tables

FORMAT = 1
PASSING = frozenset({"workers", "condemned", "chores"})  # tables of what is so at this moment
ROWS_AT_ONCE = 500
_BLOB = re.compile(r"blobs/([0-9a-f]{64})")
_TABLE = re.compile(r"tables/([a-z_]+)\.ndjson")

Row = dict[str, Any]


class BackupError(Exception):
    """A backup cannot be made or restored; the message says why, and what to do."""


@dataclass(frozen=True)
class Contents:
    """What a backup holds."""

    format: int
    version: str  # of this software
    revision: str | None  # of the tables
    made_at: float
    database: str  # the kind of the database that it was made of
    settings: dict[str, Any]  # without secrets
    files: str  # "included", or "referred": only their names are known


@dataclass(frozen=True)
class Summary:
    """What was written, or read."""

    rows: dict[str, int]
    files: int
    bytes: int
    left_out: list[str]  # files that rows refer to and that were not there


def make(
    database: Database, blobs: Blobs, settings: Settings, target: Path, *, with_files: bool
) -> Summary:
    """Write a backup. The target appears whole or not at all; only its owner may read it."""
    part = target.with_name(f".{target.name}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                summary = _write(archive, database, blobs, settings, target.parent, with_files)
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return summary


def _write(
    archive: tarfile.TarFile,
    database: Database,
    blobs: Blobs,
    settings: Settings,
    folder: Path,
    with_files: bool,
) -> Summary:
    hashes, rows = {}, {}
    with database.snapshot(**UNHURRIED) as session:
        contents = Contents(
            FORMAT,
            version("adap-audit"),
            revision_of(session.connection()),
            time.time(),
            session.connection().dialect.name,
            without_secrets(settings),
            "included" if with_files else "referred",
        )
        _add(archive, "manifest.json", json.dumps(asdict(contents), indent=2).encode())
        for table in _tables():
            with NamedTemporaryFile(dir=folder) as file:
                hashes[table.name], rows[table.name] = _dump(session, table, file)
                archive.add(file.name, f"tables/{table.name}.ndjson", filter=_anonymous)
        # what leaves soonest is taken first: a training replaces its checkpoint at every epoch
        names = list(garbage.all_referred(session)) if with_files else []
    files, size, left_out = 0, 0, []
    for name in names:
        try:
            path = blobs.local_path(name)
            archive.add(path, f"blobs/{name}", filter=_anonymous)
        except (MissingContentError, FileNotFoundError):
            left_out.append(name)
            continue
        files, size = files + 1, size + path.stat().st_size
    end = {"tables": hashes, "rows": rows, "files": files, "left_out": left_out}
    _add(archive, "end.json", json.dumps(end).encode())
    return Summary(rows, files, size, left_out)


def _dump(session: Session, table: Table, file: IO[bytes]) -> tuple[str, int]:
    """Write the rows of a table, one a line; their SHA-256 and their number."""
    digest, count = hashlib.sha256(), 0
    query = select(table).order_by(*table.primary_key.columns)
    for row in session.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}):
        line = json.dumps({key: _plain(value) for key, value in row._mapping.items()}).encode()
        line += b"\n"
        digest.update(line)
        file.write(line)
        count += 1
    file.flush()
    return digest.hexdigest(), count


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, PythonEnum) else value


def without_secrets(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults, without passwords."""
    found = {}
    for name in sorted(settings.model_fields_set):
        value = getattr(settings, name)
        if isinstance(value, SecretStr) or value is None:
            continue
        if name.endswith("_url") and "@" in str(value):
            value = make_url(str(value)).render_as_string(hide_password=True)
        found[name] = str(value) if isinstance(value, Path) else value
    return found


# --- restoring ------------------------------------------------------------------------------------


def check(source: Path) -> Contents:
    """Read a backup from end to end. Raises BackupError unless it is whole and undamaged."""
    contents: Contents | None = None
    hashes: dict[str, str] = {}
    files, end = 0, None
    with _reading(source) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                raise BackupError(f"Expected plain files in {source}, got {member.name!r}.")
            if member.name == "manifest.json":
                contents = Contents(**json.load(content))
            elif member.name == "end.json":
                end = json.load(content)
            else:
                digest = _hash(content)
                blob, table = _BLOB.fullmatch(member.name), _TABLE.fullmatch(member.name)
                if table is not None:
                    hashes[table[1]] = digest
                elif blob is None or blob[1] != digest:
                    raise BackupError(f"The file {member.name!r} in {source} is damaged.")
                else:
                    files += 1
    if contents is None or end is None or end["tables"] != hashes or end["files"] != files:
        raise BackupError(
            f"Expected a whole backup in {source}, got one that is cut off or damaged."
        )
    if contents.format != FORMAT:
        raise BackupError(
            f"Expected a backup of format {FORMAT}, got {contents.format}, made by version "
            f"{contents.version}: restore it with that version."
        )
    return contents


def restore(
    database: Database, blobs: Blobs, source: Path, *, checked: Contents | None = None
) -> Summary:
    """Fill an empty database, and store the files of a backup. First the files, then all rows.

    checked: what `check` has told of it, if it was asked. Raises BackupError for a backup that is
    not whole or of other tables, and for a database that is not empty; then no row was written.
    """
    contents = check(source) if checked is None else checked
    with database.reading() as session:
        revision = revision_of(session.connection())
        filled = [table.name for table in _tables() if _count(session, table)]
    if revision != contents.revision:
        raise BackupError(
            f"Expected a backup of tables of version {revision}, got {contents.revision}, made by "
            f"version {contents.version}: restore it with that version, then upgrade."
        )
    if filled:
        raise BackupError(
            f"Expected an empty database, got one with {', '.join(filled)}: a backup is never "
            "mixed with what is there. Restore into another ADAP_HOME or ADAP_DATABASE_URL."
        )
    rows, files, size = dict.fromkeys((table.name for table in _tables()), 0), 0, 0
    by_name = {table.name: table for table in _tables()}
    with _reading(source) as archive:
        for member in archive:
            if _BLOB.fullmatch(member.name):
                _store(archive.extractfile(member), blobs)
                files, size = files + 1, size + member.size
    with database.writing(**UNHURRIED) as session, _reading(source) as archive:
        for member in archive:
            found, content = _TABLE.fullmatch(member.name), archive.extractfile(member)
            if found is not None and content is not None:
                table = by_name[found[1]]
                rows[table.name] = _load(session, table, content)
        _end_leases(session)
        missing = [name for name in garbage.all_referred(session) if not blobs.exists(name)]
    return Summary(rows, files, size, missing)


def _hash(content: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := content.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _store(content: IO[bytes] | None, blobs: Blobs) -> None:
    assert content is not None
    with NamedTemporaryFile() as file:
        while chunk := content.read(CHUNK_BYTES):
            file.write(chunk)
        file.flush()
        blobs.put(Path(file.name))


def _load(session: Session, table: Table, content: IO[bytes]) -> int:
    """Insert the rows of a table; returns how many."""
    count = 0
    batch: list[Row] = []
    readers = {column.name: _reader(column.type) for column in table.columns}
    for line in content:
        batch.append({name: readers[name](value) for name, value in json.loads(line).items()})
        if len(batch) == ROWS_AT_ONCE:
            session.execute(insert(table), batch)
            count, batch = count + len(batch), []
    if batch:
        session.execute(insert(table), batch)
    return count + len(batch)


def _reader(kind: Any) -> Callable[[Any], Any]:
    enum = kind.enum_class if isinstance(kind, Enum) else None
    return lambda value: value if enum is None or value is None else enum(value)


def _end_leases(session: Session) -> None:
    """What ran when the backup was made runs nowhere: it waits again, and nothing is held against
    it; what was being cancelled ends."""
    held = select(JobRow.id, JobRow.attempt, JobRow.status)
    held = held.where(JobRow.lease_expires_at.is_not(None)).order_by(JobRow.id)
    for job_id, attempt, status in session.execute(held).all():
        claim = jobs.Claim(job_id, attempt)
        if status == JobStatus.RUNNING:
            jobs.release(session, claim, reason="restored")
        else:
            jobs.finish_cancelled(session, claim)


def _tables() -> list[Table]:
    """The tables of a backup, each after those that it refers to."""
    return [table for table in Tables.metadata.sorted_tables if table.name not in PASSING]


def _count(session: Session, table: Table) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


@contextmanager
def _reading(source: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(source, mode="r:") as archive:
            yield archive
    except FileNotFoundError as error:
        raise BackupError(f"There is no file {source}.") from error
    except (tarfile.TarError, EOFError, ValueError, TypeError, KeyError) as error:
        raise BackupError(f"Expected a backup in {source}, got a file that is none: {error}") from (
            error
        )


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    archive.addfile(member, io.BytesIO(content))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A file without its owner's name, for its owner alone."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member


# --- the command ----------------------------------------------------------------------------------


def main() -> None:
    """What `adap backup` and `adap restore` run; `--help` says what it takes."""
    parser = argparse.ArgumentParser(prog="adap", description=str(__doc__).splitlines()[0])
    parser.add_argument("action", choices=("make", "restore"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--home", type=Path, help="where the service keeps everything")
    parser.add_argument(
        "--files",
        choices=("include", "refer"),
        help="take the files along, the default for a folder, or only their names, as for a bucket",
    )
    arguments = parser.parse_args()
    settings = (
        Settings.read() if arguments.home is None else Settings.read(home=arguments.home.absolute())
    )
    try:
        if arguments.action == "make":
            said = _make_here(settings, arguments.file, files=arguments.files)
        else:
            said = _restore_here(settings, arguments.file)
    except (BackupError, UnusableDatabaseError, BlobsAwayError, OSError) as error:
        sys.exit(str(error))
    except SQLAlchemyError as error:
        sys.exit(f"The database cannot be used: {error}")
    sys.stdout.write(f"{said}\n")


def _make_here(settings: Settings, file: Path, *, files: str | None) -> str:
    if settings.database.startswith("sqlite") and not settings.home.is_dir():
        raise BackupError(f"Expected a service in {settings.home}, got no such folder.")
    database, blobs = open_database(settings), open_blobs(settings)
    in_bucket = settings.blobs.startswith("s3://")
    with_files = files == "include" or (files is None and not in_bucket)
    made = make(database, blobs, settings, file, with_files=with_files)
    database.dispose()
    lost = f" {len(made.left_out)} were gone by then or are lost." if made.left_out else ""
    kept = (
        f"{made.files} files of {made.bytes} bytes.{lost}"
        if with_files
        else f"no files: they stay in {settings.blobs}, which needs a backup of its own."
    )
    return (
        f"{file}: {sum(made.rows.values())} rows and {kept} It holds hashes of keys, and no "
        "password or key of the settings: keep it as you keep the database."
    )


def _restore_here(settings: Settings, file: Path) -> str:
    checked = check(file)  # before anything is made
    home.take(settings.home)
    database = open_database(settings, migrated=False)
    migrate(database)
    found = restore(database, open_blobs(settings), file, checked=checked)
    database.dispose()
    lost = (
        f" {len(found.left_out)} files that rows refer to are not there: put them back, or see "
        "what needs them by its problem `content_missing`."
        if found.left_out
        else ""
    )
    return f"{sum(found.rows.values())} rows and {found.files} files restored.{lost}"


if __name__ == "__main__":
    main()
