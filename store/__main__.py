"""`python -m store`: migrate the database, try the blobs, make sure the bootstrap key exists."""

import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

from store import keys
from store.artifacts import open_blobs
from store.migrate import migrate
from store.settings import Settings
from store.start import UnusableDatabaseError, open_database


def main() -> None:
    """Prepare the database of the settings; safe to run again at any time."""
    settings = Settings()
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        database = open_database(settings, migrated=False)
    except UnusableDatabaseError as error:
        sys.exit(str(error))
    migrate(database)
    with NamedTemporaryFile() as file:  # a wrong bucket or credential shows here, not in a job
        open_blobs(settings).put(Path(file.name))
    if settings.bootstrap_admin_key is not None:
        with database.writing() as session:
            try:
                keys.ensure(session, settings.bootstrap_admin_key.get_secret_value())
            except ValueError as error:
                sys.exit(f"ADAP_BOOTSTRAP_ADMIN_KEY: {error}")
    database.dispose()


if __name__ == "__main__":
    main()
