"""`python -m adap.store.local_key [HOME]`: make an API key in the database of this machine.

Whoever may write into the database needs no other key: the way back in when none is left. Reads the
request as JSON on stdin, as `POST /v1/api-keys` takes it, and writes the answer, also as JSON, with
the database that the key is in.
"""

import json
import sys
from pathlib import Path

from adap.store import keys
from adap.store.settings import Settings
from adap.store.start import UnusableDatabaseError, open_database

FIELDS = {"name", "scopes", "tenant", "expires_in_s"}


def main() -> None:
    """Make the key; end with 1 and a sentence where there is no database of a service."""
    asked = {name: value for name, value in json.load(sys.stdin).items() if name in FIELDS}
    home = [Path(argument).absolute() for argument in sys.argv[1:]]
    settings = Settings.read(home=home[0]) if home else Settings.read()
    try:
        database = open_database(settings)
    except UnusableDatabaseError as error:
        sys.exit(str(error))
    with database.writing() as session:
        row, key = keys.create(session, **{"scopes": ["read", "write"], **asked})
        made = {"id": row.id, "name": row.name, "tenant": row.tenant, "scopes": row.scopes}
        answer = {**made, "expires_at": row.expires_at, "key": key}
    where = database.engine.url.render_as_string(hide_password=True)
    database.dispose()
    json.dump({**answer, "database": where}, sys.stdout)


if __name__ == "__main__":
    main()
