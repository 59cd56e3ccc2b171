"""Bring the database's tables to the newest version."""

from pathlib import Path

from alembic import command
from alembic.config import Config

from adap.store.database import Database


def migrate(database: Database) -> None:
    """Upgrade the tables; nothing happens where they are new enough."""
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
