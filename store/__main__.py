"""`python -m store`: migrate the database and make sure that the bootstrap key exists."""

import sys

from store import keys
from store.database import Database
from store.migrate import migrate
from store.settings import Settings


def main() -> None:
    """Prepare the database of the settings; safe to run again at any time."""
    settings = Settings()
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(settings)
    migrate(database)
    if settings.bootstrap_admin_key is not None:
        with database.writing() as session:
            try:
                keys.ensure(session, settings.bootstrap_admin_key.get_secret_value())
            except ValueError as error:
                sys.exit(f"ADAP_BOOTSTRAP_ADMIN_KEY: {error}")
    database.dispose()


if __name__ == "__main__":
    main()
