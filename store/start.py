"""Checks of the database that every process of the service makes before it uses it."""

import logging
from pathlib import Path
from time import monotonic, sleep

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import InterfaceError, OperationalError

from adap.store import disk, postgres
from adap.store.database import Database
from adap.store.migrate import config
from adap.store.postgres import SilentError
from adap.store.settings import Settings
from adap.store.tables import Table

log = logging.getLogger(__name__)

AGAIN_S = 0.5  # between two looks for a server that does not answer

# Tables of other programs; and an index more or less makes nothing wrong.
_NO_MATTER = ("remove_table", "remove_index", "add_index")
_MOST_NAMED = 3


class UnusableDatabaseError(Exception):
    """The database cannot be used as it is; the message says why and what to do."""


class SilentDatabaseError(UnusableDatabaseError):
    """No database answers, now."""


class RefusingDatabaseError(UnusableDatabaseError):
    """A server that takes connections takes none of ours: waiting would not help."""


def open_database(settings: Settings, *, migrated: bool = True, wait_s: float = 0.0) -> Database:
    """The database of the settings.

    migrated: whether its tables must be of this version already. wait_s: how long a PostgreSQL
    server that does not answer is waited for; the log says so. Raises UnusableDatabaseError for
    SQLite on a network file system, for one that does not answer or lets nobody in by this URL, for
    tables of a newer version, for such as no version has by these names, and for older ones if
    asked.
    """
    deadline = monotonic() + wait_s
    said, refused = "", False
    while True:
        database = Database(settings)
        try:
            _look_at(database, settings, migrated=migrated)
        except RefusingDatabaseError:
            database.dispose()
            if refused:
                raise
            refused = True  # it may have come up in between: what it says next, it says itself
        except SilentDatabaseError as error:
            database.dispose()
            refused = False
            left_s = deadline - monotonic()
            if database.engine.dialect.name == "sqlite" or left_s <= 0:
                raise
            if str(error) != said:
                said = str(error)
                log.warning(
                    "database.waited_for", extra={"reason": said, "at_most_s": round(left_s, 1)}
                )
            sleep(min(AGAIN_S, left_s))
        except UnusableDatabaseError:
            database.dispose()
            raise
        else:
            return database


def _look_at(database: Database, settings: Settings, *, migrated: bool) -> None:
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
            newest = script.get_current_head()
            others = _differences(session.connection()) if current == newest else []
            there = inspect(session.connection()).get_table_names()
    except (OperationalError, InterfaceError) as error:
        got = " ".join(str(error.orig).split())
        silent = database.engine.dialect.name == "sqlite" or isinstance(error.orig, SilentError)
        if not silent and postgres.takes_connections(
            database.engine, limit_s=settings.database_limit_s
        ):
            raise RefusingDatabaseError(
                f"Expected a PostgreSQL server that lets us into the database of "
                f"ADAP_DATABASE_URL, got: {got}. Look at the user, the password and the name of "
                "the database there, and start this again."
            ) from error
        raise SilentDatabaseError(
            f"Expected a database that answers, got: {got}. Start it, or look at "
            "ADAP_DATABASE_URL, and start this again."
        ) from error
    if others:
        where = "another database by ADAP_DATABASE_URL"
        if database.engine.dialect.name == "sqlite":
            where = f"another home than {settings.home} by ADAP_HOME or --home"
        raise UnusableDatabaseError(
            f"Expected the tables of this version, got others (they differ in {_some(others)}), "
            f"made by an AdAP before its first release: choose {where}, or go on with the AdAP "
            "that made them."
        )
    if current == newest:
        return
    try:
        known = current is None or script.get_revision(current) is not None
    except CommandError:
        known = False
    if not known:
        raise UnusableDatabaseError(
            f"Expected a database of at most version {newest}, got {current}: a newer AdAP has "
            "upgraded it. Run that version; this one would damage what it does not know."
        )
    if current is None and (taken := sorted(Table.metadata.tables.keys() & set(there))):
        raise UnusableDatabaseError(
            f"Expected a database of AdAP's or an empty one, got tables that another program made "
            f"({_some(taken)}): name another one by ADAP_DATABASE_URL."
        )
    if migrated:
        raise UnusableDatabaseError(
            "The database has no tables of this version yet: run `python -m adap.store` first."
        )


def _differences(connection: Connection) -> list[str]:
    """The tables and columns that are not as this version declares them."""
    found: dict[str, None] = {}
    for change in compare_metadata(MigrationContext.configure(connection), Table.metadata):
        # what is changed about one column comes as a list
        kind, *what = change[0] if isinstance(change, list) else change
        if kind in _NO_MATTER:
            continue
        if kind in ("add_column", "remove_column"):  # schema, table, column
            found[f"{what[1]}.{what[2].name}"] = None
        elif kind.startswith("modify"):  # schema, table, column's name, …
            found[f"{what[1]}.{what[2]}"] = None
        else:  # a table, or a constraint of one
            found[getattr(what[0], "table", what[0]).name] = None
    return list(found)


def _some(names: list[str]) -> str:
    return ", ".join([*names[:_MOST_NAMED], *(["…"] if len(names) > _MOST_NAMED else [])])


def revision_of(connection: Connection) -> str | None:
    """The version of the tables; None where there are none."""
    return MigrationContext.configure(connection).get_current_revision()
