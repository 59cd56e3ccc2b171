"""`python -m adap.store`: migrate the database, try the blobs, make the bootstrap key exist."""

import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

from adap.store import home, keys
from adap.store.artifacts import open_blobs
from adap.store.logs import configure_logging
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.start import UnusableDatabaseError, open_database
from adap.store.storage import BlobsAwayError


def main() -> None:
    """Prepare the database of the settings; safe to run again at any time."""
    settings = Settings.read()
    configure_logging(settings)
    home.take(settings.home)
    try:
        database = open_database(settings, migrated=False, wait_s=settings.database_wait_s)
    except UnusableDatabaseError as error:
        sys.exit(str(error))
    migrate(database)
    with NamedTemporaryFile() as file:  # a wrong bucket or credential shows here, not in a job
        try:
            open_blobs(settings).put(Path(file.name))
        except (OSError, BlobsAwayError) as error:
            sys.exit(f"The store of files {settings.blobs} cannot be used: {error}")
    if settings.bootstrap_admin_key is not None:
        with database.writing() as session:
            try:
                keys.ensure(session, settings.bootstrap_admin_key.get_secret_value())
            except ValueError as error:
                sys.exit(f"ADAP_BOOTSTRAP_ADMIN_KEY: {error}")
    database.dispose()


if __name__ == "__main__":
    main()
