"""Checks of the database that every process of the service makes before it uses it."""

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from adap.store import disk
from adap.store.database import Database
from adap.store.migrate import config
from adap.store.settings import Settings


class UnusableDatabaseError(Exception):
    """The database cannot be used as it is; the message says why and what to do."""


def open_database(settings: Settings, *, migrated: bool = True) -> Database:
    """The database of the settings.

    migrated: whether its tables must be of this version already. Raises UnusableDatabaseError for
    SQLite on a network file system, for one that does not answer, for tables of a newer version,
    and for older ones if asked.
    """
    database = Database(settings)
    file = database.engine.url.database
    if database.engine.dialect.name == "sqlite" and file:
        kind = disk.network_file_system(Path(file).parent)
        if kind is not None:
            raise UnusableDatabaseError(
                f"Expected the database {file} on a disk of this machine, got a file system over "
                f"the network ({kind}), on which SQLite loses data. Choose another ADAP_HOME, or a "
                "PostgreSQL server by ADAP_DATABASE_URL."
            )
    try:
        # takes no lock that a backup or a frozen worker may hold
        with database.reading() as session:
            current = revision_of(session.connection())
            script = ScriptDirectory.from_config(config(session.connection()))
    except OperationalError as error:
        got = " ".join(str(error.orig).split())
        raise UnusableDatabaseError(
            f"Expected a database that answers, got: {got}. Start it, or look at "
            "ADAP_DATABASE_URL, and start this again."
        ) from error
    newest = script.get_current_head()
    if current == newest:
        return database
    try:
        known = current is None or script.get_revision(current) is not None
    except CommandError:
        known = False
    if not known:
        raise UnusableDatabaseError(
            f"Expected a database of at most version {newest}, got {current}: a newer AdAP has "
            "upgraded it. Run that version; this one would damage what it does not know."
        )
    if migrated:
        raise UnusableDatabaseError(
            "The database has no tables of this version yet: run `python -m adap.store` first."
        )
    return database


def revision_of(connection: Connection) -> str | None:
    """The version of the tables; None where there are none."""
    return MigrationContext.configure(connection).get_current_revision()
