"""Bring the database's tables to the newest version."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from adap.store.database import Database


def migrate(database: Database) -> None:
    """Upgrade the tables; nothing happens, and no lock is taken, where they are new enough."""
    with database.reading() as session:
        current = MigrationContext.configure(session.connection()).get_current_revision()
        newest = ScriptDirectory.from_config(config(session.connection())).get_current_head()
    if current == newest:
        return
    patient = database.engine.execution_options(limit_s=None)
    with patient.begin() as connection:
        command.upgrade(config(connection), "head")


def config(connection: object) -> Config:
    """Alembic's configuration for our migrations on this connection."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made
