"""`adap doctor`: looks at every part of a service on this machine, and says what to do about it.

It needs no running service: it reads the settings, and looks at what they name. With `--repair` it
mends what can be mended without a loss, and looks again.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import redis
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute

from adap.store import disk, garbage, incoming, jobs, queues
from adap.store.artifacts import open_blobs
from adap.store.blobs import Blobs
from adap.store.database import UNHURRIED, Database, now
from adap.store.garbage import REFERENCES
from adap.store.settings import MIB, Settings
from adap.store.start import UnusableDatabaseError, open_database
from adap.store.storage import BlobsAwayError
from adap.store.tables import (
    QUEUES,
    TERMINAL,
    CondemnedRow,
    JobRow,
    ScoresRow,
    UploadPartRow,
    WorkerRow,
)
from adap.worker.child import Child, ChildDiedError, ChildFailedError
from adap.worker.pipelines.requests import DeviceTrial
from adap.worker.sandbox import make_sandbox
from adap.worker.sockets import BROKER, socket_folder
from adap.worker.work import Work

CLOCK_SLACK_S = 2.0  # between this machine and the database
DEVICE_LIMIT_S = 120.0
MOST_NAMED = 3  # files that a sentence names


@dataclass(frozen=True)
class Check:
    """What one look found: `said` is a sentence, of a fault with what to do."""

    part: str
    ok: bool
    said: str


class _FaultError(Exception):
    """Something is wrong; the message says what, and what to do."""


Look = Callable[[], str]


@dataclass(frozen=True)
class Doctor:
    """Looks at the service of some settings."""

    settings: Settings

    def examine(self, *, with_device: bool = True) -> list[Check]:
        """Every check, in the order in which one needs the other."""
        found = [_check("versions", self._versions), _check("disk", self._disk)]
        database: Database | None = None

        def opens() -> str:
            nonlocal database
            database = self._open()
            return self._database(database)

        found.append(_check("database", opens))
        if database is not None:
            known: Database = database
            found += [
                _check("clock", lambda: self._clock(known)),
                _check("files", lambda: self._files(known)),
                _check("garbage", lambda: self._garbage(known)),
                _check("workers", lambda: self._workers(known)),
                _check("queues", lambda: self._queues(known)),
            ]
            known.dispose()
        found += [
            _check("broker", self._broker),
            _check("sandbox", self._sandbox),
        ]
        return [*found, _check("device", self._device)] if with_device else found

    def repair(self) -> list[str]:
        """Mend what can be mended without a loss; returns what was done."""
        try:
            database = self._open()
        except (_FaultError, UnusableDatabaseError, SQLAlchemyError, OSError):
            return []  # the check says it
        done = []
        blobs = open_blobs(self.settings)
        missing, total = _missing(database, blobs)
        lost = {name for names in missing.values() for name in names}
        if (
            0 < sum(map(len, missing.values())) < total
        ):  # if none is there, it is the store that is missing
            with database.writing() as session:
                for forget in (
                    delete(ScoresRow).where(ScoresRow.blob_sha256.in_(lost)),
                    delete(UploadPartRow).where(UploadPartRow.staged.in_(lost)),
                    update(JobRow)
                    .where(JobRow.checkpoint_sha256.in_(lost), JobRow.status.in_(TERMINAL))
                    .values(checkpoint_sha256=None, checkpoint_epoch=None),
                ):
                    session.execute(forget)
            mended = sum(len(missing[what]) for what in _MADE_AGAIN if what in missing)
            if mended:
                done.append(f"{mended} lost files that are made again are no longer referred to")
        removed = garbage.collect(database, blobs, grace_s=self.settings.blob_grace_s)
        if removed:
            done.append(f"{removed} files that nothing refers to were deleted")
        with database.writing() as session:
            jobs.cut_leases(session, lease_s=self.settings.lease_s)
            jobs.cut_waits(session)
        kept_s = self.settings.upload_kept_s
        if left := list(incoming.remains(self.settings.home, older_s=kept_s)):
            incoming.prepare(self.settings.home, kept_s=kept_s)
            done.append(f"{len(left)} files of uploads that were broken off were removed")
        database.dispose()
        return done

    def _versions(self) -> str:
        return ", ".join(
            [
                f"AdAP {version('adap-audit')}",
                f"Python {platform.python_version()}",
                *(f"{name} {version(name)}" for name in ("torch", "torchvision")),
            ]
        )

    def _disk(self) -> str:
        home = self.settings.home
        if not home.is_dir():
            raise _FaultError(
                f"Expected a service in {home}, got no such folder: set ADAP_HOME, or start one."
            )
        disk.probe(home)
        free = shutil.disk_usage(home).free
        needed = 2 * self.settings.max_upload_bytes
        if free < needed:
            raise _FaultError(
                f"{free // MIB} MiB are free in {home}, less than two of the largest uploads "
                f"({needed // MIB} MiB): make room, or lower ADAP_MAX_UPLOAD_BYTES."
            )
        left = list(incoming.remains(home, older_s=self.settings.upload_kept_s))
        if left:
            raise _FaultError(
                f"{len(left)} files of uploads that were broken off lie in {home / 'incoming'}: "
                "`adap doctor --repair` removes them."
            )
        return f"{free // MIB} MiB free in {home}"

    def _open(self) -> Database:
        url = self.settings.database
        file = Path(url.removeprefix("sqlite:///"))
        if url.startswith("sqlite") and not file.is_file():
            raise _FaultError(f"There is no database {file}: start the service, or restore one.")
        return open_database(self.settings)

    def _database(self, database: Database) -> str:
        dialect = database.engine.dialect.name
        with database.reading(**UNHURRIED) as session:
            if dialect == "sqlite":
                faults = session.scalars(text("PRAGMA quick_check(3)")).all()
                if faults != ["ok"]:
                    raise _FaultError(
                        f"SQLite says that it is damaged ({'; '.join(faults)}): stop the service "
                        "and restore a backup."
                    )
            count = session.scalar(select(func.count()).select_from(JobRow))
        return f"{dialect} of this version, {count} jobs and shards"

    def _clock(self, database: Database) -> str:
        with database.reading() as session:
            off = abs((session.scalar(now().select()) or 0.0) - time.time())
            last = session.scalar(select(JobRow.created_at).order_by(JobRow.id.desc()).limit(1))
            seen = session.scalar(select(func.max(WorkerRow.seen_at)))
            ahead = max(last or 0.0, seen or 0.0) - (session.scalar(now().select()) or 0.0)
        if off > CLOCK_SLACK_S:
            raise _FaultError(
                f"The database's clock and this machine's are {off:.0f} s apart: let both keep "
                "time by NTP."
            )
        if ahead > CLOCK_SLACK_S:
            raise _FaultError(
                f"Rows were written {ahead:.0f} s in the future, so the clock was set back: let it "
                "keep time by NTP; `adap doctor --repair` cuts what waits for that time."
            )
        return f"within {CLOCK_SLACK_S:g} s of the database's"

    def _files(self, database: Database) -> str:
        blobs = open_blobs(self.settings)
        blobs.probe()
        missing, total = _missing(database, blobs)
        if missing and sum(map(len, missing.values())) == total:
            raise _FaultError(
                f"None of the {total} files that rows refer to is in {self.settings.blobs}: mount "
                "its disk or correct ADAP_BLOBS_URL, else restore a backup."
            )
        if missing:
            parts = "; ".join(
                f"{len(names)} of {what} ({', '.join(names[:MOST_NAMED])}"
                f"{', …' if len(names) > MOST_NAMED else ''})"
                for what, names in missing.items()
            )
            again = set(missing) <= _MADE_AGAIN
            todo = (
                "`adap doctor --repair` lets go of them, and they are made again."
                if again
                else "put them back into the store under these names, or upload anew and run again "
                "what needs them (problem `content_missing`)."
            )
            raise _FaultError(f"Files that rows refer to are missing: {parts}: {todo}")
        return f"all {total} that rows refer to are in {self.settings.blobs}"

    def _garbage(self, database: Database) -> str:
        overdue_s = 2 * self.settings.blob_grace_s + 24 * 3600
        with database.reading() as session:
            count, overdue = session.execute(
                select(
                    func.count(),
                    func.count().filter(CondemnedRow.since < now() - overdue_s),
                ).where(CondemnedRow.gone.is_(False))
            ).one()
        if overdue:
            raise _FaultError(
                f"{overdue} files that nothing refers to should be gone: workers delete them every "
                "hour; start one, or `adap doctor --repair`."
            )
        orphaned = _orphaned(database, open_blobs(self.settings), self.settings.blob_grace_s)
        return f"{orphaned} files that nothing refers to, {count} of them to be deleted soon"

    def _workers(self, database: Database) -> str:
        with database.reading() as session:
            alive = session.execute(
                select(WorkerRow.queue, func.count())
                .where(WorkerRow.seen_at > now() - self.settings.lease_s)
                .group_by(WorkerRow.queue)
            ).all()
        counts = {row.queue: row[1] for row in alive}
        idle = [queue for queue in QUEUES if queue not in counts]
        if idle:
            raise _FaultError(
                f"No worker of the queue {' and '.join(map(repr, idle))} is alive, so its jobs "
                "wait: `adap up`, or `python -m adap.worker --queue NAME`."
            )
        return ", ".join(f"{counts[queue]} of {queue}" for queue in QUEUES)

    def _queues(self, database: Database) -> str:
        with database.reading() as session:
            paused = queues.paused(session)
        if paused:
            raise _FaultError(
                f"{'; '.join(paused.values())}. Its jobs wait: `adap queue resume` when you are "
                "done."
            )
        return "none is paused"

    def _broker(self) -> str:
        url = self.settings.broker_url
        own = socket_folder(self.settings.home) / BROKER
        if url is None:
            if not own.exists():
                raise _FaultError("No broker runs here: `adap up`, or set ADAP_BROKER_URL.")
            url = f"unix://{own}"
        try:
            with redis.Redis.from_url(
                url.replace("redis+socket://", "unix://"),
                socket_timeout=2,
                socket_connect_timeout=2,
            ) as client:
                client.set("adap:probe", "", px=1)
        except redis.ResponseError as error:
            raise _FaultError(
                f"The broker takes no message ({error}): give it memory or disk; jobs start some "
                "seconds later meanwhile."
            ) from error
        except (redis.RedisError, OSError, ValueError) as error:
            raise _FaultError(
                f"The broker does not answer ({error}): start it; jobs start some seconds later "
                "meanwhile."
            ) from error
        return "takes messages"

    def _sandbox(self) -> str:
        try:
            sandbox = make_sandbox(self.settings)
        except RuntimeError as error:
            raise _FaultError(str(error)) from error
        if sandbox.kind == "process" and self.settings.sandbox == "auto":
            raise _FaultError(
                "Uploads are opened in a process without walls: allow unprivileged user namespaces "
                "for bubblewrap or a kernel with Landlock, or say ADAP_SANDBOX=process."
            )
        return sandbox.walls

    def _device(self) -> str:
        deadline = time.monotonic() + DEVICE_LIMIT_S

        def check() -> None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"it gave no answer in {DEVICE_LIMIT_S:g} s")

        try:
            with TemporaryDirectory() as folder, Child() as child:
                work = Work(DeviceTrial(), {}, Path(folder), self.settings.device)
                child.run(work, on_message=lambda _: None, check=check)
        except (ChildFailedError, ChildDiedError, TimeoutError) as error:
            raise _FaultError(
                f"The device ({self.settings.device}) does not compute: {error} Mend it, or set "
                "ADAP_DEVICE=cpu."
            ) from error
        return f"{self.settings.device} computes"


_NOUNS: dict[str, str] = {
    "datasets": "data sets",
    "models": "models",
    "jobs": "checkpoints",
    "job_files": "results",
    "scores": "kept scores",
    "uploads": "uploads",
    "upload_parts": "parts of uploads",
}
_MADE_AGAIN = frozenset({"kept scores", "parts of uploads", "checkpoints"})


def _missing(database: Database, blobs: Blobs) -> tuple[dict[str, list[str]], int]:
    """The names of the files that are not there, by what refers to them; and how many should be."""
    found: dict[str, list[str]] = {}
    total = 0
    for column in REFERENCES:
        names = _names(database, column)
        total += len(names)
        gone = [name for name in names if not blobs.exists(name)]
        # between the two a checkpoint may have been replaced, or something removed
        still = set(_names(database, column)) if gone else set()
        if gone := [name for name in gone if name in still]:
            found.setdefault(_NOUNS[column.class_.__tablename__], []).extend(gone)
    return found, total


def _names(
    database: Database, column: InstrumentedAttribute[str | None] | InstrumentedAttribute[str]
) -> Sequence[str]:
    with database.reading(**UNHURRIED) as session:
        query = select(column).where(column.is_not(None)).distinct().order_by(column)
        return [str(name) for name in session.scalars(query)]


def _orphaned(database: Database, blobs: Blobs, older_s: float) -> int:
    with database.reading(**UNHURRIED) as session:
        needed = set(garbage.all_referred(session))
    return sum(name not in needed for name in blobs.older_than(older_s))


def _check(part: str, look: Look) -> Check:
    try:
        return Check(part, ok=True, said=look())
    except (_FaultError, UnusableDatabaseError) as error:
        return Check(part, ok=False, said=str(error))
    except (BlobsAwayError, OSError) as error:
        return Check(part, ok=False, said=f"{error}: see to it that it can be read and written.")
    except SQLAlchemyError as error:
        return Check(
            part,
            ok=False,
            said=f"The database cannot be used: {getattr(error, 'orig', None) or error}.",
        )


def main() -> None:
    """What `adap doctor` runs; the exit code is 1 where anything is wrong."""
    parser = argparse.ArgumentParser(prog="adap doctor", description=str(__doc__).splitlines()[0])
    parser.add_argument("--home", type=Path, help="where the service keeps everything")
    parser.add_argument("--repair", action="store_true", help="mend what is safe to mend")
    parser.add_argument("--no-device", action="store_true", help="on a machine without workers")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    arguments = parser.parse_args()
    settings = (
        Settings.read() if arguments.home is None else Settings.read(home=arguments.home.absolute())
    )
    doctor = Doctor(settings)
    try:
        done = doctor.repair() if arguments.repair else []
    except (BlobsAwayError, OSError, SQLAlchemyError) as error:
        done = [f"stopped by {error}"]
    checks = doctor.examine(with_device=not arguments.no_device)
    ok = all(check.ok for check in checks)
    if arguments.json:
        answer = {"ok": ok, "repaired": done, "checks": [asdict(check) for check in checks]}
        sys.stdout.write(f"{json.dumps(answer, indent=2, ensure_ascii=False)}\n")
    else:
        for line in done:
            sys.stdout.write(f"{'repaired':<10}{line}\n")
        for check in checks:
            sys.stdout.write(f"{check.part:<10}{'ok' if check.ok else 'FAULT':<7}{check.said}\n")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
